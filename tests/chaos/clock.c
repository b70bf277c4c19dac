/* A wall clock of one's own: loaded before the system's library, it adds the seconds that a file says to the true time.
   The file, which CHAOS_CLOCK names, is mapped, so that a step takes effect at once. What counts seconds evenly
   (CLOCK_MONOTONIC) stays as it is; deadlines by the wall clock are the system's, which has the true time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t none = 0;
static volatile const int64_t *seconds = &none;
static int (*true_gettime)(clockid_t, struct timespec *);
static int (*true_timedwait)(sem_t *, const struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    true_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    true_timedwait = dlsym(RTLD_NEXT, "sem_timedwait");
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof *seconds, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED)
        seconds = map;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!true_gettime)
        true_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int result = true_gettime(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *seconds;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *now)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    struct timespec truly = *until;
    truly.tv_sec -= *seconds;
    return true_timedwait(semaphore, &truly);
}
