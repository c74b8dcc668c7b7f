"""Conversions on dask's workers: processes of this machine, or a cluster.

The module needs the extra ``dask``. Workers open the source by its path and read their own rows. What a group's tensors
share is sent once and kept by the scheduler, so that a worker which takes the place of a lost one gets it too. The
client writes the results. No result depends on the worker, so a task that is lost is simply done again.
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
from hhtld.sources.crew import Crew
from hhtld.sources.reopened import Carried, call

try:
    import dask
    import distributed
except ImportError as error:
    raise MissingExtraError("executor dask:... needs dask and distributed: pip install 'hhtld[dask]'") from error

__all__ = ["dask_crew"]

_TIMEOUT = "30s"  # to reach a scheduler
_WITHOUT_PORT = ("inproc://", "ucx://")  # addresses of dask that have none, or another form of it
_CONFIG = {
    # A palette of wide rows is large for a task, but it is sent only once.
    "distributed.admin.large-graph-warning-threshold": "1GiB",
    # With dask's own 64 KiB, glibc gives every block of rows back to the system: for each byte that was coded, 34 were
    # faulted in again, which took half as long as the coding. glibc takes no more than 32 MiB for what it maps apart.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 64 << 20,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 << 20,
}


def _itself(value: Any) -> Any:
    return value


class _DaskExecutor(Executor):
    """A client of dask as an executor of `concurrent.futures`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        # pure=False: equal calls are not the same call.
        self._executor = client.get_executor(pure=False, retries=2)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        shared = list(itertools.takewhile(lambda arg: isinstance(arg, distributed.Future), args))
        future: Future[Any] = self._executor.submit(call, fn, shared, Carried(args[len(shared) :]))
        return future

    def share(self, value: Any) -> Any:
        """Send a value ahead, and return what stands for it as one of the first arguments of a task.

        A task returns the value; `scatter` would lose it with the workers that hold it.
        """
        return self._client.submit(_itself, Carried(value), pure=False)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let processes that begin here ignore Ctrl-C: the client ends them. It waits while they begin, too."""
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
        Worker processes for "local", each with one thread; a cluster has workers of its own.

    Raises
    ------
    ValueError
        If that is no address.
    HhtldError
        If no scheduler answers, or workers are lost again and again.
    """
    is_local = where == "local"
    if not is_local:
        _check_address(where)
    with dask.config.set(_CONFIG):
        cluster = _local_cluster(jobs) if is_local else None
        try:
            client = distributed.Client(where if cluster is None else cluster, timeout=_TIMEOUT, set_as_default=False)
        except OSError as error:
            raise HhtldError(f"no dask scheduler answers at {where}: {error}") from error
        try:
            if not is_local:
                client.wait_for_workers(1, timeout=_TIMEOUT)
                jobs = sum(client.nthreads().values())
            executor = _DaskExecutor(client)
            yield Crew(executor, jobs, remote=not is_local, share=executor.share)
        except (distributed.scheduler.KilledWorker, CancelledError) as error:
            raise HhtldError(f"dask's workers were lost: {error}") from error
        finally:
            client.close()
            if cluster is not None:
                cluster.close()


def _check_address(address: str) -> None:
    """Refuse what is no address: dask's client does so when it is half made, and then waits for ever to be closed."""
    if address.startswith(_WITHOUT_PORT):
        return
    try:
        distributed.comm.get_address_host_port(address)
    except ValueError as error:
        raise ValueError(
            f"an executor of dask is dask:local or dask:ADDRESS, as dask:tcp://HOST:8786; got {address!r}: {error}"
        ) from None


def _local_cluster(jobs: int) -> Any:
    with _uninterrupted():
        return distributed.LocalCluster(
            n_workers=jobs, threads_per_worker=1, dashboard_address=":0", memory_limit=0, silence_logs=40
        )
