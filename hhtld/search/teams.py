"""The threads that share products of layers: one team for each number of threads, for as long as the process lives."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from hhtld._kernels._team import Team
from hhtld.storage.thread_pool import n_processors

__all__ = ["Team", "team_of"]

_MOST_THREADS = 1024
_teams: dict[int, Team] = {}


def team_of(n_threads: int) -> Team | None:
    """Return the team of so many threads, the caller's among them, but of no more than processors; None at the end."""
    team = _teams.get(n_threads)
    if team is None and not sys.is_finalizing():  # then no thread begins, and who begins one waits for ever
        n_helpers = min(n_threads, n_processors(), _MOST_THREADS) - 1
        made = Team(n_helpers)
        team = _teams.setdefault(n_threads, made)  # another thread may be here, too
        for number in range(n_helpers if team is made else 0):
            thread = threading.Thread(target=team.serve, args=(number,), name="hhtld", daemon=True)
            with contextlib.suppress(RuntimeError):  # a system that has no thread left: the others do its work
                thread.start()
    return team


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_teams.clear)  # a child has none of these threads
