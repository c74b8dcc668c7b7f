"""Files and folders behind a URL, read by ranges through fsspec (extra `fsspec`).

A file is asked for its size and for the ranges that are needed, never for the whole. A web server may send more than
that, or compressed, or a byte now and then; `_bounded_client` takes no more than was asked for, as it is, in bounded
time. After every range the
size and whatever the store tells of the content (ETag, time, checksum) are compared with what they were when the
file was opened: rows of two files must not end up in one. On a hub, the commit is looked up once and read from.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from hhtld.errors import FormatError, HeaderError, MissingExtraError, TruncatedError
from hhtld.storage.file_reading import URL, PositionalFile

__all__ = ["RemoteFile", "Url"]

_WEB = ("http", "https")
_HUB = "hf"
_HUB_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
REQUEST_NBYTES = 32 << 20  # of one range at most, which is in memory twice for a moment
_ANSWER_SECONDS = 30  # until a web server says something
_SLOWEST = 64 << 10  # bytes a second
_PAGE_NBYTES = 1 << 20  # of an answer to a question that names no range: of an error, say
GAP_NBYTES = 256 << 10  # about what a store sends in the time that a second request takes
# What stores tell of a file's content, by their own names; its address may be signed anew each time.
_IDENTITY = (
    *("ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "last_modified", "md5Hash"),
    *("content_md5", "generation", "version_id", "VersionId", "blob_id", "xet_hash", "mtime", "modified", "created"),
)
_one_at_a_time = threading.Lock()  # file systems that are not asynchronous share positions and connections


class Url:
    """A place that fsspec reads, with those members of `pathlib.Path` that reading needs.

    Parameters
    ----------
    text : str
        ``memory://model``, ``s3://bucket/model.safetensors``, ``hf://org/name``, ``zip://inner::s3://bucket/x.zip``.

    Raises
    ------
    MissingExtraError
        If fsspec, or the package it reads this protocol with, is not installed.
    ValueError
        For a protocol that fsspec does not know.

    Notes
    -----
    As text, passwords and everything after a question mark are left out: both open doors.
    """

    def __init__(self, text: str) -> None:
        parts = URL.fullmatch(text)
        if parts is None:
            raise ValueError(f"{text!r} is not a URL")
        self._head, self.protocol, body, self._tail = parts[1], parts[2].lower(), parts[3], parts[4]
        if self.protocol in _WEB:
            body, mark, query = body.partition("?")
            self._tail = mark + query + self._tail
        self._body = body
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError(
                f"{self}: reading URLs needs the package fsspec: pip install 'hhtld[fsspec]'"
            ) from error
        try:
            self._store, self._path = fsspec.core.url_to_fs(text, **_web_options(text))
        except ImportError as error:
            raise MissingExtraError(f"{self}: {error}; fsspec itself comes with pip install 'hhtld[fsspec]'") from error
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from error
        except Exception as error:  # whatever the package behind a protocol makes of a URL
            raise OSError(f"{self}: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        door, at, rest = self._body.rpartition("@")
        hidden = at and ":" in door and "/" not in door
        body = f"{door.partition(':')[0]}:***@{rest}" if hidden else self._body
        return self._head + body + re.sub(r"\A\?.*?(?=::|\Z)", "?...", self._tail, flags=re.DOTALL)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._body.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on, or ""."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Url:
        """The folder it lies in."""
        return Url(self._head + self._body.rstrip("/").rpartition("/")[0] + self._tail)

    def __reduce__(self) -> tuple[type[Url], tuple[str]]:
        return Url, (self._head + self._body + self._tail,)  # so that another process asks for itself

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash(self.__reduce__())

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self._head}{self._body.rstrip('/')}/{name}{self._tail}")

    def exists(self) -> bool:
        """Whether there is something; asked once."""
        return self._kind is not None

    def is_dir(self) -> bool:
        """Whether it is a folder; on the web nothing is."""
        return self._kind == "directory"

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self._kind == "file"

    def iterdir(self) -> Iterator[Url]:
        """Yield what lies in a folder."""
        with self._asking():
            listed = self._store.ls(self._path, detail=True)
        for facts in listed:
            entry = self / facts["name"].rstrip("/").rpartition("/")[2]
            # So that they need not be asked again.
            entry._kind, entry.nbytes = str(facts["type"]), facts.get("size") or 0
            yield entry

    @cached_property
    def nbytes(self) -> int:
        """Bytes of a file; 0 if the store does not tell."""
        return self.facts().get("size") or 0

    def open(self) -> RemoteFile:
        """Open a file; raises FileNotFoundError if there is none."""
        return RemoteFile(self)

    @cached_property
    def _kind(self) -> str | None:
        try:
            return str(self.facts()["type"])
        except FileNotFoundError:
            return None

    def facts(self) -> dict[str, Any]:
        """Return what the store tells of it now: size, type, and more under the store's own names."""
        with self._asking():
            if not self.is_fixed:
                self._store.invalidate_cache(self._path)  # some remember what they told before
            return dict(self._store.info(self._path))

    def identity(self) -> tuple[Any, ...]:
        """Return its size, and as text whatever the store tells of its content."""
        return _identity(self.facts())

    def part(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop), or fewer if the store has fewer."""
        with self._asking():
            return bytes(self._store.cat_file(self._path, start=start, end=stop, **self._unbuffered))

    def pinned(self) -> Url:
        """Return the same place at the commit that its revision names now, on a hub; elsewhere itself."""
        if self.protocol != _HUB or self.is_fixed:
            return self
        with self._asking():
            resolved = self._store.resolve_path(self._path)
            if not hasattr(resolved, "repo_id"):  # a bucket, which has no commits
                return self
            from huggingface_hub import HfApi

            api = HfApi(endpoint=self._store.endpoint, token=self._store.token)
            commit = api.repo_info(resolved.repo_id, repo_type=resolved.repo_type, revision=resolved.revision).sha
        path = f"/{resolved.path_in_repo}" if resolved.path_in_repo else ""
        return Url(f"{self._head}{_HUB_PREFIXES[resolved.repo_type]}{resolved.repo_id}@{commit}{path}{self._tail}")

    @property
    def is_fixed(self) -> bool:
        """Whether what lies there can never change: it is named by a commit."""
        return self.protocol == _HUB and re.search(r"@[0-9a-f]{40}(?:/|\Z)", self._body) is not None

    @cached_property
    def _unbuffered(self) -> dict[str, str]:
        # Stores without ranges of their own open the file for each, and would read 5 MB ahead. Links of a chain keep
        # what they chose.
        from fsspec.spec import AbstractFileSystem

        opens = type(self._store).cat_file is AbstractFileSystem.cat_file and "::" not in self._head + self._tail
        opens = opens and not self._store.async_impl
        return {"cache_type": "none"} if opens else {}

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Let whatever a store raises come out as an OSError that names the URL."""
        try:
            at_once = self._store.async_impl or self.protocol == _HUB
            with contextlib.nullcontext() if at_once else _one_at_a_time:
                yield
        except MemoryError:
            raise
        except Exception as error:
            # On the web, fsspec says that a file is missing when there is no connection, too.
            cause = (error.__cause__ if self.protocol in _WEB else None) or error
            if isinstance(error, FileNotFoundError) and (cause is error or getattr(cause, "status", 0) == 404):
                raise FileNotFoundError(2, "no such file or folder", str(self)) from None
            message = str(cause).replace(self._body + self._tail, str(self).removeprefix(self._head))
            raise OSError(f"{self} cannot be read: {type(cause).__name__}: {message}") from error


