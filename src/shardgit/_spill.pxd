"""C declarations of arrays that go to a file when they are large."""

from libc.stdint cimport uint64_t


cdef extern from "_spill.h" nogil:
    ctypedef struct sg_spill:
        int file
        uint64_t end
        size_t least

    const size_t SG_SPILL_BYTES
    void *sg_spill_new(sg_spill *s, size_t bytes)
    void *sg_spill_grow(sg_spill *s, void *at, size_t before, size_t used, size_t bytes)
    void sg_spill_free(sg_spill *s, void *at, size_t bytes)
