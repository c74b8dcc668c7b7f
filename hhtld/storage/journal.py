"""Unfinished work that a later run continues: a journal and a partial file beside the output.

Layout
------
The journal of ``DST`` is ``DST.journal``, the partial file ``.DST.partial``. The journal is JSON lines,
``{"crc32": c, "key": k, "value": v}`` with the CRC-32 of ``[k,v]`` as compact JSON with sorted keys; the first has the
key ``["begin"]`` and says what the work is. Of lines with one key the last counts; a line that is damaged or cut
short is as if it had never been written. A line is written after the bytes it speaks of, and those are checked
against its checksums before they are believed, so no order of writes reaching the disk can do harm.

Whoever writes holds a lock on the journal, which the system drops when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hhtld.errors import HhtldError, OutputError
from hhtld.storage import descriptors
from hhtld.storage.atomic import AtomicFile, keep_mode, require_regular, require_same, shortened, sync_folder, writing

__all__ = ["Journal", "journal_path", "partial_path", "resumable"]

_BEGIN = ["begin"]
_PIECE = 1 << 20


def _sibling(path: Path, before: str, after: str) -> Path:
    name = before + path.name + after
    if len(os.fsencode(name)) > 255:
        name = f"{before}{shortened(path.name)}.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{after}"
    return path.with_name(name)


def journal_path(path: Path) -> Path:
    """Return where the journal of an output lies."""
    return _sibling(path, "", ".journal")


def partial_path(path: Path) -> Path:
    """Return where the bytes of an unfinished output lie."""
    return _sibling(path, ".", ".partial")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


class Journal:
    """Facts by key; without a file it forgets them.

    Attributes
    ----------
    notes : list of str
        What a user should know of an earlier run, one sentence each.
    is_doubted : bool
        Whether the work's input lies elsewhere, or was touched, since an earlier run: its facts must then be compared
        with the input itself.
    """

    def __init__(self, fd: int | None = None, path: Path | None = None) -> None:
        self._fd, self._path = fd, path or Path()
        self._lines: dict[str, tuple[int, int]] = {}  # key: offset and length, as values may be many
        self.notes: list[str] = []
        self.is_doubted = False

    def get(self, *key: Any) -> Any:
        """Return the value that an earlier run wrote, or None."""
        place = self._lines.get(_text(key))
        if place is None or self._fd is None:
            return None
        with writing(self._path):
            parsed = _parsed(descriptors.read_at(self._fd, place[1], place[0]))
        return None if parsed is None else parsed[1]

    def trusted(self, *key: Any) -> Any:
        """Return the same if the input is known to be what it was, else None: what depends on it is found again."""
        return None if self.is_doubted else self.get(*key)

    def put(self, *key: Any, value: Any) -> None:
        """Write a fact down."""
        if self._fd is None:
            return
        body = _text([list(key), value])
        line = f'{{"crc32":{zlib.crc32(body.encode())},"key":{_text(key)},"value":{_text(value)}}}\n'.encode()
        with writing(self._path):
            while line:
                line = line[os.write(self._fd, line) :]

    def forget(self) -> None:
        """Leave an earlier run's facts out of account."""
        self._lines.clear()

    def read(self) -> None:
        """Find the lines of an earlier run."""
        assert self._fd is not None
        offset, damaged, torn = 0, 0, False
        with writing(self._path):
            for line in _lines(self._fd):
                parsed = _parsed(line)
                if parsed is not None:
                    self._lines[_text(parsed[0])] = (offset, len(line))
                damaged += parsed is None
                offset += len(line)
                torn = not line.endswith(b"\n")
            if torn:  # what comes next must begin a line of its own
                os.write(self._fd, b"\n")
        if damaged:
            self.notes.append(f"{damaged} damaged lines of {self._path.name} were ignored")


def _lines(fd: int) -> Iterator[bytes]:
    rest, offset = b"", 0
    while piece := descriptors.read_at(fd, _PIECE, offset):
        offset += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _parsed(line: bytes) -> tuple[list[Any], Any] | None:
    try:
        entry = json.loads(line)
        key, value, crc = entry["key"], entry["value"], entry["crc32"]
        return (key, value) if zlib.crc32(_text([key, value]).encode()) == crc else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _locked(path: Path, target: Path) -> int:
    """Open a journal and hold it alone."""
    while True:
        fd = descriptors.open_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, follow=False)
        try:
            descriptors.lock_alone(fd)
        except BlockingIOError:
            os.close(fd)
            raise OutputError(
                None,
                f"cannot write {target}: another conversion is writing it; wait, or give another name",
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False)):
                return fd
        os.close(fd)  # the one who held it before has just finished and removed it


