/* Preloaded: fsync and fdatasync stand still at the count that arm() was told, until release() or the process' death. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <unistd.h>

static atomic_long left = -1; /* syncs before the one that stands still; -1: none does */
static atomic_int behind;     /* whether it stands still when the disk has everything already */
static atomic_int standing, released;

void stall_arm(long count, int after) {
    atomic_store(&behind, after);
    atomic_store(&left, count);
}

int stall_standing(void) { return atomic_load(&standing); }

void stall_release(void) { atomic_store(&released, 1); }

static void stand(void) {
    atomic_store(&standing, 1);
    while (!atomic_load(&released)) usleep(2000);
    atomic_store(&standing, 0);
}

static int sync_with(int (*next)(int), int fd) {
    int here = atomic_load(&left) >= 0 && atomic_fetch_sub(&left, 1) == 0;
    if (here && !atomic_load(&behind)) stand();
    int done = next(fd);
    if (here && atomic_load(&behind)) stand();
    return done;
}

int fsync(int fd) { return sync_with((int (*)(int))dlsym(RTLD_NEXT, "fsync"), fd); }

int fdatasync(int fd) { return sync_with((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"), fd); }
