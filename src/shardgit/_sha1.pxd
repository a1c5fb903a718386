"""C declarations of what hashes many objects side by side."""

from libc.stdint cimport uint8_t


cdef extern from "_sha1.h" nogil:
    ctypedef struct sg_sha1:
        int lanes

    int sg_sha1_lanes(int wanted)
    void sg_sha1_begin(sg_sha1 *s, int lanes)
    void sg_sha1_add(sg_sha1 *s, int type, const uint8_t *data, size_t size, uint8_t *oid, uint8_t *owned, size_t room)
    int sg_sha1_leave(sg_sha1 *s, uint8_t *data, size_t room)
    uint8_t *sg_sha1_spare(sg_sha1 *s, size_t *room)
    void sg_sha1_flush(sg_sha1 *s)
