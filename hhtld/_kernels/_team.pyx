"""Door to team.h: threads that share the pieces of one job after another, without Python."""

from cpython.pythread cimport PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock
from libc.stdlib cimport calloc, free


cdef class Team:
    """What the threads of a team share; whoever makes it has every helper call `serve` in a thread of its own.

    Parameters
    ----------
    n_helpers : int
        Threads beside the caller's.
    """

    def __cinit__(self, Py_ssize_t n_helpers):
        cdef Py_ssize_t number
        if not 0 <= n_helpers <= HH_TEAM_HELPERS:
            raise ValueError(f"a team has 0..{HH_TEAM_HELPERS} helpers, got {n_helpers}")
        self._helpers = <hh_team_helper *> calloc(max(1, n_helpers), sizeof(hh_team_helper))
        if not self._helpers:
            raise MemoryError(f"cannot allocate a team of {n_helpers}")
        self.team.helpers = self._helpers
        for number in range(n_helpers):
            self._helpers[number].lock = PyThread_allocate_lock()
            if not self._helpers[number].lock:
                raise MemoryError("cannot allocate the lock of a thread")
            PyThread_acquire_lock(self._helpers[number].lock, 1)
            self.team.n_helpers = number + 1

    def __dealloc__(self):
        cdef Py_ssize_t number
        for number in range(self.team.n_helpers):
            PyThread_free_lock(self._helpers[number].lock)
        free(self._helpers)

    def serve(self, Py_ssize_t number):
        """Be the helper of this number, 0..n_helpers - 1, until the team is stopped."""
        if not 0 <= number < self.team.n_helpers:
            raise ValueError(f"helpers have the numbers 0..{self.team.n_helpers - 1}, got {number}")
        with nogil:
            hh_team_serve(&self.team, number)

    def stop(self):
        """Let the helpers return; jobs are then done by their callers alone."""
        hh_swap(&self.team.stopped, 1)
        hh_team_wake(&self.team, self.team.n_helpers)
