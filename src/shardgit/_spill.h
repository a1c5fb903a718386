/* The large arrays of an ingest: from SG_SPILL_BYTES on they lie in a file that has no name, where the caller gave one,
 * so that the kernel writes out what memory has no room for. Without a file, or where the disk has no room for them,
 * they are anonymous memory as the small ones are. Who frees or grows an array tells the size that it was made with. */
#ifndef SHARDGIT_SPILL_H
#define SHARDGIT_SPILL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SG_SPILL_BYTES ((size_t)4 << 20)
#define SG_SPILL_SPARE ((uint64_t)1 << 30) /* bytes of the disk that are left to who stores what is to stay */

typedef struct {
    int file;     /* -1: none */
    uint64_t end; /* of what is taken of it; threads take at the same time */
    size_t least; /* bytes of an array that goes there */
} sg_spill;

static inline size_t sg_spill_pages(size_t bytes) {
    const size_t page = 4096;
    return (bytes + page - 1) & ~(page - 1);
}

/* Reserve bytes of the file now: a page that a full disk has no room for would kill the process later. Returns whether
 * they are there; what was got of them is given back otherwise. */
static inline int sg_spill_reserve(sg_spill *s, uint64_t start, size_t bytes) {
    struct statvfs disk;
    if (fstatvfs(s->file, &disk) != 0 || (uint64_t)disk.f_bavail * disk.f_frsize < SG_SPILL_SPARE + bytes) return 0;
    if (posix_fallocate(s->file, (off_t)start, (off_t)bytes) == 0) return 1;
    (void)fallocate(s->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start, (off_t)bytes);
    return 0;
}

/* Return memory for an array, NULL without. */
static inline void *sg_spill_new(sg_spill *s, size_t bytes) {
    const size_t all = sg_spill_pages(bytes);
    void *at;
    if (bytes < s->least) return malloc(bytes ? bytes : 1);
    if (s->file >= 0) {
        const uint64_t start = __atomic_fetch_add(&s->end, all, __ATOMIC_RELAXED);
        if (sg_spill_reserve(s, start, all)) {
            at = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_SHARED, s->file, (off_t)start);
            if (at != MAP_FAILED) return at;
            (void)fallocate(s->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start, (off_t)all);
        }
    }
    at = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static inline void sg_spill_free(sg_spill *s, void *at, size_t bytes) {
    if (at == NULL) return;
    if (bytes < s->least) {
        free(at);
        return;
    }
    (void)madvise(at, sg_spill_pages(bytes), MADV_REMOVE); /* nobody needs it on the disk; no hole, no harm */
    munmap(at, sg_spill_pages(bytes));
}

/* Return memory of `bytes` that begins with the `used` bytes of an array; NULL without, and the array stays. */
static inline void *sg_spill_grow(sg_spill *s, void *at, size_t before, size_t used, size_t bytes) {
    void *made;
    if (at != NULL && before < s->least && bytes < s->least) return realloc(at, bytes ? bytes : 1);
    made = sg_spill_new(s, bytes);
    if (made == NULL || at == NULL) return made;
    memcpy(made, at, used);
    sg_spill_free(s, at, before);
    return made;
}

#endif
