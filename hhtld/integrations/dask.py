"""Conversions on dask's workers: processes of this machine, or a cluster.

Needs the extra ``dask``. Workers open the source by its path and read their own rows; what a group's tensors share is
sent once and kept by the scheduler, so that a worker which takes the place of a lost one gets it too; results are
written by the client. Tasks say nothing that depends on the worker, so one that is lost is simply done again.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from typing import Any

from hhtld.errors import HhtldError, MissingExtraError
from hhtld.sources.remote import Carried, call
from hhtld.sources.schedule import Crew

try:
    import dask
    import distributed
except ImportError as error:
    raise MissingExtraError("executor dask:... needs dask and distributed: pip install 'hhtld[dask]'") from error

__all__ = ["dask_crew"]

_TIMEOUT = "30s"  # to reach a scheduler
_CONFIG = {
    # A palette of wide rows is large for a task; it is sent once.
    "distributed.admin.large-graph-warning-threshold": "1GiB",
    # dask's own 64 KiB has glibc give back every block of rows: 34 bytes faulted in again for one that is coded, which
    # took half as long as coding. 32 MiB is the most that glibc takes for what it maps apart.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 64 << 20,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 << 20,
}


def _itself(value: Any) -> Any:
    return value


class _DaskExecutor(Executor):
    """`submit` of a client, as `concurrent.futures` has it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        # pure=False: equal calls are not the same call.
        self._executor = client.get_executor(pure=False, retries=2)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        shared = list(itertools.takewhile(lambda arg: isinstance(arg, distributed.Future), args))
        future: Future[Any] = self._executor.submit(call, fn, shared, Carried(args[len(shared) :]))
        return future

    def share(self, value: Any) -> Any:
        """Send a value ahead; what comes back stands for it as a first argument.

        A task that returns it, not `scatter`: what is scattered is lost with the workers that hold it.
        """
        return self._client.submit(_itself, Carried(value), pure=False)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let processes that begin here ignore Ctrl-C, as do the seconds that they take: the client ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def dask_crew(where: str, jobs: int) -> Iterator[Crew]:
    """Give dask's workers as a crew.

    Parameters
    ----------
    where : str
        "local" for worker processes of this machine, or a scheduler's address, "tcp://HOST:PORT".
    jobs : int
        Worker processes of "local", of one thread each; a cluster has its own.

    Raises
    ------
    HhtldError
        When no scheduler answers or workers are lost again and again.
    """
    local = where == "local"
    with dask.config.set(_CONFIG):
        if local:
            with _uninterrupted():
                cluster = distributed.LocalCluster(
                    n_workers=jobs, threads_per_worker=1, dashboard_address=":0", memory_limit=0, silence_logs=40
                )
        try:
            client = distributed.Client(cluster if local else where, timeout=_TIMEOUT, set_as_default=False)
        except OSError as error:
            raise HhtldError(f"no dask scheduler answers at {where}: {error}") from error
        try:
            if not local:
                client.wait_for_workers(1, timeout=_TIMEOUT)
                jobs = sum(client.nthreads().values())
            executor = _DaskExecutor(client)
            yield Crew(executor, jobs, remote=not local, share=executor.share)
        except (distributed.scheduler.KilledWorker, CancelledError) as error:
            raise HhtldError(f"dask's workers were lost: {error}") from error
        finally:
            client.close()
            if local:
                cluster.close()