class RemoteFile(PositionalFile):
    """A file behind a URL, as it was when it was opened."""

    gap = GAP_NBYTES

    def __init__(self, url: Url) -> None:
        facts = url.facts()
        if facts["type"] != "file":
            raise FormatError(f"{url}: this is not a file")
        if not isinstance(facts.get("size"), int):
            raise OSError(
                f"{url}: the server does not say how large the file is; download it first, then give its path"
            )
        if facts.get("partial") is False:
            raise OSError(f"{url}: the server gives the file only as a whole; download it first, then give its path")
        self._url = url
        self.identity = _identity(facts)
        self.size = facts["size"]
        self.closed = False

    def fill(self, buffer: memoryview, offset: int) -> None:
        for start in range(0, len(buffer), REQUEST_NBYTES):
            piece = buffer[start : start + REQUEST_NBYTES]
            begin = offset + start
            try:
                data = self._url.part(begin, begin + len(piece))
            except FileNotFoundError:
                raise HeaderError(f"{self._url}: the file was removed while it was open") from None
            if len(data) != len(piece):
                self._check_unchanged()
                more = len(data) > len(piece)  # as much as was read of it: the store may send without end
                raise TruncatedError(
                    f"{self._url}: gave {len(data)} bytes {'or more ' if more else ''}from byte {begin}, "
                    f"expected {len(piece)}"
                    + ("; the server does not give ranges of it; download it first, then give its path" if more else "")
                )
            piece[:] = data
        if len(buffer):
            self._check_unchanged()

    def close(self) -> None:
        self.closed = True

    def _check_unchanged(self) -> None:
        if self._url.is_fixed:
            return
        try:
            facts = self._url.facts()
        except FileNotFoundError:
            raise HeaderError(f"{self._url}: the file was removed while it was open") from None
        if _identity(facts) != self.identity:
            sizes = f", from {self.size} to {facts['size']} bytes" if facts.get("size") != self.size else ""
            raise HeaderError(f"{self._url}: the file was replaced while it was open{sizes}")


