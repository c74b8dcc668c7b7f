/* Threads that share the pieces of one job after another, without Python.
 *
 * A job is a function that is called once for every piece, by whoever is free. The caller works too, and waits only for
 * pieces that others have begun: it waits for no thread that wakes late, or never. A helper that finds nothing to do
 * looks again for a while, since layers of a model follow one another in microseconds, and then sleeps until a caller
 * wakes it, which costs the caller some microseconds.
 *
 * One caller at a time has the team; another one that comes meanwhile does its pieces alone.
 *
 * `turn` is odd while a job is open. A helper counts itself in before it looks whether the job that it saw is still open,
 * and the caller closes the job before it looks whether anybody is in: one of the two sees the other.
 */
#ifndef HHTLD_TEAM_H
#define HHTLD_TEAM_H

#include <Python.h>
#include <stddef.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <sched.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
static long hh_load(volatile long *at) { return _InterlockedOr(at, 0); }
static long hh_add(volatile long *at, long more) { return _InterlockedExchangeAdd(at, more); }
static long hh_swap(volatile long *at, long value) { return _InterlockedExchange(at, value); }
#else
static long hh_load(volatile long *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
static long hh_add(volatile long *at, long more) { return __atomic_fetch_add(at, more, __ATOMIC_SEQ_CST); }
static long hh_swap(volatile long *at, long value) { return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST); }
#endif

/* Tell the processor that this is a loop which waits. */
static void hh_pause(void) {
#if defined(_MSC_VER) && !defined(__clang__)
    YieldProcessor();
#elif defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Let another thread have the processor. */
static void hh_yield(void) {
#ifdef _WIN32
    SwitchToThread();
#else
    sched_yield();
#endif
}

enum { HH_TEAM_LOOKS = 10000, HH_TEAM_HELPERS = 1023 };

typedef void (*hh_team_task)(void *job, ptrdiff_t worker, ptrdiff_t piece);

typedef struct {
    PyThread_type_lock lock; /* held, but for the moment in which a caller wakes the helper */
    volatile long asleep;
    char apart[48]; /* the helpers' own lines of the cache */
} hh_team_helper;

typedef struct {
    hh_team_task task;
    void *job;
    long n_pieces;
    volatile long busy, turn, next, inside, stopped;
    ptrdiff_t n_helpers;
    hh_team_helper *helpers;
} hh_team;

/* Do pieces until none is left. */
static void hh_team_work(hh_team *team, ptrdiff_t worker) {
    for (long piece; (piece = hh_add(&team->next, 1)) < team->n_pieces;) team->task(team->job, worker, piece);
}

static int hh_team_calls(hh_team *team, long seen, long *turn) {
    *turn = hh_load(&team->turn);
    return ((*turn & 1) && *turn != seen) || hh_load(&team->stopped);
}

/* Wait for a job after the one of turn `seen`; 0 if the team is stopped. */
static long hh_team_wait(hh_team *team, hh_team_helper *helper, long seen) {
    long turn;
    for (;;) {
        for (int look = 0; look < HH_TEAM_LOOKS; look++) {
            if (hh_team_calls(team, seen, &turn)) return hh_load(&team->stopped) ? 0 : turn;
            hh_pause();
        }
        hh_swap(&helper->asleep, 1);
        /* Whoever takes the 1 away decides: a caller then releases the lock, and the helper must take it again. */
        if (!hh_team_calls(team, seen, &turn) || !hh_swap(&helper->asleep, 0)) PyThread_acquire_lock(helper->lock, 1);
    }
}

/* Be the helper of this number until the team is stopped. */
static void hh_team_serve(hh_team *team, ptrdiff_t number) {
    for (long seen = 0; (seen = hh_team_wait(team, &team->helpers[number], seen));) {
        hh_add(&team->inside, 1);
        if (hh_load(&team->turn) == seen) hh_team_work(team, number + 1);
        hh_add(&team->inside, -1);
    }
}

/* Wake those of the first `most` helpers that sleep. */
static void hh_team_wake(hh_team *team, ptrdiff_t most) {
    for (ptrdiff_t n = 0; n < most && n < team->n_helpers; n++)
        if (hh_swap(&team->helpers[n].asleep, 0)) PyThread_release_lock(team->helpers[n].lock);
}

/* Have all pieces of a job done; without a team, or if it is busy, alone. Worker 0 is the caller. */
static void hh_team_run(hh_team *team, hh_team_task task, void *job, ptrdiff_t n_pieces) {
    if (!team || n_pieces < 2 || n_pieces > 1 << 30 || hh_swap(&team->busy, 1)) {
        for (ptrdiff_t piece = 0; piece < n_pieces; piece++) task(job, 0, piece);
        return;
    }
    team->task = task, team->job = job, team->n_pieces = (long)n_pieces;
    hh_swap(&team->next, 0);
    hh_add(&team->turn, 1);
    hh_team_wake(team, n_pieces - 1);
    hh_team_work(team, 0);
    hh_add(&team->turn, 1);
    for (int look = 1; hh_load(&team->inside); look++) {
        if (look % 1024) hh_pause();
        else hh_yield();
    }
    hh_swap(&team->busy, 0);
}

#endif
