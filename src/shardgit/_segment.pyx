"""The segment kernel: reading objects, looking ids up, and copying entries into a pack stream.

Every function takes a block's bytes as they lie in a transaction and lets go of them before it returns. ``check`` has
to accept a segment once before the others may touch it: they trust its footer.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from shardgit._foot cimport BIG, HEADER, NONE, TRAILER, Foot, end_at, foot_of, narrow, offset_at, ordinal_at, size_at, span_at
from shardgit._kernel cimport *

from shardgit.errors import BlockCorrupt, Internal, LimitExceeded

cdef enum:
    PAYLOAD = 65515  # of a side-band-64k packet
    CACHE_BYTES = 33554432  # of objects made on the way, in one call
    SIZE_BITS = 56  # of an object; no delta that a segment holds makes more
    MARK_BITS = 12  # of a key in an index row: one miss in 250 looks at a footer in a run of 400,000 objects
    INDEX_TRAILER = 32
    ROW_SPARE = 8  # bytes behind the rows, so that each can be read as a u64


cdef bint sound(const Foot *f) noexcept nogil:
    """Check every row of a footer and the head of every entry."""
    cdef uint32_t k, v, last = HEADER
    cdef uint32_t ext = 0
    cdef int type = 0
    cdef uint64_t size = 0, distance = 0
    cdef size_t head = 0, more = 0
    cdef const uint8_t *a
    cdef const uint8_t *b
    if not 1 <= f.type <= 4 or (f.flags & ~1) or ((f.flags & 1) != 0) != (f.n_parts != 0):
        return False
    if f.flags & 1:
        return f.n == 1 and f.end == HEADER and offset_at(f, 0) == HEADER and f.n_ext == 0 and f.n_big <= 1 and (
            f.size_width < 4 or not sg_u32(f.sizes) & BIG or sg_u32(f.sizes) == BIG and f.n_big == 1) and (
            f.order == NULL or sg_u16(f.order) == 0)
    for k in range(f.n):
        v = offset_at(f, k)
        if k == 0:
            if v != HEADER:
                return False
        elif v <= last:
            return False
        last = v
        if end_at(f, k) > f.end or end_at(f, k) <= v:
            return False
        v = narrow(f.sizes + <size_t>k * f.size_width, f.size_width)
        if v & BIG and (v & ~<uint32_t>BIG) >= f.n_big:
            return False
        v = sg_u16(f.order + <size_t>k * 2) if f.order != NULL else 0
        if v >= f.n:
            return False
        if k and f.order != NULL:
            a = f.ids + sg_u16(f.order + <size_t>(k - 1) * 2) * f.h
            b = f.ids + v * f.h
            if memcmp(a, b, f.h) >= 0:
                return False
        if sg_entry_header(f.data + offset_at(f, k), end_at(f, k) - offset_at(f, k), &type, &size, &head) != SG_OK:
            return False
        if type == SG_OFS_DELTA:
            if sg_ofs_distance(f.data + offset_at(f, k) + head, end_at(f, k) - offset_at(f, k) - head, &distance,
                               &more) != SG_OK:
                return False
            if distance == 0 or distance > offset_at(f, k) - HEADER:
                return False
            if ordinal_at(f, <uint32_t>(offset_at(f, k) - distance)) == NONE:
                return False
        elif type == SG_REF_DELTA:
            if end_at(f, k) - offset_at(f, k) - head < f.h:
                return False
            if ext >= f.n_ext or sg_u16(f.ext_at + <size_t>ext * 2) != k:
                return False
            if memcmp(f.ext_id + ext * f.h, f.data + offset_at(f, k) + head, f.h) != 0:
                return False
            ext += 1
        elif type != f.type or size != size_at(f, k):
            return False
    return ext == f.n_ext


cdef int take_foot(const uint8_t[::1] block, int hash_size, Foot *f) except -1:
    if block.shape[0] == 0 or not foot_of(&block[0], <size_t>block.shape[0], <size_t>hash_size, f):
        raise BlockCorrupt("segment footer is off", bytes=int(block.shape[0]))
    return 0


def check(const uint8_t[::1] block not None, int hash_size):
    """Raise BlockCorrupt unless the segment's footer and entry heads are sound; returns the number of objects."""
    cdef Foot f
    cdef bint ok
    take_foot(block, hash_size, &f)
    with nogil:
        ok = sound(&f)
    if not ok:
        raise BlockCorrupt("segment is not sound", objects=int(f.n))
    return int(f.n)


def part_ids(const uint8_t[::1] block not None, int hash_size):
    """Return the ids of a segment's part blocks, in order."""
    cdef Foot f
    cdef uint32_t k
    take_foot(block, hash_size, &f)
    return [PyBytes_FromStringAndSize(<const char *>f.parts + <size_t>k * 32, 32) for k in range(f.n_parts)]


def ids_of(const uint8_t[::1] block not None, int hash_size):
    """Return the ids of a segment in entry order, flat."""
    cdef Foot f
    take_foot(block, hash_size, &f)
    return PyBytes_FromStringAndSize(<const char *>f.ids, <Py_ssize_t>(f.n * f.h))


