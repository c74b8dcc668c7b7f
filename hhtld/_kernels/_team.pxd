cdef extern from "team.h" nogil:
    enum: HH_TEAM_HELPERS
    ctypedef void (*hh_team_task)(void *job, Py_ssize_t worker, Py_ssize_t piece) noexcept nogil
    ctypedef struct hh_team_helper:
        void *lock
        long asleep
    ctypedef struct hh_team:
        long stopped
        Py_ssize_t n_helpers
        hh_team_helper *helpers
    long hh_swap(long *at, long value)
    void hh_team_serve(hh_team *team, Py_ssize_t number)
    void hh_team_wake(hh_team *team, Py_ssize_t most)
    void hh_team_run(hh_team *team, hh_team_task task, void *job, Py_ssize_t n_pieces)


cdef class Team:
    cdef hh_team team
    cdef hh_team_helper *_helpers