def _web_options(text: str) -> dict[str, Any]:
    """What fsspec is to know of the web links of a chain."""
    links = {part.partition("://")[0].lower() for part in text.split("::")}
    return {link: {"get_client": _bounded_client} for link in links.intersection(_WEB)}


async def _bounded_client(**settings: Any) -> Any:
    """Return an aiohttp session for fsspec whose answers are no longer than what was asked for."""
    import aiohttp

    class BoundedResponse(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            if self._body is None:
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
                most = int(asked[2]) - int(asked[1]) + 1 if asked and self.status < 400 else _PAGE_NBYTES
                encoding = self.headers.get("Content-Encoding", "identity")
                if encoding != "identity":
                    self.close()
                    raise OSError(
                        f"the server sends the file encoded ({encoding[:20]!r}), which the request did not ask for"
                    )
                self._body = await self._at_most(most)
            return self._body

        async def _at_most(self, nbytes: int) -> bytes:
            """Return what comes, cut one byte after what was asked for."""
            received = bytearray()
            try:
                async with asyncio.timeout(_ANSWER_SECONDS + nbytes / _SLOWEST):
                    async for part in self.content.iter_any():
                        received += part
                        if len(received) > nbytes:
                            break
            except TimeoutError:
                raise OSError(f"the server sent {len(received)} of {nbytes} bytes in the time it had") from None
            finally:
                if not self.content.is_eof():
                    self.close()
            return bytes(received[: nbytes + 1])

    settings["headers"] = {**settings.get("headers", {}), "Accept-Encoding": "identity"}
    settings.setdefault("timeout", aiohttp.ClientTimeout(total=600, sock_connect=30, sock_read=_ANSWER_SECONDS))
    return aiohttp.ClientSession(response_class=BoundedResponse, auto_decompress=False, **settings)


def _identity(facts: dict[str, Any]) -> tuple[Any, ...]:
    return (facts.get("size"), *(str(facts.get(key)) for key in _IDENTITY))
