"""Who works on a conversion: threads, dask's workers or an executor, and the source as workers open it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from hhtld.encoding.fingerprint import content_digest, source_facts
from hhtld.errors import HeaderError, HhtldError
from hhtld.formats import open_source
from hhtld.sources.contract import TensorSource
from hhtld.sources.crew import Crew, workers
from hhtld.sources.reopened import CarryingExecutor
from hhtld.storage.file_reading import Location

__all__ = ["check_unchanged", "crew", "open_in_worker"]


@contextmanager
def crew(executor: str | Executor | None, jobs: int) -> Iterator[Crew]:
    """Give a crew: threads, dask's workers, or an executor that is given."""
    if isinstance(executor, str) and executor.startswith("dask:"):
        from hhtld.integrations.dask import dask_crew

        with dask_crew(executor.removeprefix("dask:"), jobs) as dask_workers:
            yield dask_workers
    elif executor is None or executor == "threads":
        with workers(jobs) as threads:
            yield Crew(threads, jobs)
    elif isinstance(executor, str):
        raise ValueError(f"no executor {executor!r}; available: threads, dask:local, dask:ADDRESS")
    elif not callable(getattr(executor, "submit", None)):
        raise TypeError(f"an executor is a name or has submit(), got {type(executor).__name__}")
    else:
        yield Crew(executor if isinstance(executor, ThreadPoolExecutor) else CarryingExecutor(executor), jobs)


def open_in_worker(path: Location, content: str, facts: str) -> TensorSource:
    """Open a source in a worker; the facts are the client's, so that what has been replaced is opened again."""
    try:
        source = open_source(path)
    except (HhtldError, OSError) as error:
        raise HhtldError(f"a worker cannot open {path}: {error}; workers need the source at the same path") from error
    if content_digest(source) != content:
        source.close()
        raise HhtldError(f"a worker finds another model at {path} than this process; workers need the same files")
    return source


def check_unchanged(source: TensorSource, place: Location, facts: dict[str, Any]) -> None:
    """Raise where workers, who open a source by its path, may have found another one there than this process."""
    if not place.exists() or source_facts(source, place) != facts:
        raise HeaderError(f"{place}: was written to or replaced while workers read it; convert it again")
