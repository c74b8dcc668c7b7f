"""The threads that share products of layers: one team for each number of threads, for as long as the process lives."""

from __future__ import annotations

import contextlib
import os
import threading

from hhtld._kernels._team import Team

__all__ = ["Team", "team_of"]

_MOST_THREADS = 1024
_teams: dict[int, Team] = {}


def team_of(n_threads: int) -> Team:
    """Return the team of so many threads, the caller's among them."""
    n_threads = min(n_threads, _MOST_THREADS)
    team = _teams.get(n_threads)
    if team is None:
        made = Team(n_threads - 1)
        team = _teams.setdefault(n_threads, made)  # another thread may be here, too
        if team is made:
            for number in range(n_threads - 1):
                thread = threading.Thread(target=team.serve, args=(number,), name="hhtld", daemon=True)
                with contextlib.suppress(RuntimeError):  # a system that has no thread left: the others do its work
                    thread.start()
    return team


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_teams.clear)  # a child has none of these threads