def offsets_of(const uint8_t[::1] block not None, int hash_size):
    """Return where the entries of a segment start, counted from the first, in entry order."""
    cdef Foot f
    cdef uint32_t k
    take_foot(block, hash_size, &f)
    return [int(offset_at(&f, k)) - HEADER for k in range(f.n)]


def ids_at(const uint8_t[::1] block not None, int hash_size, ordinals not None):
    """Return the ids at ``ordinals``."""
    cdef Foot f
    cdef uint32_t k
    take_foot(block, hash_size, &f)
    out = []
    for k in ordinals:
        if k >= f.n:
            raise IndexError(k)
        out.append(PyBytes_FromStringAndSize(<const char *>f.ids + k * f.h, <Py_ssize_t>f.h))
    return out


def sizes_at(const uint8_t[::1] block not None, int hash_size, ordinals not None):
    """Return the object sizes at ``ordinals``."""
    cdef Foot f
    cdef uint32_t k
    take_foot(block, hash_size, &f)
    out = []
    for k in ordinals:
        if k >= f.n:
            raise IndexError(k)
        out.append(int(size_at(&f, k)))
    return out


def externals_of(const uint8_t[::1] block not None, int hash_size):
    """Return the ids of bases outside the segment, one for each REF_DELTA entry, in entry order."""
    cdef Foot f
    cdef uint32_t k
    take_foot(block, hash_size, &f)
    return [PyBytes_FromStringAndSize(<const char *>f.ext_id + k * f.h, <Py_ssize_t>f.h) for k in range(f.n_ext)]


def find(const uint8_t[::1] block not None, int hash_size, bytes oid not None):
    """Return the ordinal of an id, -1 without, by looking at the footer's ids."""
    cdef Foot f
    cdef uint32_t k
    take_foot(block, hash_size, &f)
    if <size_t>len(oid) != f.h:
        return -1
    for k in range(f.n):
        if memcmp(f.ids + k * f.h, PyBytes_AS_STRING(oid), f.h) == 0:
            return int(k)
    return -1


def entry_at(const uint8_t[::1] block not None, int hash_size, uint32_t ordinal):
    """Return (entry type, size of the stream's content, start and end of the zlib stream in the block)."""
    cdef Foot f
    cdef int type = 0
    cdef uint64_t size = 0, distance = 0
    cdef size_t head = 0, more = 0
    take_foot(block, hash_size, &f)
    if ordinal >= f.n or f.flags & 1:
        raise IndexError(ordinal)
    cdef uint32_t at = 0
    cdef size_t left = 0
    cdef sg_status st = SG_RANGE
    if span_at(&f, ordinal, &at, &left):
        st = sg_entry_header(f.data + at, left, &type, &size, &head)
    if st == SG_OK and type == SG_OFS_DELTA:
        st = sg_ofs_distance(f.data + at + head, left - head, &distance, &more)
    elif type == SG_REF_DELTA:
        more = f.h
    if st != SG_OK or head + more > left:
        raise BlockCorrupt("segment entry is off", ordinal=int(ordinal))
    return int(type), int(size), int(at + head + more), int(at + left)


# ---- index pieces ----

ctypedef struct Piece:
    const uint8_t *data
    uint32_t n
    # version 1: keys of 8 bytes, positions of 4
    const uint8_t *keys
    const uint8_t *positions
    # version 2: buckets, and rows of bits in each
    uint64_t first  # key at which bucket 0 begins
    const uint8_t *starts
    const uint8_t *rows
    uint32_t buckets
    uint32_t mark_bits
    uint32_t position_bits
    uint32_t shift
    int version


cdef bint piece_of(const uint8_t[::1] piece, Piece *x) noexcept nogil:
    """Place the arrays of an index piece; False when the lengths do not add up."""
    cdef size_t length = <size_t>piece.shape[0]
    cdef const uint8_t *t
    if length < HEADER + 16:
        return False
    x.data = &piece[0]
    t = x.data + length
    if memcmp(t - 4, b"SGIX", 4) == 0:
        x.version = 1
        x.n = sg_u32(t - 16)
        x.keys = x.data + HEADER
        x.positions = x.keys + <size_t>x.n * 8
        return <uint64_t>x.n * 12 == length - HEADER - 16
    if memcmp(t - 4, b"SGI2", 4) != 0 or length < HEADER + INDEX_TRAILER:
        return False
    x.version = 2
    x.first = sg_u64(t - 32)
    x.n = sg_u32(t - 24)
    x.buckets = sg_u32(t - 20)
    x.shift = (t - 16)[0]
    x.mark_bits = (t - 15)[0]
    x.position_bits = (t - 14)[0]
    if not 1 <= x.mark_bits <= 24 or not 1 <= x.position_bits <= 32 or x.shift > 63 or x.shift < x.mark_bits:
        return False
    if x.buckets == 0 or x.buckets > length >> 2:
        return False
    x.starts = x.data + HEADER
    x.rows = x.starts + (<size_t>x.buckets + 1) * 4
    return (<uint64_t>x.buckets + 1) * 4 + ((<uint64_t>x.n * (x.mark_bits + x.position_bits) + 7) >> 3) + ROW_SPARE == (
        length - HEADER - INDEX_TRAILER)


