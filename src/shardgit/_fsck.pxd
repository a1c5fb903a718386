"""C declarations of _fsck.h for the kernels."""

from libc.stdint cimport uint8_t

cdef extern from "_fsck.h" nogil:
    const int SG_FSCK_COUNT
    const int SG_FSCK_TABLE
    const int SG_FSCK_NAME_MAX_AT
    const int SG_FSCK_NAME_MAX
    const int SG_FSCK_GITMODULES
    const int SG_FSCK_GITATTRIBUTES
    const int SG_FSCK_ERROR

    ctypedef void (*sg_fsck_sink)(void *ctx, int message, size_t offset) noexcept nogil
    ctypedef void (*sg_fsck_special)(void *ctx, int kind, const uint8_t *oid) noexcept nogil

    const char *sg_fsck_name(int message)
    int sg_fsck_default(int message)
    void sg_fsck_object(int hash_kind, int type, const uint8_t *data, size_t n, const uint8_t *severity,
                        sg_fsck_sink sink, sg_fsck_special special, void *ctx)
