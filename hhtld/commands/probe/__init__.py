"""`hhtld probe`: searching a file's rows in every way there is, against exact search in what the file was made from."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from numpy.typing import ArrayLike

from hhtld.commands.arguments import add_json, positive
from hhtld.commands.exit_codes import DONE
from hhtld.commands.probe.ground_truth import NOISE, GivenQueries, exact_rows, given_queries, perturbed_rows
from hhtld.commands.probe.report import ProbeReport, TensorProbe
from hhtld.commands.probe.search_methods import SearchCase, measured_methods
from hhtld.display.streams import emit
from hhtld.errors import shown
from hhtld.formats import open_source
from hhtld.pack.made_from import check_made_from
from hhtld.pack.opening import open_pack
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress, silent
from hhtld.sources.contract import SourceRows, TensorSource
from hhtld.sources.name_patterns import matching
from hhtld.storage.locations import spelled

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "chosen_tensors", "probe", "run"]

BEST = 5


def probe(
    path: str | os.PathLike[str],
    src: str | os.PathLike[str],
    *,
    tensors: Sequence[str] = (),
    queries: str | os.PathLike[str] | ArrayLike | None = None,
    count: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeReport:
    """Search a file's encoded tensors in every way there is, and exactly in what the file was made from.

    Parameters
    ----------
    path : path
        A `.hhtld` file.
    src : path
        What it was made from; or "demo:".
    tensors : sequence of glob
        Encoded tensors to search; those of the index regime, embeddings and heads, if there is none.
    queries : path of an .npy file, or array, (n, n_cols), optional
        Searched as float32. By default rows of `src`, each with noise of .05 of its length added.
    count : int
        Queries to make at most, evenly spaced over the rows or over `queries`.
    seed : int
        Of the noise.
    progress : callable, optional
        Called with "probe", a tensor's name and its bytes in `src` when that tensor is done.

    Raises
    ------
    FormatError
        If a file is damaged, `src` is not what `path` was made from, or a file of queries does not fit.
    ValueError
        If a glob matches nothing that is encoded, or an array of queries does not fit.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    given = None if queries is None else given_queries(queries, count)
    origin = f"rows of SRC + {NOISE:g} noise" if given is None else given.origin
    report = ProbeReport(spelled(path), spelled(src), origin, seed)
    with open_pack(path) as pack, open_source(src) as source:
        names = chosen_tensors(pack, tensors)
        check_made_from(pack, source, names)
        for name in names:
            if given is not None:
                given.check(name, pack.info(name).info.n_cols)
        for name in names:
            report.tensors.append(_probed(pack, source, name, given, count, seed))
            (progress or silent)("probe", name, source.infos()[name].nbytes)
    return report


def chosen_tensors(pack: HhtldPack, globs: Sequence[str] = ()) -> list[str]:
    """Return the encoded tensors that globs name, or those of the index regime; of tied ones the one with bytes.

    Raises
    ------
    ValueError
        If there is none.
    """
    wanted = list(dict.fromkeys(pack.info(name).name for name in matching(pack, globs)))
    encoded = [name for name in wanted if pack.info(name).is_encoded and pack.info(name).info.n_rows]
    if globs and not encoded:
        raise ValueError(f"tensor {shown(wanted[0])} is kept as it came; only encoded tensors are searched")
    chosen = encoded if globs else [name for name in encoded if pack.table.regime(name) == "index"]
    if not chosen:
        raise ValueError("the file has no encoded embedding or head; name a tensor to search with --tensor GLOB")
    return chosen


def _probed(
    pack: HhtldPack, source: TensorSource, name: str, given: GivenQueries | None, count: int, seed: int
) -> TensorProbe:
    source_rows = SourceRows(source, name, pack.info(name).info.n_cols)
    rows = source_rows.read(0, source_rows.n_rows)
    queries = perturbed_rows(rows, count, seed) if given is None else given.values
    case = SearchCase(pack, source, name, rows, queries, exact_rows(rows, queries, min(BEST, len(rows))))
    results, cascade = measured_methods(case)
    info = pack.info(name)
    return TensorProbe(name, info.info.shape, info.codec, len(queries), results, cascade)


# ---- the command ----


DESCRIPTION = (
    "Search encoded tensors of FILE in every way there is and exactly in SRC: what each way finds, the time and "
    "the bytes it takes. It measures and does not judge: exit code 0."
)
EXAMPLES = """\
  hhtld probe model.hhtld model.safetensors
  hhtld probe model.hhtld model.safetensors --tensor '*lm_head*' --count 1000
  hhtld probe model.hhtld model.safetensors --queries questions.npy
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("file", metavar="FILE", help="a .hhtld file")
    command.add_argument("src", metavar="SRC", help="what FILE was made from")
    command.add_argument(
        "--tensor",
        action="append",
        default=[],
        metavar="GLOB",
        help="search the encoded tensors whose name matches (default: embeddings and heads)",
    )
    command.add_argument(
        "--queries", metavar="NPY", help="floats (n, n_cols) saved by numpy (default: rows of SRC with a little noise)"
    )
    command.add_argument(
        "--count", type=positive, default=256, metavar="N", help="queries to make, evenly spaced (default 256)"
    )
    add_json(command)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from hhtld.commands.probe.report import print_probe
    from hhtld.display.progress_bar import progress_bar
    from hhtld.display.terminal import console
    from hhtld.pack.opening import open_pack

    with open_pack(arguments.file) as pack:
        total = sum(pack.info(name).info.nbytes for name in chosen_tensors(pack, arguments.tensor))
    with progress_bar(total, wanted=not arguments.json) as progress:
        report = probe(
            arguments.file,
            arguments.src,
            tensors=arguments.tensor,
            queries=arguments.queries,
            count=arguments.count,
            progress=progress,
        )
    if arguments.json:
        emit(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        print_probe(report, console())
    return DONE