cdef inline uint64_t row_at(const Piece *x, uint32_t k) noexcept nogil:
    """Row ``k`` of a piece of version 2: its mark above its position."""
    cdef uint32_t bits = x.mark_bits + x.position_bits
    cdef uint64_t at = <uint64_t>k * bits
    return (sg_u64(x.rows + (at >> 3)) >> (at & 7)) & ((<uint64_t>1 << bits) - 1)


cdef inline uint32_t mark_at(const Piece *x, uint32_t k) noexcept nogil:
    return <uint32_t>(row_at(x, k) >> x.position_bits)


cdef inline uint32_t row_position(const Piece *x, uint32_t k) noexcept nogil:
    if x.version == 1:
        return sg_u32(x.positions + <size_t>k * 4)
    return <uint32_t>(row_at(x, k) & ((<uint64_t>1 << x.position_bits) - 1))


cdef uint32_t first_row(const Piece *x, uint64_t key) noexcept nogil:
    """The first row that may have a key that is not below ``key``; of version 1 the first that has."""
    cdef uint32_t low = 0, high = x.n, middle, mark = 0
    cdef uint64_t bucket
    if x.version == 2:
        if key < x.first:
            return 0
        bucket = (key - x.first) >> x.shift
        if bucket >= x.buckets:
            return x.n
        mark = <uint32_t>((key - x.first) >> (x.shift - x.mark_bits)) & ((<uint32_t>1 << x.mark_bits) - 1)
        low = sg_u32(x.starts + bucket * 4)
        high = sg_u32(x.starts + (bucket + 1) * 4)
    while low < high:
        middle = low + ((high - low) >> 1)
        if (mark_at(x, middle) < mark) if x.version == 2 else (sg_u64be(x.keys + <size_t>middle * 8) < key):
            low = middle + 1
        else:
            high = middle
    return low


cdef uint32_t end_row(const Piece *x, uint64_t key) noexcept nogil:
    """The first row behind those that may have a key up to ``key``."""
    cdef uint64_t step
    if x.version == 1:
        return x.n if key == ~<uint64_t>0 else first_row(x, key + 1)
    if key < x.first:
        return 0
    step = <uint64_t>1 << (x.shift - x.mark_bits)
    key = x.first + (((key - x.first) >> (x.shift - x.mark_bits)) << (x.shift - x.mark_bits))
    return x.n if key > ~<uint64_t>0 - step else first_row(x, key + step)


cdef bint sound_piece(const Piece *x) noexcept nogil:
    cdef uint32_t i, k, low, high
    if x.version == 1:
        for i in range(1, x.n):
            if sg_u64be(x.keys + <size_t>(i - 1) * 8) > sg_u64be(x.keys + <size_t>i * 8):
                return False
        return True
    low = sg_u32(x.starts)
    if low != 0 or sg_u32(x.starts + <size_t>x.buckets * 4) != x.n:
        return False
    for i in range(x.buckets):
        low = sg_u32(x.starts + <size_t>i * 4)
        high = sg_u32(x.starts + (<size_t>i + 1) * 4)
        if low > high or high > x.n:
            return False
        for k in range(low + 1, high):
            if mark_at(x, k - 1) > mark_at(x, k):
                return False
    return True


cdef int take_piece(const uint8_t[::1] piece, Piece *x) except -1:
    if not piece_of(piece, x):
        raise BlockCorrupt("index piece is off", bytes=int(piece.shape[0]))
    return 0


def check_index(const uint8_t[::1] piece not None):
    """Raise BlockCorrupt unless an index piece is sound; returns its number of rows."""
    cdef Piece x
    cdef bint ok
    take_piece(piece, &x)
    with nogil:
        ok = sound_piece(&x)
    if not ok:
        raise BlockCorrupt("index piece is not sorted", rows=int(x.n))
    return int(x.n)


