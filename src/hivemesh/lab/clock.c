/* Preloaded into one process, it makes that process's wall clock wrong: by so many nanoseconds as stand, as a 64-bit
 * number, in the file CLOCK_STEP. The file is mapped, so whoever writes to it steps the clock at once.
 *
 * Only what asks the C library is misled; a program that asks the kernel by itself (Go's do) keeps the right time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *step;

__attribute__((constructor)) static void map_step(void)
{
    const char *path = getenv("CLOCK_STEP");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        step = mapped;
    close(file);
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, which, now);
    if (!failed && step && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        int64_t nanoseconds = now->tv_nsec + *step % 1000000000;
        now->tv_sec += *step / 1000000000;
        now->tv_sec += nanoseconds >= 1000000000 ? 1 : nanoseconds < 0 ? -1 : 0;
        now->tv_nsec = (nanoseconds + 1000000000) % 1000000000;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *result)
{
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    if (result)
        *result = exact.tv_sec;
    return exact.tv_sec;
}
