"""C declarations of what hashes many objects side by side, and looks for collision attacks meanwhile."""

from libc.stdint cimport uint8_t

from shardgit._kernel cimport sg_hash


cdef extern from "_detect.h" nogil:
    ctypedef struct sg_detector:
        const uint8_t *at[32]
        int waiting
        void (*look)(const sg_detector *d, uint8_t masks[4][32]) noexcept nogil
        const void *attacks[64]
        int n_attacks

    void sg_detect_begin(sg_detector *d, int plain)
    void sg_detect_flush(sg_detector *d)


cdef extern from "_sha1.h" nogil:
    ctypedef struct sg_sha1:
        int lanes
        sg_detector *detector

    int sg_sha1_lanes(int wanted, int detecting)
    void sg_sha1_begin(sg_sha1 *s, int lanes, sg_detector *detector)
    void sg_sha1_add(sg_sha1 *s, int type, const uint8_t *data, size_t size, uint8_t *oid, uint8_t *owned, size_t room)
    void sg_sha1_now(sg_sha1 *s, int type, const uint8_t *data, size_t size, uint8_t *oid)
    int sg_sha1_leave(sg_sha1 *s, uint8_t *data, size_t room)
    uint8_t *sg_sha1_spare(sg_sha1 *s, size_t *room)
    void sg_sha1_flush(sg_sha1 *s)

    ctypedef struct sg_watched:
        sg_hash hash

    void sg_watched_begin(sg_watched *one, sg_detector *detector, const void *message)
    void sg_watched_end(sg_watched *one, uint8_t *out)
