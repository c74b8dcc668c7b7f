"""The bad inputs and bad days that this project knows of, by number, and the tests that try each.

A test is named by its file and the beginning of what follows `::`; it stands for every test whose name begins so, and
`test_catalogue.py` checks that there is one. Numbers are never given twice; new ones go to the end of their part.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "Entry"]

_FILES = {
    "S": "tests/formats/test_safetensors.py",
    "H": "tests/formats/test_hhtld.py",
    "T": "tests/formats/test_hhtld_slot_t.py",
    "G": "tests/formats/test_gguf.py",
    "O": "tests/formats/test_onnx.py",
    "C": "tests/api/test_convert.py",
    "I": "tests/commands/test_inspect.py",
    "X": "tests/formats/test_hdf5.py",
    "K": "tests/codec/test_codec.py",
    "D": "tests/kernels/test_doors.py",
    "N": "tests/codec/test_tensor.py",
    "R": "tests/codec/test_trellis_codec.py",
    "M": "tests/encoding/test_encoder.py",
    "L": "tests/formats/test_golden.py",
    "A": "tests/trust/test_arrays.py",
    "B": "tests/trust/test_bad_files.py",
    "F": "tests/trust/test_faults.py",
    "P": "tests/trust/test_damage.py",
    "V": "tests/trust/test_versions.py",
    "W": "tests/trust/test_threads.py",
    "Z": "tests/trust/test_fuzz.py",
    "Y": "tests/trust/test_machines.py",
    "E": "tests/api/test_resume.py",
    "Q": "tests/formats/test_fp8.py",
    "U": "tests/storage/test_urls.py",
    "J": "tests/formats/test_folders.py",
    "$": "tests/encoding/test_memory.py",
    "+": "tests/api/test_changed_source.py",
    "=": "tests/commands/test_verify.py",
    "<": "tests/pack/test_budget.py",
    "!": "tests/api/test_refusals.py",
    "?": "tests/search/test_scorer.py",
}


@dataclass(frozen=True)
class Entry:
    """A bad input.

    Attributes
    ----------
    text : str
    tests : tuple of str
        Beginnings of pytest's names.
    not_here : str
        Why nothing tries it; then there are no tests.
    """

    text: str
    tests: tuple[str, ...] = ()
    not_here: str = ""


def _tried(text: str, *tests: str) -> Entry:
    return Entry(text, tuple(f"{_FILES[test[0]]}::{test[2:]}" for test in tests))


def _not_here(text: str, why: str) -> Entry:
    return Entry(text, not_here=why)


_S, _H, _T = "S:test_malformation_is_refused_by_name[", "H:test_malformed[", "T:test_malformed["
_G, _O = "G:test_malformation_is_refused_by_name[", "O:test_malformation_is_refused_by_name["
_U = "S:test_unusual_file_is_read_as_the_official_library_does["

CATALOGUE: dict[int, Entry] = {
    # safetensors and other sources: the file
    1: _tried("empty file", _S + "empty file", _H + "empty file", _G + "empty file", _O + "empty file"),
    2: _tried("one to seven bytes", _S + "one byte", _S + "seven bytes", _G + "three bytes"),
    3: _tried("header of no bytes", _S + "length 0"),
    4: _tried("header longer than the file, up to 2^64 - 1", _S + "length one past", _S + "length 2^", _G + "2^64 - 1"),
    5: _tried("header one byte above the limit, really there", "S:test_header_at_the_limit", "G:test_header_above"),
    6: _tried("header that is not UTF-8", _S + "not UTF-8", _S + "surrogate in UTF-8", _G + "key not UTF-8"),
    7: _tried("header that is no JSON object", _S + "array", _S + "number", _S + "byte order mark", _S + "padded with"),
    8: _tried("white space before the header is sound", _U + "leading white space"),
    9: _tried("white space after the header is sound", _U + "trailing white space"),
    10: _tried(
        "a hundred thousand brackets", _S + "arrays without end", _S + "objects without end", _O + "messages with"
    ),
    11: _tried("a tensor given twice", _S + "duplicate tensor", _G + "name twice", _O + "name twice"),
    12: _tried("metadata or a field given twice", _S + "duplicate metadata", _S + "duplicate field", _G + "key twice"),
    13: _tried(
        "metadata that is null is none; that is nested is refused", _U + "metadata null", _S + "metadata nested"
    ),
    14: _tried(
        "a tensor by the name of the metadata", "S:test_names_no_file_can_hold", "M:test_bad_arrays_are_refused"
    ),
    15: _tried("a field missing, or offsets of one or three", _S + "no dtype", _S + "no shape", _S + "three offsets"),
    16: _tried("a field that nobody knows is ignored", _U + "unknown field"),
    17: _tried("an unknown type", _S + "unknown dtype", _S + "lower-case dtype", _G + "unknown type", _O + "type 99"),
    18: _tried(
        "sizes that are no sizes", _S + "negative size", _S + "float size", _S + "bool size", _S + "size of 5000"
    ),
    19: _tried(
        "sizes whose product wraps", _S + "product", _S + "byte overflow", _G + "sizes whose", _O + "sizes whose"
    ),
    20: _tried(
        "an empty tensor no array can be", _S + "empty with a size", _S + "empty but larger", _H + "empty beyond"
    ),
    21: _tried("a hundred axes", _S + "100 axes", _S + "33 axes", _G + "five axes", _O + "33 axes", _H + "255 dim"),
    22: _tried(
        "offsets reversed, with holes, overlapping", _S + "begin after end", _S + "hole", _S + "overlap", _G + "a hole"
    ),
    23: _tried("offsets that are not the shape's bytes", _S + "too few bytes", _S + "too many bytes", _O + "raw_data"),
    24: _tried("bytes after the end, a second file among them", _S + "trailing", _G + "bytes after"),
    25: _tried("data short by a byte", _S + "short by one byte", _G + "short by a byte", _O + "raw_data short"),
    26: _tried("an empty tensor beside a full one at one offset", _U + "empty at the end", _S + "empty inside another"),
    27: _tried("scalars and empty axes are sound", _U + "scalar", _U + "empty axes", "A:test_every_shape_comes_back"),
    28: _tried("data that is not aligned is sound", "S:test_unaligned_data_comes_back_aligned"),
    29: _tried(
        "packed floats that fill no byte; those that do", _S + "odd number of F4", _U + "F4", _U + "F6", _U + "C64"
    ),
    30: _tried("a BOOL of 2 comes through as it is", _U + "NaN and BOOL 2"),
    31: _tried(
        "names of every kind are opaque", "S:test_names_are_opaque", "X:test_names_of_every_kind", "I:test_names_and"
    ),
    32: _tried("very many tensors", "S:test_many_", "G:test_many_tensors", "H:test_many_unknown_sections"),
    33: _tried("a file above 4 GiB", "S:test_tensor_at_the_end_of_a_sparse_file"),
    34: _tried(
        "folders, pipes, devices, links without end",
        "S:test_fifo",
        "S:test_folder_and",
        "S:test_missing",
        "H:test_what_is",
    ),
    35: _tried(
        "a file cut while it is read", "S:test_file_that_became_shorter", "G:test_file_that", "H:test_a_file_cut"
    ),
    36: _tried(
        "another file under this suffix", _S + "Git LFS", _S + "HTML", _S + "zip", _S + "pickle", _O + "Git LFS"
    ),
    37: _tried(
        "an index that lies, or leads out of its folder",
        "S:test_bad_index",
        "S:test_shard_name",
        "S:test_tensor_in_two",
    ),
    38: _tried("shards that are links into a cache", "S:test_cache_of_links", "O:test_links_of_a_hubs_cache"),
    39: _tried("a config.json that is damaged, or says quantized", "S:test_bad_config"),
    40: _tried(
        "source and target one file", "F:test_what_is_read_is_not", "S:test_source_may_be", "C:test_a_pack_may_stand"
    ),
    # arrays
    41: _tried("one value that is not finite", "A:test_one_nan_anywhere", "M:test_weights_that_are_not_finite"),
    42: _tried("a NaN's payload comes through", "A:test_one_nan_anywhere"),
    43: _tried("rows of zeros", "N:test_degenerate_rows", "R:test_rows_that_break_scales"),
    44: _tried("negative zero", "N:test_degenerate_rows"),
    45: _tried(
        "rows that are all alike", "N:test_degenerate_rows", "K:test_fisher_z_of_degenerate", "A:test_rows_that_are_one"
    ),
    46: _tried("denormals", "R:test_rows_that_break_scales", "A:test_flushed_denormals", "Z:test_any_model"),
    47: _tried(
        "values near float32's end", "R:test_rows_at_the_end_of_the_range", "M:test_float64_beyond", "N:test_degenerate"
    ),
    48: _tried(
        "types that are no weights, or nothing",
        "A:test_types_that_no_file",
        "A:test_what_is_no_weight",
        "M:test_bad_arrays",
    ),
    49: _tried(
        "no rows, no columns, one of either, fewer than 17", "A:test_every_shape", "R:test_any_width", "N:test_any_rows"
    ),
    50: _tried(
        "one axis, none, and many",
        "A:test_every_shape",
        "A:test_more_axes",
        "M:test_effective_shape",
        "Z:test_any_model",
    ),
    51: _tried("any memory order", "A:test_memory_order", "K:test_rows_of_any_memory_order", "S:test_any_memory_order"),
    52: _tried("the other byte order", "A:test_memory_order", "S:test_any_memory_order"),
    53: _tried("arrays that are not aligned", "A:test_memory_order", "D:test_unaligned_arrays_are_refused"),
    54: _tried(
        "arrays that may not be written", "A:test_memory_order", "M:test_inputs_are_not_changed", "D:test_read_only_in"
    ),
    55: _tried(
        "masked arrays and other things", "M:test_bad_arrays_are_refused", "K:test_rows_are_checked_at_the_door"
    ),
    56: _not_here(
        "tensors of torch on a device, or without data", "arrays are taken, and numpy says what a tensor lacks"
    ),
    57: _tried("what is no mapping of names to arrays", "M:test_bad_arrays_are_refused"),
    58: _tried("palette sizes out of range", "K:test_palette_size"),
    59: _tried("families that do not fit the palette", "K:test_hip_assignments", "N:test_groups_refuse"),
    60: _tried("counts that do not agree", "K:test_slot_l_counts", "N:test_constructors_check", "D:test_wrong_shapes"),
    61: _tried("bases of few vectors, of none, not finite", "K:test_basis_", "K:test_slot_l_of_rows_equal"),
    62: _tried(
        "seeds out of range; the same seed on any threads", "A:test_seeds", "L:test_encoding_again", "Z:test_threads"
    ),
    63: _tried("metadata that is not text", "M:test_metadata_is_text", "S:test_metadata_with_a_surrogate"),
    64: _tried(
        "a writer that fails inside, or gets what it was not promised", "H:test_declared", "H:test_a_failing_encode"
    ),
    65: _tried("an array that changes meanwhile", "A:test_an_array_that_changes"),
    66: _tried("memory that runs out", "A:test_a_machine_too_small"),
    67: _tried("Ctrl-C in the middle", "C:test_ctrl_c", "H:test_interrupting", "X:test_an_interrupt"),
    68: _tried("fork and spawn", "W:test_a_child_of_fork", "W:test_processes_that_are_spawned"),
    # .hhtld
    69: _tried("cut at every byte", "P:test_every_truncation", "H:test_every_truncation"),
    70: _tried("every bit flipped", "P:test_every_flipped_bit", "H:test_every_flipped_bit", "P:test_whoever"),
    71: _tried("magic changed by a transfer in text mode", _H + "line ends", _H + "high bit", _H + "byte-swapped"),
    72: _tried("versions older, newer and unknown", _H + "version", "V:test_a_newer_minor", "V:test_a_major_version"),
    73: _tried(
        "features and sections that nobody knows", "V:test_a_required_feature", "V:test_a_section_that", _H + "required"
    ),
    74: _tried("reserved bytes and bits", _H + "reserved"),
    75: _tried(
        "table offset and length out of any range", _H + "table offset", _H + "table length", _H + "header length"
    ),
    76: _tried(
        "no trailer, two, bytes after it, two files in one", _H + "no trailer", _H + "trailer twice", "H:test_appended"
    ),
    77: _tried("counts that lie", _G + "tensors that", _G + "one tensor too", _G + "2^64 - 1", _G + "array of 2^63"),
    78: _tried("sections that overlap, leave holes, end beyond", _H + "section ", _H + "hole", _H + "dirty padding"),
    79: _tried("one section for two tensors; aliases in circles", _H + "section of two", _H + "alias"),
    80: _tried("tensors twice, out of order, with impossible names", _H + "tensor", _H + "name", _H + "lone surrogate"),
    81: _tried("unknown types and codecs", _H + "unknown dtype", _H + "unknown codec", _H + "codec a module"),
    82: _tried("shapes that are not the sections' bytes", _H + "shape", _H + "encoded", _H + "entries", _T + "slot_t"),
    83: _tried("a petabyte declared in a small file", "H:test_huge_declared_rows"),
    84: _tried("a budget for all tensors together", "A:test_all_tensors_together", "H:test_budget_counts"),
    85: _tried(
        "palettes of no entry or too many; rows that point beyond", _H + "palette", _H + "twig", _T + "twig", _T + "257"
    ),
    86: _tried(
        "groups missing, of another width, without what is needed",
        _H + "group",
        _H + "no group",
        _T + "a group without",
    ),
    87: _not_here("tables of distances and routes that disagree with the palette", "they are computed, never stored"),
    88: _tried("Fisher z of no range", _H + "Fisher z", _H + "fisher_z", "K:test_fisher_z_refuses"),
    89: _tried(
        "gains and scales that are not finite", _T + "slot_v", _T + "column scale", _H + "scale", _T + "centroid"
    ),
    90: _tried(
        "Slot L and its basis apart, or of other widths", _H + "Slot L", _H + "basis", _T + "Slot L", _T + "a basis"
    ),
    91: _not_here("compressed sections that lie about their size", "no section is compressed; lengths are exact"),
    92: _tried(
        "checksums wrong, zero, exchanged with their sections",
        _H + "section checksum",
        _H + "two alike",
        _T + "checksum",
    ),
    93: _tried(
        "JSON of every malformation", _H + "repeated", _H + "NaN", _H + "1e400", _H + "nested", _H + "source nested"
    ),
    94: _tried("pipes, folders, empty files to map", "H:test_what_is_no_file", _H + "empty file"),
    95: _tried(
        "a file replaced under its reader", "W:test_readers_of_a_file", "C:test_reading_while", "H:test_an_open_pack"
    ),
    96: _tried(
        "stale, damaged or foreign parts of an interrupted conversion",
        "E:test_another_source",
        "E:test_other_settings",
        "E:test_a_damaged_journal",
        "E:test_damaged_bytes",
        "E:test_somebody_elses_file",
    ),
    97: _tried("a reader of the other byte order", "Y:test_big_endian", "L:test_a_reader_of_the_specification"),
    98: _tried("a file that names code to import", _H + "codec a module"),
    # writing, the command line, the environment
    99: _tried(
        "a target that cannot be",
        "F:test_a_disk",
        "F:test_a_folder",
        "F:test_a_name",
        "F:test_a_limit",
        "C:test_exit_codes",
    ),
    100: _tried(
        "a target that exists, is a link, a folder",
        "H:test_a_link",
        "H:test_targets_that_are_no",
        "F:test_replacing_one",
    ),
    101: _tried(
        "every write, sync and rename that can fail",
        "F:test_a_fault",
        "F:test_an_error_of_close",
        "H:test_every_failing",
    ),
    102: _tried("a process killed at any of them", "F:test_a_fault_leaves", "F:test_the_faults_are"),
    103: _tried("modes by the umask", "F:test_modes", "H:test_umask", "S:test_mode_follows"),
    104: _tried(
        "clock, locale, hash seed and order of names",
        "C:test_environment",
        "C:test_every_way",
        "Z:test_threads_and_order",
    ),
    105: _tried(
        "no terminal, a closed or full output, no Unicode",
        "C:test_a_reader_that_goes",
        "F:test_results",
        "I:test_terminals",
    ),
    106: _tried("wrong words on the command line", "C:test_exit_codes", "C:test_bad_settings"),
    107: _tried("a dry run of every bad file", "B:test_the_command_line_refuses", "C:test_dry_run_writes_nothing"),
    108: _tried(
        "exports of odd names and many rows", "X:test_names_of_every_kind", "X:test_a_small_budget", "X:test_bad_input"
    ),
    109: _tried("plugins that break, lack or steal", "C:test_a_plugin", "C:test_a_name_claimed_twice"),
    110: _not_here("extensions of another Python", "Python does not find them: their names carry its version"),
    111: _tried("threads that take turns at every step", "W:test_threads_that_open", "W:test_readers_of_a_file"),
    112: _tried("extensions that would bring the global lock back", "Y:test_free_threaded"),
    113: _tried("rounding or denormals changed by a library", "A:test_another_rounding", "A:test_flushed_denormals"),
    114: _tried(
        "open packs pickled, copied, closed twice",
        "A:test_open_packs_are_opened_again",
        "W:test_closing",
        "W:test_a_desc",
    ),
    # what came later
    115: _tried(
        "scales that fit no weight, or are none; other quantizations",
        "Q:test_what_does_not_go_together",
        "Q:test_scales_that_no",
        "Q:test_other_quantizations",
        "Q:test_block_sizes",
    ),
    116: _tried(
        "a URL whose file is missing, cut, replaced or given only whole",
        "U:test_nothing_there",
        "U:test_short_reads",
        "U:test_a_file_replaced",
        "U:test_a_pack_replaced",
        "U:test_a_server_that",
    ),
    117: _tried(
        "side files and shards of a pack whose names lead elsewhere",
        "J:test_names_that_lead_elsewhere",
        "J:test_bad_lists_of_files",
        "J:test_a_pack_cannot_name_shards",
    ),
    118: _tried("less memory than one tensor or file needs", "$:test_what_cannot_be_done", "J:test_a_side_file_counts"),
    119: _tried(
        "links that lead out of a model's folder: side files, weights, configs, indexes, ONNX data",
        "J:test_a_link_out_of_the_folder",
        "J:test_weights_configs_and_indexes",
        "J:test_a_packed_folders_pack_behind",
        "J:test_the_blobs_of_a_hubs_cache",
        "J:test_a_side_file_that_becomes_a_link",
        "O:test_links_out_of_the_folder",
    ),
    120: _tried(
        "a model among files of other people",
        "J:test_a_model_among_other_files",
        "J:test_code_comes_along",
    ),
    121: _tried(
        "a source written to while it is converted, by this process or by workers, or before it is resumed",
        "+:test_a_source_written_over",
        "+:test_writing_is_noticed",
        "+:test_a_shard_replaced",
        "+:test_external_data_replaced",
        "+:test_a_source_that_changes_under_workers",
        "E:test_a_source_that_was_touched_or_moved",
        "E:test_rows_that_changed_meanwhile",
    ),
    122: _tried(
        "a pack verified against another source: tied tensors, rows of other lengths, one weight",
        "=:test_a_tied_tensor",
        "=:test_rows_of_another_length",
        "=:test_one_changed_weight",
    ),
    123: _tried(
        "searching rows below 2^-128, rows that are not finite, rows without columns",
        "?:test_kept_rows_below",
        "?:test_rows_that_do_not_decode",
        "<:test_rows_without_columns",
    ),
    124: _tried(
        "a web server that sends without end, compressed, or a byte now and then",
        "U:test_a_web_server_does_not_decide",
    ),
    125: _tried(
        "doors that could pass the budget: slots, searching, palettes of many groups, conversions",
        "<:test_every_door",
        "<:test_searching_the_lookup_grade",
        "<:test_palettes_that_are_kept",
        "<:test_a_conversion_of_a_pack",
    ),
    126: _tried(
        "somebody else's file at the partial file's place, before and meanwhile",
        "E:test_somebody_elses_file",
        "E:test_a_source_that_bears",
        "E:test_what_is_verified",
        "E:test_a_folder_removed",
    ),
    127: _tried("a closed pack or source that is read", "!:test_a_closed", "!:test_a_pack_closed"),
    128: _tried("groups that no tensor names, and break a rule", "H:test_verify_reads_groups", "H:test_a_group_of_any"),
}
