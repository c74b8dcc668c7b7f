/* Many short reads of one open file, by position, in one call.
 *
 * Run i takes nbytes[i] bytes from offsets[i] on to out + places[i]. The file is a descriptor that the caller holds open
 * and that nothing moves the position of. A read may give less than it was asked for and is then continued. A call ends
 * at the first run that cannot be read whole: it returns the run's number, and in *error what the system says, or 0
 * where the file ends. It returns -1 when all runs are read.
 *
 * hh_pread_cached reads the runs that the system holds in memory and notes the others in `missed`; it returns how many
 * these are. It waits for no device, so a caller can send what is missed to threads that may wait. Where the system
 * cannot be asked, every run is missed.
 *
 * hh_pread_blocks reads whole blocks into `bounce`, aligned, as files ask for that are opened past the system's memory
 * (O_DIRECT). `bounce` is `room` bytes, whole blocks, two at least. Runs that begin at most `gap` bytes behind the blocks
 * of the one before are read with it, since a device answers one long question sooner than two short ones. What was read
 * only on the way may fail without harm: each run is then asked for alone.
 *
 * hh_file_is_same says whether an open file still has its size and the times of its last changes, in nanoseconds; 0 where
 * the system cannot be asked. Python's own fstat takes four times as long, and a look-up of one row asks twice.
 */
#ifndef HHTLD_PREAD_H
#define HHTLD_PREAD_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32

/* Windows has no reads by position on descriptors; Python's own are used there. */
static ptrdiff_t hh_pread_runs(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                               ptrdiff_t n_runs, uint8_t *out, int *error) {
    (void)fd, (void)offsets, (void)nbytes, (void)places, (void)out;
    *error = ENOSYS;
    return n_runs ? 0 : -1;
}

static ptrdiff_t hh_pread_cached(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                                 ptrdiff_t n_runs, uint8_t *out, int64_t *missed) {
    (void)fd, (void)offsets, (void)nbytes, (void)places, (void)out;
    for (ptrdiff_t i = 0; i < n_runs; i++) missed[i] = i;
    return n_runs;
}

static ptrdiff_t hh_pread_blocks(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                                 ptrdiff_t n_runs, int64_t block, int64_t gap, uint8_t *bounce, int64_t room,
                                 uint8_t *out, int *error) {
    (void)block, (void)gap, (void)bounce, (void)room;
    return hh_pread_runs(fd, offsets, nbytes, places, n_runs, out, error);
}

static int hh_file_is_same(int fd, int64_t nbytes, uint64_t modified_ns, uint64_t changed_ns) {
    (void)fd, (void)nbytes, (void)modified_ns, (void)changed_ns;
    return 0;
}

#else

#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Modulo 2**64: a date before 1677 or after 2262 has no place in 64 bits. */
static uint64_t hh_nanoseconds(struct timespec time) {
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int hh_file_is_same(int fd, int64_t nbytes, uint64_t modified_ns, uint64_t changed_ns) {
    struct stat now;
    if (fstat(fd, &now)) return 0;
#ifdef __APPLE__
    const struct timespec modified = now.st_mtimespec, changed = now.st_ctimespec;
#else
    const struct timespec modified = now.st_mtim, changed = now.st_ctim;
#endif
    return (int64_t)now.st_size == nbytes && hh_nanoseconds(modified) == modified_ns &&
           hh_nanoseconds(changed) == changed_ns;
}

static ptrdiff_t hh_pread_runs(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                               ptrdiff_t n_runs, uint8_t *out, int *error) {
    for (ptrdiff_t i = 0; i < n_runs; i++) {
        for (int64_t done = 0; done < nbytes[i];) {
            const ssize_t count =
                pread(fd, out + places[i] + done, (size_t)(nbytes[i] - done), (off_t)(offsets[i] + done));
            if (count > 0) {
                done += count;
            } else if (count == 0 || errno != EINTR) {
                *error = count ? errno : 0;
                return i;
            }
        }
    }
    return -1;
}

static ptrdiff_t hh_pread_cached(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                                 ptrdiff_t n_runs, uint8_t *out, int64_t *missed) {
    ptrdiff_t n_missed = 0;
#ifdef RWF_NOWAIT
    for (ptrdiff_t i = 0; i < n_runs; i++) {
        const struct iovec part = {out + places[i], (size_t)nbytes[i]};
        const ssize_t count = preadv2(fd, &part, 1, (off_t)offsets[i], RWF_NOWAIT);
        if (count != (ssize_t)nbytes[i]) missed[n_missed++] = i;
    }
#else
    (void)fd, (void)offsets, (void)nbytes, (void)places, (void)out;
    for (ptrdiff_t i = 0; i < n_runs; i++) missed[n_missed++] = i;
#endif
    return n_missed;
}

static ptrdiff_t hh_pread_blocks(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                                 ptrdiff_t n_runs, int64_t block, int64_t gap, uint8_t *bounce, int64_t room,
                                 uint8_t *out, int *error) {
    int64_t held_from = 0, held_to = 0; /* what of the file stands in bounce */
    for (ptrdiff_t i = 0; i < n_runs; i++) {
        for (int64_t done = 0; done < nbytes[i];) {
            const int64_t at = offsets[i] + done;
            if (at < held_from || at >= held_to) {
                const int64_t from = at / block * block;
                int64_t own = (offsets[i] + nbytes[i] + block - 1) / block * block, wanted;
                ssize_t count;
                if (own - from > room) own = from + room;
                wanted = own;
                for (ptrdiff_t j = i + 1; j < n_runs && offsets[j] - wanted <= gap; j++) {
                    const int64_t end = (offsets[j] + nbytes[j] + block - 1) / block * block;
                    if (end - from > room) break;
                    if (end > wanted) wanted = end;
                }
                held_from = held_to = from;
                for (;;) {
                    count = pread(fd, bounce, (size_t)(wanted - from), (off_t)from);
                    if (count >= 0 || (errno != EINTR && wanted == own)) break;
                    if (errno != EINTR) wanted = own; /* the fault may lie in what this run does not need */
                }
                if (count > 0) held_to = from + count;
                if (at >= held_to) { /* the last block of a file is short */
                    *error = count < 0 ? errno : 0;
                    return i;
                }
            }
            int64_t count = held_to - at;
            if (count > nbytes[i] - done) count = nbytes[i] - done;
            memcpy(out + places[i] + done, bounce + (at - held_from), (size_t)count);
            done += count;
        }
    }
    return -1;
}

#endif
#endif
