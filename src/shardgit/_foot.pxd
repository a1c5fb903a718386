"""The footer of a segment, for the kernels that read one."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from shardgit._kernel cimport sg_u32, sg_u64

cdef enum:
    NONE = 0xFFFFFFFF
    BIG = 0x80000000
    HEADER = 64
    TRAILER = 48


ctypedef struct Foot:
    const uint8_t *data
    const uint8_t *ids
    const uint8_t *offsets
    const uint8_t *sizes
    const uint8_t *order
    const uint8_t *big
    const uint8_t *ext_at
    const uint8_t *ext_id
    const uint8_t *parts
    size_t length
    size_t h
    uint32_t end
    uint32_t n
    uint32_t n_big
    uint32_t n_ext
    uint32_t n_parts
    uint32_t offset_width  # bytes
    uint32_t size_width
    int type
    int flags


cdef inline bint foot_of(const uint8_t *data, size_t length, size_t h, Foot *f) noexcept nogil:
    """Place the footer's arrays; False when the lengths do not add up."""
    cdef const uint8_t *t
    cdef uint64_t need
    cdef size_t order = 2
    if length < HEADER + TRAILER or length > 0x7FFFFFFF:
        return False
    t = data + length - TRAILER
    if memcmp(t + 44, b"SGSF", 4) != 0:
        return False
    f.data = data
    f.length = length
    f.h = h
    f.end = sg_u32(t)
    f.n = sg_u32(t + 4)
    f.n_big = sg_u32(t + 8)
    f.n_ext = sg_u32(t + 12)
    f.n_parts = sg_u32(t + 16)
    f.type = t[20]
    f.flags = t[21]
    # Byte 23 was 0 when offsets and sizes took 4 bytes each, and the ordinals sorted by id stood behind them.
    f.offset_width = 4
    f.size_width = 4
    if t[23]:
        f.offset_width = t[23] & <uint32_t>7
        f.size_width = <uint32_t>t[23] >> 3
        order = 0
    if not (1 <= f.offset_width <= 4 and 1 <= f.size_width <= 4) or (f.size_width < 4 and f.n_big):
        return False
    if f.end < HEADER or f.end > length - TRAILER or f.n == 0 or f.n > 65535:
        return False
    need = (<uint64_t>f.n * (h + f.offset_width + f.size_width + order) + <uint64_t>f.n_big * 8 + <uint64_t>f.n_ext * (h + 2) + <uint64_t>f.n_parts * 32)
    if need != length - TRAILER - f.end:
        return False
    f.ids = data + f.end
    f.offsets = f.ids + f.n * h
    f.sizes = f.offsets + <size_t>f.n * f.offset_width
    f.order = NULL
    if order:
        f.order = f.sizes + <size_t>f.n * f.size_width
    f.big = f.sizes + <size_t>f.n * f.size_width + <size_t>f.n * order
    f.ext_at = f.big + <size_t>f.n_big * 8
    f.ext_id = f.ext_at + <size_t>f.n_ext * 2
    f.parts = f.ext_id + f.n_ext * h
    return True


cdef inline uint32_t narrow(const uint8_t *p, uint32_t width) noexcept nogil:
    """A number of 1 to 4 bytes; 4 are read, and behind a footer's arrays stands its trailer."""
    return sg_u32(p) & (<uint32_t>0xFFFFFFFF >> (32 - 8 * width))


cdef inline uint32_t offset_at(const Foot *f, uint32_t k) noexcept nogil:
    return narrow(f.offsets + <size_t>k * f.offset_width, f.offset_width)


cdef inline uint32_t end_at(const Foot *f, uint32_t k) noexcept nogil:
    return offset_at(f, k + 1) if k + 1 < f.n else f.end


cdef inline bint span_at(const Foot *f, uint32_t k, uint32_t *at, size_t *length) noexcept nogil:
    """Where an entry begins and how long it is; False when that is not among the entries."""
    cdef uint32_t end = end_at(f, k)
    at[0] = offset_at(f, k)
    if at[0] < HEADER or at[0] >= end or end > f.end:
        return False
    length[0] = end - at[0]
    return True


cdef inline uint64_t size_at(const Foot *f, uint32_t k) noexcept nogil:
    """An object's size; more than any has when the footer has no such row."""
    cdef uint32_t v = narrow(f.sizes + <size_t>k * f.size_width, f.size_width)
    if not v & BIG:
        return v
    v &= ~<uint32_t>BIG
    return sg_u64(f.big + <size_t>v * 8) if v < f.n_big else ~<uint64_t>0


cdef inline uint32_t ordinal_at(const Foot *f, uint32_t offset) noexcept nogil:
    """The entry that starts at an offset, NONE without."""
    cdef uint32_t low = 0, high = f.n, middle
    while low < high:
        middle = low + ((high - low) >> 1)
        if offset_at(f, middle) < offset:
            low = middle + 1
        else:
            high = middle
    return low if low < f.n and offset_at(f, low) == offset else <uint32_t>NONE
