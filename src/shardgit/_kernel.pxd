"""C declarations of _kernel.h for the kernels."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "_kernel.h" nogil:
    ctypedef enum sg_status:
        SG_OK
        SG_TRUNCATED
        SG_DEFLATE
        SG_SIZE
        SG_TYPE
        SG_VARINT
        SG_RANGE
        SG_DELTA
        SG_BASE_SIZE
        SG_MEMORY
        SG_LIMIT
        SG_OBJECT
        SG_EXTERNAL
        SG_CHECKSUM
        SG_DEPTH
        SG_ATTACK

    const int SG_OFS_DELTA
    const int SG_REF_DELTA

    uint16_t sg_u16(const uint8_t *p)
    uint32_t sg_u32(const uint8_t *p)
    uint64_t sg_u64(const uint8_t *p)
    uint32_t sg_u32be(const uint8_t *p)
    uint64_t sg_u64be(const uint8_t *p)
    void sg_put_u16(uint8_t *p, uint16_t v)
    void sg_put_u32(uint8_t *p, uint32_t v)
    void sg_put_u64(uint8_t *p, uint64_t v)

    ctypedef struct sg_hash:
        int kind

    size_t sg_hash_size(int kind)
    void sg_hash_init(sg_hash *h, int kind)
    void sg_hash_update(sg_hash *h, const void *data, size_t n)
    void sg_hash_final(sg_hash *h, uint8_t *out)
    size_t sg_object_header(int type, uint64_t size, uint8_t *out)
    void sg_object_id(int kind, int type, const uint8_t *data, size_t n, uint8_t *out)

    ctypedef struct sg_inflater:
        pass

    sg_inflater *sg_inflater_new()
    void sg_inflater_free(sg_inflater *f)
    sg_status sg_inflate(sg_inflater *f, const uint8_t *in_, size_t left, uint8_t *out, size_t size,
                         size_t *consumed)
    sg_status sg_inflate_stream(sg_inflater *f, const uint8_t *in_, size_t left, uint64_t size, uint8_t *out,
                                uint8_t *window, size_t window_size, sg_hash *hash, size_t *consumed)

    size_t sg_deflate_bound(size_t n)
    size_t sg_deflate(int level, const uint8_t *in_, size_t n, uint8_t *out, size_t room)

    ctypedef struct sg_deflater:
        int level

    sg_deflater *sg_deflater_new(int level)
    void sg_deflater_free(sg_deflater *d)
    size_t sg_deflater_run(sg_deflater *d, const uint8_t *in_, size_t n, uint8_t *out, size_t room)
    const char *sg_inflate_name()
    const char *sg_openssl_name()
    const char *sg_zlib_name()
    uint32_t sg_crc32(uint32_t crc, const uint8_t *data, size_t n)

    sg_status sg_entry_header(const uint8_t *p, size_t left, int *type, uint64_t *size, size_t *at)
    sg_status sg_ofs_distance(const uint8_t *p, size_t left, uint64_t *distance, size_t *at)
    size_t sg_put_entry_header(uint8_t *out, int type, uint64_t size)
    size_t sg_put_ofs_distance(uint8_t *out, uint64_t distance)

    ctypedef struct sg_copy:
        uint32_t to
        uint32_t from_ "from"
        uint32_t length

    sg_status sg_delta_sizes(const uint8_t *delta, size_t n, uint64_t *base, uint64_t *result, size_t *at)
    sg_status sg_delta_apply(const uint8_t *base, size_t base_size, const uint8_t *delta, size_t n,
                             uint8_t *result, size_t result_size, sg_copy *copies, size_t copies_room,
                             size_t *n_copies)
    uint64_t sg_inflate_most(uint64_t n)
    uint64_t sg_fetch_add(uint64_t *p, uint64_t n)
    uint64_t sg_load(const uint64_t *p)
    int sg_swap(uint64_t *p, uint64_t from_, uint64_t to)
    int sg_claim(uint8_t *p)