def index_payload(const uint8_t[::1] ids not None, const uint8_t[::1] positions not None, int hash_size):
    """Return the payload of an index piece: ``ids`` flat and ascending, their ``positions`` as u32."""
    cdef uint32_t n = <uint32_t>(ids.shape[0] // hash_size), i, bucket, at = 0, most = 1, mark
    cdef uint32_t buckets, position_bits = 1
    cdef uint64_t first, span, key, row, bit_at
    cdef unsigned int shift = 63, mark_bits = MARK_BITS
    cdef size_t length, rows_length
    cdef uint8_t *to
    cdef uint8_t *rows
    if n == 0 or ids.shape[0] != <Py_ssize_t>n * hash_size or positions.shape[0] != <Py_ssize_t>n * 4:
        raise Internal("one position for each id is wanted")
    first = sg_u64be(&ids[0])
    span = sg_u64be(&ids[<Py_ssize_t>(n - 1) * hash_size]) - first
    if n < 1024:
        mark_bits = 24  # there are few buckets then, and nobody counts the bytes
    # Buckets of equal width: as many as there are 16 rows each, more or less.
    while shift > mark_bits and (span >> (shift - 1)) < (<uint64_t>n >> 4):
        shift -= 1
    buckets = <uint32_t>(span >> shift) + 1
    for i in range(n):
        at = sg_u32(&positions[<Py_ssize_t>i * 4])
        if at > most:
            most = at
    while position_bits < 32 and most >> position_bits:
        position_bits += 1
    rows_length = <size_t>((<uint64_t>n * (mark_bits + position_bits) + 7) >> 3) + ROW_SPARE
    length = (<size_t>buckets + 1) * 4 + rows_length + INDEX_TRAILER
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
    to = <uint8_t *>PyBytes_AS_STRING(out)
    with nogil:
        memset(to, 0, length)
        rows = to + (<size_t>buckets + 1) * 4
        bucket = 0
        for i in range(n):
            key = sg_u64be(&ids[<Py_ssize_t>i * hash_size]) - first
            while bucket <= <uint32_t>(key >> shift):
                sg_put_u32(to + <size_t>bucket * 4, i)
                bucket += 1
            mark = <uint32_t>(key >> (shift - mark_bits)) & ((<uint32_t>1 << mark_bits) - 1)
            row = <uint64_t>mark << position_bits | sg_u32(&positions[<Py_ssize_t>i * 4])
            bit_at = <uint64_t>i * (mark_bits + position_bits)
            sg_put_u64(rows + (bit_at >> 3), sg_u64(rows + (bit_at >> 3)) | row << (bit_at & 7))
        while bucket <= buckets:
            sg_put_u32(to + <size_t>bucket * 4, n)
            bucket += 1
        to += length - INDEX_TRAILER
        sg_put_u64(to, first)
        sg_put_u32(to + 8, n)
        sg_put_u32(to + 12, buckets)
        to[16] = <uint8_t>shift
        to[17] = <uint8_t>mark_bits
        to[18] = <uint8_t>position_bits
        memcpy(to + 28, b"SGI2", 4)
    return out


def index_find(const uint8_t[::1] piece not None, const uint8_t[::1] ids not None, int hash_size,
               const int64_t[::1] which not None, int64_t[::1] out not None):
    """For each id number in ``which`` (into the flat ``ids``) write its run-local position to ``out``, -1 without.

    Rows know a part of the key: the caller compares the whole id. Where several rows may have it, the result is
    -2 - row and the caller looks at ``index_rows``.
    """
    cdef Piece x
    cdef Py_ssize_t i
    cdef uint32_t low, high
    cdef uint64_t key
    cdef int64_t w
    take_piece(piece, &x)
    if which.shape[0] != out.shape[0]:
        raise Internal("one result for each id is wanted")
    for i in range(which.shape[0]):
        w = which[i]
        if w < 0 or (w + 1) * hash_size > ids.shape[0]:
            raise IndexError(w)
    with nogil:
        for i in range(which.shape[0]):
            key = sg_u64be(&ids[which[i] * hash_size])
            low = first_row(&x, key)
            high = end_row(&x, key)
            if low >= high:
                out[i] = -1
            elif low + 1 < high:
                out[i] = -2 - <int64_t>low
            else:
                out[i] = row_position(&x, low)


def index_find_all(list pieces not None, const uint8_t[::1] firsts not None, const uint8_t[::1] ids not None, int hash_size,
                   int64_t start, int64_t[::1] which not None, int64_t[::1] found not None, int64_t[::1] out not None):
    """For each id number in ``which`` (into the flat ``ids``) write the position that a run's index has for it to ``out``.

    ``firsts`` are the 8 bytes with which the ids of each of ``pieces`` begin, flat; the run begins at ``start``. As with
    ``index_find`` the caller compares the whole id. An id that several rows may have gets -2. Returns (how many numbers
    are left at the front of ``which``: those that the run lacks; how many ``found`` begins with: those that it has).
    """
    cdef Piece *x
    cdef Py_ssize_t i, n = len(pieces), left = 0, hits = 0
    cdef const uint8_t *first
    cdef const uint8_t *oid
    cdef int64_t place
    if n == 0 or firsts.shape[0] != 8 * n or ids.shape[0] != out.shape[0] * hash_size:
        raise Internal("one start for each piece and one result for each id is wanted")
    if found.shape[0] < which.shape[0]:
        raise Internal("all that is looked for may be found")
    for i in range(which.shape[0]):
        if which[i] < 0 or which[i] >= out.shape[0]:
            raise IndexError(which[i])
    if which.shape[0] == 0:
        return 0, 0
    first = &firsts[0]
    oid = &ids[0]
    x = <Piece *>malloc(<size_t>n * sizeof(Piece))
    if x == NULL:
        raise MemoryError
    pieces = list(pieces)  # ours, and so are their bytes while nobody else can run
    try:
        for i in range(n):
            take_piece(pieces[i], x + i)
        with nogil:
            for i in range(which.shape[0]):
                place = place_of(x, n, first, sg_u64be(oid + which[i] * hash_size))
                if place == -1:
                    which[left] = which[i]
                    left += 1
                elif place < 0:
                    out[which[i]] = place
                else:
                    out[which[i]] = start + place
                    found[hits] = which[i]
                    hits += 1
    finally:
        free(x)
    return int(left), int(hits)


cdef int64_t place_of(const Piece *x, Py_ssize_t n, const uint8_t *firsts, uint64_t key) noexcept nogil:
    """The position that a run's pieces have for a key: -1 for none, -2 where several rows may have it."""
    cdef Py_ssize_t low = 0, high = n, middle
    cdef uint32_t first, end
    while low < high:
        middle = low + ((high - low) >> 1)
        if sg_u64be(firsts + middle * 8) <= key:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return -1
    low -= 1
    if low and sg_u64be(firsts + low * 8) == key:
        return -2  # equal keys may straddle two pieces
    first = first_row(x + low, key)
    end = end_row(x + low, key)
    if first >= end:
        return -1
    return row_position(x + low, first) if first + 1 == end else -2


def index_rows(const uint8_t[::1] piece not None, uint64_t low_key, uint64_t high_key, uint32_t limit):
    """Return the positions of up to ``limit`` rows that may have a key with low_key <= key <= high_key."""
    cdef Piece x
    cdef uint32_t low, high
    take_piece(piece, &x)
    low = first_row(&x, low_key)
    high = end_row(&x, high_key)
    out = []
    while low < high and <uint32_t>len(out) < limit:
        out.append(int(row_position(&x, low)))
        low += 1
    return out


def index_entries(const uint8_t[::1] piece not None):
    """Return all rows as (lowest, highest key that the object may have, position)."""
    cdef Piece x
    cdef uint32_t k, bucket = 0
    cdef uint64_t low, high
    take_piece(piece, &x)
    out = []
    for k in range(x.n):
        if x.version == 1:
            low = sg_u64be(x.keys + <size_t>k * 8)
            high = low
        else:
            while bucket + 1 < x.buckets and sg_u32(x.starts + (<size_t>bucket + 1) * 4) <= k:
                bucket += 1
            low = x.first + (<uint64_t>bucket << x.shift) + (<uint64_t>mark_at(&x, k) << (x.shift - x.mark_bits))
            high = low + ((<uint64_t>1 << (x.shift - x.mark_bits)) - 1)
            if high < low:
                high = ~<uint64_t>0
        out.append((int(low), int(high), int(row_position(&x, k))))
    return out


# ---- objects ----

ctypedef struct Maker:
    sg_inflater *inflater
    uint8_t **made  # by ordinal, NULL where not made
    uint64_t *sizes
    uint32_t *stack
    uint8_t *delta
    size_t delta_room
    uint64_t held


cdef void free_maker(Maker *m, uint32_t n) noexcept nogil:
    cdef uint32_t k
    sg_inflater_free(m.inflater)
    if m.made != NULL:
        for k in range(n):
            free(m.made[k])
    free(m.made)
    free(m.sizes)
    free(m.stack)
    free(m.delta)


cdef sg_status make(const Foot *f, Maker *m, uint32_t wanted, const uint8_t *base, uint64_t base_size,
                    uint32_t *stuck) noexcept nogil:
    """Make object ``wanted``; with an external base in its chain and ``base`` NULL: SG_EXTERNAL, *stuck its ordinal."""
    cdef uint32_t top = 0, k = wanted, at = 0
    cdef int type = 0
    cdef uint64_t size = 0, distance = 0, claimed = 0, result = 0
    cdef size_t head = 0, more = 0, used = 0, left = 0
    cdef uint8_t *made
    cdef const uint8_t *on
    cdef uint64_t on_size
    cdef sg_status st
    cdef bint outside = False
    while m.made[k] == NULL:
        m.stack[top] = k
        top += 1
        if not span_at(f, k, &at, &left):
            return SG_RANGE
        st = sg_entry_header(f.data + at, left, &type, &size, &head)
        if st != SG_OK:
            return st
        if type == SG_REF_DELTA:
            if base == NULL:
                stuck[0] = k
                return SG_EXTERNAL
            outside = True
            break
        if type != SG_OFS_DELTA:
            break
        st = sg_ofs_distance(f.data + at + head, left - head, &distance, &more)
        if st != SG_OK:
            return st
        if distance > at:
            return SG_RANGE
        k = ordinal_at(f, <uint32_t>(at - distance))
        if k == NONE or top >= f.n:
            return SG_RANGE
    on = base if outside else m.made[k]
    on_size = base_size if outside else m.sizes[k]
    while top:
        top -= 1
        k = m.stack[top]
        if not span_at(f, k, &at, &left):
            return SG_RANGE
        st = sg_entry_header(f.data + at, left, &type, &size, &head)
        if st != SG_OK:
            return st
        more = 0
        if type == SG_OFS_DELTA:
            st = sg_ofs_distance(f.data + at + head, left - head, &distance, &more)
            if st != SG_OK:
                return st
        elif type == SG_REF_DELTA:
            more = f.h
        if more > left - head:
            return SG_TRUNCATED
        head += more
        result = size_at(f, k)
        if size > sg_inflate_most(left - head) or (type < 5 and size != result) or result >> SIZE_BITS:
            return SG_SIZE
        made = <uint8_t *>malloc(<size_t>result + 1)
        if made == NULL:
            return SG_MEMORY
        if type < 5:
            st = sg_inflate(m.inflater, f.data + at + head, left - head, made, <size_t>result, &used)
        else:
            if m.delta_room < size:
                free(m.delta)
                m.delta = <uint8_t *>malloc(<size_t>size + 1)
                m.delta_room = <size_t>size if m.delta != NULL else 0
            if m.delta == NULL:
                st = SG_MEMORY
            else:
                st = sg_inflate(m.inflater, f.data + at + head, left - head, m.delta, <size_t>size, &used)
                if st == SG_OK:
                    st = sg_delta_apply(on, <size_t>on_size, m.delta, <size_t>size, made, <size_t>result, NULL, 0, &used)
        if st != SG_OK:
            free(made)
            return st
        m.made[k] = made
        m.sizes[k] = result
        m.held += result
        on = made
        on_size = result
    return SG_OK


def decode_many(const uint8_t[::1] block not None, int hash_size, ordinals not None, dict bases=None):
    """Return (objects, missing bases): the bytes of each ordinal, None where a base outside the segment is wanted.

    ``bases`` maps base ids to their bytes; the ids that it lacks are returned, each once. BlockCorrupt when a chain
    does not give the sizes that the footer names.
    """
    cdef Foot f
    cdef Maker m
    cdef uint32_t k, i, stuck = 0
    cdef sg_status st = SG_OK
    cdef const uint8_t *base = NULL
    cdef uint64_t base_size = 0
    cdef bytes held
    take_foot(block, hash_size, &f)
    if f.flags & 1:
        raise Internal("a segment in parts is not decoded here")
    m.inflater = sg_inflater_new()
    m.made = <uint8_t **>calloc(f.n, sizeof(uint8_t *))
    m.sizes = <uint64_t *>calloc(f.n, 8)
    m.stack = <uint32_t *>malloc((<size_t>f.n + 1) * 4)
    m.delta = NULL
    m.delta_room = 0
    m.held = 0
    out = []
    missing = {}
    try:
        if m.inflater == NULL or m.made == NULL or m.sizes == NULL or m.stack == NULL:
            raise MemoryError
        for k in ordinals:
            if k >= f.n:
                raise IndexError(k)
            with nogil:
                st = make(&f, &m, k, NULL, 0, &stuck)
            if st == SG_EXTERNAL:
                oid = external_of(&f, stuck)
                if bases is None or oid not in bases:
                    missing[oid] = None
                    out.append(None)
                    continue
                held = bases[oid]
                base = <const uint8_t *>PyBytes_AS_STRING(held)
                base_size = <uint64_t>len(held)
                with nogil:
                    st = make(&f, &m, k, base, base_size, &stuck)
            if st == SG_MEMORY:
                raise MemoryError
            if st != SG_OK:
                raise BlockCorrupt("stored object does not decode", ordinal=int(k), status=int(st))
            out.append(PyBytes_FromStringAndSize(<char *>m.made[k], <Py_ssize_t>m.sizes[k]))
            if m.held > CACHE_BYTES:
                for i in range(f.n):
                    free(m.made[i])
                    m.made[i] = NULL
                m.held = 0
    finally:
        free_maker(&m, f.n)
    return out, list(missing)


cdef bytes external_of(const Foot *f, uint32_t ordinal):
    """The base id that a REF_DELTA entry names."""
    cdef uint32_t low = 0, high = f.n_ext, middle
    while low < high:  # they stand in entry order
        middle = low + ((high - low) >> 1)
        if sg_u16(f.ext_at + <size_t>middle * 2) < ordinal:
            low = middle + 1
        else:
            high = middle
    if low < f.n_ext and sg_u16(f.ext_at + <size_t>low * 2) == ordinal:
        return PyBytes_FromStringAndSize(<const char *>f.ext_id + low * f.h, <Py_ssize_t>f.h)
    raise BlockCorrupt("external base is not in the footer", ordinal=int(ordinal))


def apply_delta(bytes base not None, bytes delta not None, uint64_t size_max):
    """Return the object that a delta makes of a base; BlockCorrupt when it does not fit."""
    cdef uint64_t base_size = 0, size = 0
    cdef size_t at = 0
    cdef bytes out
    cdef sg_status st = sg_delta_sizes(<const uint8_t *>PyBytes_AS_STRING(delta), <size_t>len(delta), &base_size, &size, &at)
    if st == SG_OK and size > size_max:
        raise LimitExceeded("object is over a size limit", size=int(size))
    if st == SG_OK:
        out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        st = sg_delta_apply(<const uint8_t *>PyBytes_AS_STRING(base), <size_t>len(base),
                            <const uint8_t *>PyBytes_AS_STRING(delta), <size_t>len(delta),
                            <uint8_t *>PyBytes_AS_STRING(out), <size_t>size, NULL, 0, &at)
        if st == SG_OK:
            return out
    raise BlockCorrupt("stored delta does not apply", status=int(st))


def whole_entry(int type, bytes data not None, int level=6):
    """Return a pack entry that holds a whole object."""
    cdef size_t room = sg_deflate_bound(<size_t>len(data)) + 16
    cdef uint8_t *out = <uint8_t *>malloc(room)
    cdef const uint8_t *source = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef size_t n = <size_t>len(data), head, body
    if not 1 <= type <= 4:
        raise Internal("not an object type", type=type)
    if out == NULL:
        raise MemoryError
    try:
        with nogil:
            head = sg_put_entry_header(out, type, n)
            body = sg_deflate(level, source, n, out + head, room - head)
        if body == 0:
            raise MemoryError
        return PyBytes_FromStringAndSize(<char *>out, <Py_ssize_t>(head + body))
    finally:
        free(out)


# ---- transfers ----

cdef class PackFramer:
    """The running hash of a pack stream and, with ``sideband``, its framing as side-band-64k packets of band 1."""

    cdef sg_hash hash
    cdef readonly bint sideband
    cdef readonly uint64_t bytes_framed
    cdef bytes known

    def __cinit__(self, int hash_kind, *, bint sideband, bytes trailer=None):
        """With ``trailer``, the hash of exactly this stream as it was framed before, nothing is hashed again."""
        sg_hash_init(&self.hash, hash_kind)
        self.sideband = sideband
        self.known = trailer

    def frame(self, const uint8_t[::1] data not None, size_t start, size_t end):
        """Hash data[start:end] and return it as it goes to the client: hashed, copied and framed in one pass."""
        if end > <size_t>data.shape[0] or start > end:
            raise IndexError(end)
        if start == end:
            return b""
        return self._frame(&data[0] + start, end - start, self.known is None)

    def digest(self):
        """Return the hash of all that was framed; once, at the end."""
        cdef uint8_t digest[32]
        if self.known is None:
            sg_hash_final(&self.hash, digest)
            self.known = PyBytes_FromStringAndSize(<char *>digest, <Py_ssize_t>sg_hash_size(self.hash.kind))
        return self.known

    def trailer(self):
        """Return the pack's trailer as it goes to the client."""
        cdef bytes digest = self.digest()
        return self._frame(<const uint8_t *>PyBytes_AS_STRING(digest), <size_t>len(digest), False)

    cdef bytes _frame(self, const uint8_t *data, size_t n, bint hashed):
        cdef size_t packets = (n + PAYLOAD - 1) // PAYLOAD
        cdef size_t length = n + (packets * 5 if self.sideband else 0)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(out)
        cdef size_t take
        self.bytes_framed += n
        with nogil:
            while n:
                take = n if n < PAYLOAD else PAYLOAD
                if self.sideband:
                    put_hex(to, <uint32_t>take + 5)
                    to[4] = 1
                    to += 5
                # Hash and copy 64 KiB at a time: the second pass finds the bytes in the first-level cache.
                if hashed:
                    sg_hash_update(&self.hash, data, take)
                memcpy(to, data, take)
                to += take
                data += take
                n -= take
        return out


cdef void put_hex(uint8_t *to, uint32_t v) noexcept nogil:
    cdef int i
    cdef uint32_t digit
    for i in range(4):
        digit = (v >> (12 - 4 * i)) & 15
        to[i] = <uint8_t>(digit + 48 if digit < 10 else digit + 87)


cdef inline bint bit(const uint8_t[::1] bits, uint64_t at) noexcept nogil:
    return at >> 3 < <uint64_t>bits.shape[0] and (bits[<Py_ssize_t>(at >> 3)] >> (at & 7)) & 1


def entries_span(const uint8_t[::1] block not None, int hash_size):
    """Return (start, end) of a segment's entries."""
    cdef Foot f
    take_foot(block, hash_size, &f)
    return HEADER, int(f.end)


def copy_entries(const uint8_t[::1] block not None, int hash_size, uint64_t first, const uint8_t[::1] wanted not None,
                 const uint8_t[::1] have not None, const int64_t[::1] externals not None, bint ofs_delta, bint thin):
    """Return (entries, ordinals): the wanted entries of a segment for a pack, and those that must be sent whole.

    The object at ordinal k is bit ``first`` + k of ``wanted`` and ``have``. ``externals`` are the pool positions of the
    bases outside, as ``externals_of`` lists them. Distances are made anew; a base that goes elsewhere in the same pack,
    or that the client has (with ``thin``), is named by id.
    """
    cdef Foot f
    cdef uint32_t *places
    cdef uint8_t *out
    cdef size_t at = 0
    cdef uint32_t k
    cdef uint32_t *whole
    cdef uint32_t n_whole = 0
    cdef sg_status st
    take_foot(block, hash_size, &f)
    if <uint64_t>externals.shape[0] != f.n_ext:
        raise Internal("one position for each external base is wanted")
    places = <uint32_t *>malloc((<size_t>f.n + 1) * 4)
    whole = <uint32_t *>malloc((<size_t>f.n + 1) * 4)
    # An entry grows by at most an id and a longer size header.
    out = <uint8_t *>malloc(f.end + <size_t>f.n * (f.h + 16))
    try:
        if places == NULL or whole == NULL or out == NULL:
            raise MemoryError
        with nogil:
            st = copy_some(&f, first, wanted, have, externals, ofs_delta, thin, places, out, &at, whole, &n_whole)
        if st != SG_OK:
            raise BlockCorrupt("segment entry is off", status=int(st))
        return PyBytes_FromStringAndSize(<char *>out, <Py_ssize_t>at), [int(whole[k]) for k in range(n_whole)]
    finally:
        free(places)
        free(whole)
        free(out)


cdef sg_status copy_some(const Foot *f, uint64_t first, const uint8_t[::1] wanted, const uint8_t[::1] have,
                         const int64_t[::1] externals, bint ofs_delta, bint thin, uint32_t *places, uint8_t *out,
                         size_t *length, uint32_t *whole, uint32_t *n_whole) noexcept nogil:
    cdef uint32_t k, base, start, ext = 0
    cdef size_t at = 0, head = 0, more = 0, left
    cdef int type = 0
    cdef uint64_t size = 0, distance = 0
    cdef int64_t outside
    cdef const uint8_t *name
    cdef bint known
    cdef sg_status st
    for k in range(f.n):
        places[k] = NONE
        start = offset_at(f, k)
        left = end_at(f, k) - start
        outside = -1
        if ext < f.n_ext and sg_u16(f.ext_at + <size_t>ext * 2) == k:
            outside = externals[<Py_ssize_t>ext]
            ext += 1
        if not bit(wanted, first + k):
            continue
        st = sg_entry_header(f.data + start, left, &type, &size, &head)
        if st != SG_OK:
            return st
        more = 0
        if type == SG_OFS_DELTA:
            st = sg_ofs_distance(f.data + start + head, left - head, &distance, &more)
            if st != SG_OK:
                return st
            base = ordinal_at(f, <uint32_t>(start - distance))
            if base == NONE:
                return SG_RANGE
            if ofs_delta and bit(wanted, first + base) and places[base] != NONE:
                places[k] = <uint32_t>at
                at += sg_put_entry_header(out + at, SG_OFS_DELTA, size)
                at += sg_put_ofs_distance(out + at, places[k] - places[base])
                head += more
                memcpy(out + at, f.data + start + head, left - head)
                at += left - head
                continue
            known = bit(wanted, first + base) or (thin and bit(have, first + base))
            name = f.ids + base * f.h
        elif type == SG_REF_DELTA:
            more = f.h
            known = outside >= 0 and (bit(wanted, <uint64_t>outside) or (thin and bit(have, <uint64_t>outside)))
            name = f.data + start + head
        else:
            places[k] = <uint32_t>at
            memcpy(out + at, f.data + start, left)
            at += left
            continue
        if not known:
            whole[n_whole[0]] = k
            n_whole[0] += 1
            continue
        places[k] = <uint32_t>at
        at += sg_put_entry_header(out + at, SG_REF_DELTA, size)
        memcpy(out + at, name, f.h)
        at += f.h
        head += more
        memcpy(out + at, f.data + start + head, left - head)
        at += left - head
    length[0] = at
    return SG_OK


def range_count(const uint8_t[::1] bits not None, uint64_t first, uint64_t n):
    """Return how many of the ``n`` bits from ``first`` are set; bits past the end are not."""
    cdef uint64_t i = first, end = first + n, total = 0, limit = <uint64_t>bits.shape[0] * 8
    cdef uint64_t word
    with nogil:
        if end > limit:
            end = limit
        while i < end:
            if i & 63 == 0 and end - i >= 64:
                word = sg_u64(&bits[0] + (i >> 3))
                total += <uint64_t>__builtin_popcountll(word)
                i += 64
            else:
                total += (bits[<Py_ssize_t>(i >> 3)] >> (i & 7)) & 1
                i += 1
    return int(total)


cdef extern from * nogil:
    int __builtin_popcountll(unsigned long long v)


def holds_all(const uint8_t[::1] bits not None, const uint8_t[::1] more not None, const int64_t[::1] places not None):
    """Return whether each of the positions is set in one of two bitsets; a negative one is in none."""
    cdef Py_ssize_t k
    cdef bint ok = True
    with nogil:
        for k in range(places.shape[0]):
            if places[k] < 0 or not (bit(bits, <uint64_t>places[k]) or bit(more, <uint64_t>places[k])):
                ok = False
                break
    return bool(ok)


def drop_large(const uint8_t[::1] block not None, int hash_size, uint64_t first, uint8_t[::1] bits not None,
               uint64_t limit):
    """Clear the bits of a segment's objects of ``limit`` bytes and more. The object at ordinal k is bit ``first`` + k."""
    cdef Foot f
    cdef uint32_t k
    cdef uint64_t at
    take_foot(block, hash_size, &f)
    with nogil:
        for k in range(f.n):
            at = first + k
            if at >> 3 >= <uint64_t>bits.shape[0]:
                break
            if size_at(&f, k) >= limit:
                bits[<Py_ssize_t>(at >> 3)] &= <uint8_t>~(1 << (at & 7))