def _changes(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two JSON objects, in words."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*old, *(name for name in new if name not in old)]
        return [c for name in names for c in _changes(old.get(name), new.get(name), f"{where} {name}".strip())]
    return [] if old == new else [f"{where} (was {_shown(old)}, is {_shown(new)})"]


def _shown(value: Any) -> str:
    text = "absent" if value is None else _text(value)
    return text if len(text) <= 60 else text[:60] + "..."


@contextlib.contextmanager
def resumable(
    path: Path,
    begin: Mapping[str, Any],
    *,
    resume: bool,
    check: Callable[[Path], object],
    heads: Sequence[bytes],
    place: Any = None,
    into: Path | None = None,
) -> Iterator[tuple[AtomicFile, Journal]]:
    """Open the partial file of an output and its journal; move the file into place when the block ends well.

    What the block raises keeps both, unless it says that the input is bad: then a later run could not go on
    either, and both are removed.

    Parameters
    ----------
    path : Path
    begin : mapping
        JSON-able; everything that the bytes depend on, as far as it is known at once.
    place : Any
        JSON-able; where the input lies and when it was written. If that alone differs from what an earlier run
        wrote down, its journal is doubted.
    resume : bool
        Whether to continue what an earlier run left; without it, that is discarded.
    check : callable
        Called with the partial file's path before it takes its name.
    heads : sequence of bytes
        What an unfinished file may begin with. Whatever else stands at its place is somebody else's and stays there.
    into : Path, optional
        Where the file goes, `path` unless given; on the same file system.

    Raises
    ------
    ValueError
        If what an earlier run left was begun otherwise, naming the differences.
    OutputError
        If a step of the writing fails, or another process writes the same output.
    """
    begin, place, into = json.loads(_text(begin)), json.loads(_text(place)), into or path
    with writing(path):
        require_regular(into)
        journal_at, partial_at = journal_path(path), partial_path(path)
        journal_fd = _locked(journal_at, path)
    remains = False  # a journal that is needed no more: Windows removes it only when it is closed
    try:
        journal = Journal(journal_fd, journal_at)
        _require_own(path, heads)
        _open_journal(journal, journal_fd, path, begin, place, resume)
        with writing(path):
            fd = descriptors.open_descriptor(partial_at, os.O_RDWR | os.O_CREAT, follow=False)
            keep_mode(fd, into)
            second_fd = os.dup(fd)
        try:
            try:
                try:
                    yield AtomicFile(fd, path), journal
                    with writing(path):
                        os.fsync(fd)
                finally:
                    with writing(path):
                        os.close(fd)
                with writing(path):
                    check(partial_at)
                    require_same(second_fd, partial_at, path)
            finally:
                os.close(second_fd)  # Windows neither renames nor removes a file that is open
            with writing(path):
                partial_at.replace(into)
            remains = not _removed(journal_at)
        except BaseException as error:
            if isinstance(error, HhtldError | ValueError | TypeError) and not isinstance(error, OutputError):
                with contextlib.suppress(OSError):
                    partial_at.unlink()
                    remains = not _removed(journal_at)
            elif partial_at.exists():
                error.add_note(
                    f"what is finished stays beside {path}; the same conversion with resume=True (--resume) continues"
                )
            raise
    finally:
        os.close(journal_fd)
        if remains:
            _removed(journal_at)
    for folder in {into.parent, path.parent}:
        sync_folder(folder)


def _removed(path: Path) -> bool:
    """Remove a file, and return whether it is gone; what was worked for has its name, so it is no failure if not."""
    try:
        path.unlink()
    except OSError:
        return not path.exists()
    return True


def _require_own(path: Path, heads: Sequence[bytes]) -> None:
    """Raise if the partial file is none of ours: it would be written over, or removed."""
    partial_at = partial_path(path)
    with writing(path):
        if not os.path.lexists(partial_at):
            return
        require_regular(partial_at)
        fd = descriptors.open_descriptor(partial_at, os.O_RDONLY, follow=False)
        try:
            beginning = descriptors.read_at(fd, max(map(len, heads)), 0)
        finally:
            os.close(fd)
    # A write that failed leaves zeros where its bytes should be.
    if not any(all(byte in (0, wanted) for byte, wanted in zip(beginning, head, strict=False)) for head in heads):
        raise OutputError(
            f"cannot write {path}: {partial_at.name} beside it is not an unfinished file of hhtld; move or delete it"
        )


def _open_journal(journal: Journal, fd: int, path: Path, begin: Mapping[str, Any], place: Any, resume: bool) -> None:
    with writing(path):
        head = descriptors.read_at(fd, 9, 0)
        if head and head != b'{"crc32":':
            raise OutputError(
                None,
                f"cannot write {path}: {journal_path(path)} is not a journal of hhtld; move or delete it",
            )
    if resume and head:
        journal.read()
        recorded = journal.get(*_BEGIN)
        if recorded is not None:
            changes = _changes(recorded.get("begin", recorded), begin)
            if changes:
                raise ValueError(
                    f"cannot resume {path}: it was begun with another {'; another '.join(changes[:3])}; "
                    f"to start over, convert without resume (--resume)"
                )
            if partial_path(path).exists():
                journal.is_doubted = recorded["place"] != place
                if journal.is_doubted:
                    journal.notes.append("the source was touched or moved since; what was done was compared with it")
                return
            journal.notes.append(f"the partial file of {path.name} was gone; everything was done again")
        else:
            journal.notes.append(f"{journal_path(path).name} did not say what was begun; everything was done again")
    elif resume:
        journal.notes.append(f"nothing was left of an earlier conversion to {path.name}; it was begun anew")
    elif head:
        journal.notes.append(
            f"an unfinished conversion to {path.name} was discarded; resume=True (--resume) would have continued it"
        )
    with writing(path):
        os.ftruncate(fd, 0)
        partial_path(path).unlink(missing_ok=True)
    journal.forget()
    journal.put(*_BEGIN, value={"begin": begin, "place": place})
