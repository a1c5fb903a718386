"""The ingest kernel's first half: packs in; object ids and edges out.

A Resolver takes the bytes of whole packs (mapped files, usually), finds the entries, resolves every delta family on
as many threads as call ``resolve``, computes every object id, runs fsck over each object while it is at hand, and notes
the edges that walks need. ``_layout.Ingest`` lays the objects out.

Memory: about 110 bytes an object, the edges, and on each thread the bases that are still needed. Children are
visited light first and heavy last, so at most log2(objects) bases wait at once; past ``cache_max_bytes`` they are
dropped and made again. No recursion; every size is checked against what the compressed bytes can hold.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset
from posix.fcntl cimport F_DUPFD_CLOEXEC, fcntl
from posix.unistd cimport close

from shardgit._fsck cimport SG_FSCK_TABLE, sg_fsck_object
from shardgit._kernel cimport *
from shardgit._sha1 cimport *
from shardgit._spill cimport *

from shardgit.errors import CollisionAttack, Internal, LimitExceeded, MalformedObject, MalformedPack

def features():
    """Return what the kernels were built with: inflate, hash and zlib versions."""
    return {
        "inflate": sg_inflate_name().decode(),
        "hash": sg_openssl_name().decode(),
        "sha1_lanes": str(sg_sha1_lanes(0, False)),
        "zlib": sg_zlib_name().decode(),
    }


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


def object_ids(int hash_kind, list types not None, list objects not None, int lanes=0, list attacks=None):
    """Return the ids of whole objects, bytes each: many at once cost less than half of one after another.

    ``lanes`` are hashed side by side: 3 (SHA extensions), 8 (AVX2), 1 for none; 0, or what the machine lacks, is what
    it has, or none. With ``attacks`` the indices of objects that look like a SHA-1 collision attack are put there,
    of 64 at most.
    """
    cdef int kind
    if len(types) != len(objects):
        raise Internal("objects and types do not match", objects=len(objects))
    for kind in types:
        if not 1 <= kind <= 4:
            raise Internal("an object has an impossible type", type=kind)
    return hashed(hash_kind, bytes(types), objects, lanes, attacks, False)


def message_digests(list messages not None, int lanes=0, list attacks=None, bint plain=False):
    """Return the SHA-1 of messages that are no objects, by the code that makes ``object_ids``; for its tests.

    ``plain`` looks for attacks without AVX2.
    """
    return hashed(1, bytes(len(messages)), messages, lanes, attacks, plain)


cdef list hashed(int hash_kind, bytes types, list objects, int lanes, list attacks, bint plain):
    """Return the ids of objects; those of type 0 are hashed without a header."""
    cdef Py_ssize_t count = len(objects), i
    cdef size_t size = sg_hash_size(hash_kind)
    cdef uint8_t *out = <uint8_t *>malloc(<size_t>count * size + 1)
    cdef const uint8_t **data = <const uint8_t **>malloc((<size_t>count + 1) * sizeof(void *))
    cdef size_t *sizes = <size_t *>malloc((<size_t>count + 1) * sizeof(size_t))
    cdef const uint8_t *kinds = <const uint8_t *>PyBytes_AS_STRING(types)
    cdef sg_sha1 *side = NULL
    cdef sg_detector *detector = NULL
    cdef bint detect = attacks is not None and hash_kind == 1
    cdef bytes one
    try:
        if out == NULL or data == NULL or sizes == NULL:
            raise MemoryError
        for i in range(count):
            one = objects[i]
            if one is None:
                raise Internal("an object is missing", number=int(i))
            data[i] = <const uint8_t *>PyBytes_AS_STRING(one)
            sizes[i] = <size_t>len(one)
        if detect:
            detector = new_detector(plain)
            if detector == NULL:
                raise MemoryError
        if hash_kind == 1:
            side = side_by_side(lanes if count > 1 else 1, detector)
            if detect and side == NULL:
                raise MemoryError
        with nogil:
            for i in range(count):
                if side == NULL:
                    sg_object_id(hash_kind, kinds[i], data[i], sizes[i], out + <size_t>i * size)
                elif side.lanes:
                    sg_sha1_add(side, kinds[i], data[i], sizes[i], out + <size_t>i * size, NULL, 0)
                else:
                    sg_sha1_now(side, kinds[i], data[i], sizes[i], out + <size_t>i * size)
            if side != NULL:
                sg_sha1_flush(side)
        if detector != NULL:
            attacks.extend(sorted(
                int((<const uint8_t *>detector.attacks[i] - out) // <Py_ssize_t>size) for i in range(detector.n_attacks)
            ))
        return [PyBytes_FromStringAndSize(<const char *>out + i * <Py_ssize_t>size, <Py_ssize_t>size)
                for i in range(count)]
    finally:
        free(side)
        free(detector)
        free(out)
        free(data)
        free(sizes)


def watched_id(int type, pieces, uint64_t size):
    """Return (SHA-1 id, whether it looks like a collision attack) of an object of ``size`` bytes that comes in pieces.

    Type 0 is a message without a header.
    """
    cdef sg_watched one
    cdef sg_detector *detector = new_detector(False)
    cdef uint8_t out[20]
    cdef uint8_t header[32]
    cdef const uint8_t[::1] piece
    if detector == NULL:
        raise MemoryError
    try:
        sg_watched_begin(&one, detector, out)
        sg_hash_update(&one.hash, header, sg_object_header(type, size, header))
        for piece in pieces:
            if piece.shape[0]:
                with nogil:
                    sg_hash_update(&one.hash, &piece[0], <size_t>piece.shape[0])
        sg_watched_end(&one, out)
        sg_detect_flush(detector)
        return PyBytes_FromStringAndSize(<const char *>out, 20), detector.n_attacks > 0
    finally:
        free(detector)


def attack_vectors(bytes blocks not None, bint plain=False):
    """Return for each of up to 32 blocks a bit for each disturbance vector of _ubc.h that it may belong to; for tests."""
    cdef sg_detector *detector
    cdef uint8_t masks[4][32]
    cdef Py_ssize_t count = len(blocks) // 64, i
    if not 1 <= count <= 32 or len(blocks) % 64:
        raise Internal("one to 32 whole blocks are wanted", bytes=len(blocks))
    detector = new_detector(plain)
    if detector == NULL:
        raise MemoryError
    for i in range(32):
        detector.at[i] = <const uint8_t *>PyBytes_AS_STRING(blocks) + 64 * (i if i < count else 0)
    detector.waiting = <int>count
    detector.look(detector, masks)
    free(detector)
    return [masks[0][i] | masks[1][i] << 8 | masks[2][i] << 16 | <uint32_t>masks[3][i] << 24 for i in range(count)]


cdef inline bint room_for(void **memory, size_t *room, size_t need) noexcept nogil:
    """Make *memory hold ``need`` bytes, contents lost. False without memory."""
    cdef size_t want
    if need <= room[0]:
        return True
    want = need + need // 4 + 4096
    free(memory[0])
    memory[0] = malloc(want)
    room[0] = want if memory[0] != NULL else 0
    return memory[0] != NULL


cdef inline bint bit(const uint64_t *bits, size_t at) noexcept nogil:
    return (bits[at >> 6] >> (at & 63)) & 1


cdef inline void set_bit(uint64_t *bits, size_t at) noexcept nogil:
    bits[at >> 6] |= <uint64_t>1 << (at & 63)


cdef size_t last_bit(const uint64_t *bits, size_t at) noexcept nogil:
    """Return the highest set bit at or below ``at``; one is known to be set."""
    cdef size_t word = at >> 6
    cdef uint64_t v = bits[word] & (~<uint64_t>0 >> (63 - (at & 63)))
    while v == 0:
        word -= 1
        v = bits[word]
    return (word << 6) + 63 - <size_t>__builtin_clzll(v)


cdef extern from * nogil:
    int __builtin_clzll(unsigned long long v)
    uint32_t __builtin_bswap32(uint32_t v)
    uint64_t __builtin_bswap64(uint64_t v)


cdef void copy_bits(uint64_t *to, size_t to_at, const uint64_t *source, size_t at, size_t n) noexcept nogil:
    """OR n bits of ``source`` from ``at`` into ``to`` from ``to_at``."""
    cdef size_t take, word, shift
    cdef uint64_t v
    while n:
        word = at >> 6
        shift = at & 63
        take = 64 - shift
        if take > n:
            take = n
        v = source[word] >> shift
        if take < 64:
            v &= ((<uint64_t>1 << take) - 1)
        shift = to_at & 63
        to[to_at >> 6] |= v << shift
        if shift and take > 64 - shift:
            to[(to_at >> 6) + 1] |= v >> (64 - shift)
        at += take
        to_at += take
        n -= take


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    if 97 <= c <= 102:
        return c - 87
    return -1


cdef bint unhex(const uint8_t *text, size_t n, uint8_t *out) noexcept nogil:
    """Turn 2n lower-case hex digits into n bytes. False when one is not."""
    cdef size_t i
    cdef int high, low
    for i in range(n):
        high = hex_digit(text[2 * i])
        low = hex_digit(text[2 * i + 1])
        if high < 0 or low < 0:
            return False
        out[i] = <uint8_t>(high * 16 + low)
    return True


cdef class Resolver:
    """Packs whose objects are made and named; see ``_layout.Ingest``, which adds what comes then."""

    def __cinit__(self, int hash_kind, *, uint64_t size_max, uint64_t memory_max, uint64_t cache_max,
                  uint64_t objects_max, uint32_t depth_max, uint64_t raw_max=<uint64_t>1 << 40,
                  uint64_t delta_max=<uint64_t>1 << 40,
                  int spill=-1, size_t spill_bytes=SG_SPILL_BYTES, bint detect=False):
        self.spill.file = fcntl(spill, F_DUPFD_CLOEXEC, 0) if spill >= 0 else -1
        self.spill.least = spill_bytes if spill_bytes > 4096 else 4096
        self.hash_kind = hash_kind
        self.detect = detect and hash_kind == 1
        self.hash_size = sg_hash_size(hash_kind)
        self.size_max = size_max
        self.memory_max = memory_max
        self.cache_max = cache_max
        self.objects_max = objects_max
        self.raw_max = raw_max
        self.delta_max = delta_max if delta_max < size_max else size_max
        self.depth_max = depth_max if depth_max < 65535 else 65535

    def __dealloc__(self):
        cdef uint64_t i
        for i in range(self._lanes_used()):
            free_lane(&self.lanes[i])
        for i in range(self.n_buffers):
            PyBuffer_Release(&self.buffers[i])
        for i in range(self.n_buffers, self.n_packs):
            free(<void *>self.packs[i].data)
        free(self.buffers)
        free(self.packs)
        if self.objects != NULL:
            sg_spill_free(&self.spill, self.objects, self.room * sizeof(Object))
            sg_spill_free(&self.spill, self.ids, self.room * self.hash_size)
        free(self.roots)
        free(self.refs)
        free(self.sorted)
        free(self.buckets)
        free(self.keys)
        free(self.walk)
        free(self.sight)
        if self.spill.file >= 0:
            close(self.spill.file)

    cdef uint64_t _lanes_used(self) noexcept nogil:
        cdef uint64_t most = self.n_lanes if self.n_lanes > self.lanes_most else self.lanes_most
        return most if most < 64 else 64

    # ---- scanning ----

    def scan(self, pack not None, offsets=None):
        """Find the entries of one whole pack: header, entries, trailer.

        ``offsets`` (array of u64, ascending) are entry starts claimed by an .idx. They save inflating everything to
        find the ends; every stream must still end exactly where the next entry starts, or ``resolve`` says MalformedPack.
        """
        if self.linked:
            raise Internal("a pack was scanned after resolving began")
        if self.n_packs == 65535:
            raise LimitExceeded("too many packs in one import", limit=65535)
        cdef Py_buffer *grown = <Py_buffer *>realloc(self.buffers, (<size_t>self.n_packs + 1) * sizeof(Py_buffer))
        if grown == NULL:
            raise MemoryError
        self.buffers = grown
        cdef Pack *packs = <Pack *>realloc(self.packs, (<size_t>self.n_packs + 1) * sizeof(Pack))
        if packs == NULL:
            raise MemoryError
        self.packs = packs
        PyObject_GetBuffer(pack, &self.buffers[self.n_packs], PyBUF_SIMPLE)
        self.n_buffers += 1
        cdef Pack *p = &self.packs[self.n_packs]
        p.data = <const uint8_t *>self.buffers[self.n_packs].buf
        p.size = <uint64_t>self.buffers[self.n_packs].len
        p.first = self.n
        p.count = 0
        self.n_packs += 1
        if p.size < 12 + self.hash_size or memcmp(p.data, b"PACK", 4) != 0:
            raise MalformedPack("not a pack", bytes=int(p.size))
        cdef uint32_t version = sg_u32be(p.data + 4)
        cdef uint32_t count = sg_u32be(p.data + 8)
        if version != 2 and version != 3:
            raise MalformedPack("unknown pack version", version=int(version))
        # The smallest entry is a byte of header and eight of an empty zlib stream, so a larger claim is a lie.
        if <uint64_t>count * 9 > p.size - 12 - self.hash_size:
            raise MalformedPack("pack is too short for its object count", objects=int(count), bytes=int(p.size))
        if <uint64_t>self.n + count > self.objects_max or <uint64_t>self.n + count >= EXTERNAL:
            raise LimitExceeded("too many objects", objects=int(self.n) + int(count), limit=int(self.objects_max))
        self._grow(count)
        cdef const uint64_t[::1] hint
        cdef const uint64_t *starts = NULL
        if offsets is not None and count:
            hint = offsets
            if <uint64_t>hint.shape[0] != count:
                raise MalformedPack("index and pack disagree on the object count", objects=int(count))
            starts = &hint[0]
        cdef uint64_t failed_at = 0
        cdef sg_status st
        with nogil:
            st = self._scan(p, count, starts, &failed_at)
        if st != SG_OK:
            raise error_of(st, offset=int(failed_at), pack=int(self.n_packs - 1))

    cdef int _grow(self, uint32_t count) except -1:
        cdef size_t total = <size_t>self.n + count + 1, h = self.hash_size
        if total <= self.room:
            return 0
        if self.objects != NULL and total < self.room + (self.room >> 3):
            total = self.room + (self.room >> 3)  # bases come one by one
        cdef Object *objects = <Object *>sg_spill_new(&self.spill, total * sizeof(Object))
        cdef uint8_t *ids = <uint8_t *>sg_spill_new(&self.spill, total * h)
        if objects == NULL or ids == NULL:
            sg_spill_free(&self.spill, objects, total * sizeof(Object))
            sg_spill_free(&self.spill, ids, total * h)
            raise MemoryError
        if self.objects != NULL:
            memcpy(objects, self.objects, self.n * sizeof(Object))
            memcpy(ids, self.ids, self.n * h)
            sg_spill_free(&self.spill, self.objects, self.room * sizeof(Object))
            sg_spill_free(&self.spill, self.ids, self.room * h)
        self.objects = objects
        self.ids = ids
        self.room = total
        return 0

    cdef sg_status _scan(self, Pack *p, uint32_t count, const uint64_t *starts, uint64_t *failed_at) noexcept nogil:
        cdef uint64_t end = p.size - self.hash_size
        cdef uint64_t at = 12
        cdef uint32_t i
        cdef Object *o
        cdef sg_status st = SG_OK
        cdef sg_inflater *inflater = sg_inflater_new()
        cdef uint8_t *scratch = NULL
        cdef size_t room = 0
        cdef uint8_t trailer[32]
        cdef sg_hash hash
        if inflater == NULL:
            return SG_MEMORY
        for i in range(count):
            failed_at[0] = at
            o = &self.objects[self.n]
            memset(o, 0, sizeof(Object))
            o.pack = <uint16_t>(self.n_packs - 1)
            if starts != NULL and starts[i] != at:
                st = SG_RANGE
                break
            st = self._scan_head(p, o, at, end)
            if st != SG_OK:
                break
            if starts != NULL:
                at = starts[i + 1] if i + 1 < count else end
                if at > end or at < o.at + o.head + 8:
                    st = SG_RANGE
                    break
                o.body = at - o.at - o.head
                if o.size > sg_inflate_most(o.body):
                    st = SG_SIZE
                    break
            else:
                st = self._scan_body(p, o, inflater, &scratch, &room, end)
                if st != SG_OK:
                    break
                at = o.at + o.head + o.body
            self.n += 1
            p.count += 1
        free(scratch)
        sg_inflater_free(inflater)
        if st != SG_OK:
            return st
        failed_at[0] = at
        if at != end:
            return SG_RANGE if starts != NULL else SG_TYPE
        sg_hash_init(&hash, self.hash_kind)
        sg_hash_update(&hash, p.data, <size_t>end)
        sg_hash_final(&hash, trailer)
        return SG_OK if memcmp(trailer, p.data + end, self.hash_size) == 0 else SG_CHECKSUM

    cdef sg_status _scan_head(self, Pack *p, Object *o, uint64_t at, uint64_t end) noexcept nogil:
        """Read an entry's header and, for OFS_DELTA, find its base."""
        cdef int type = 0
        cdef size_t head = 0, more = 0
        cdef uint64_t distance = 0
        cdef uint32_t low, high, middle
        cdef sg_status st
        if at >= end:
            return SG_TRUNCATED
        st = sg_entry_header(p.data + at, <size_t>(end - at), &type, &o.size, &head)
        if st != SG_OK:
            return st
        o.at = at
        o.base = NONE
        o.similar = NONE
        o.child = NONE
        o.next = NONE
        o.heavy = NONE
        o.weight = 1
        o.keep = 1
        o.entry = <uint8_t>type
        if o.size > self.size_max:
            return SG_LIMIT
        if type == SG_OFS_DELTA:
            st = sg_ofs_distance(p.data + at + head, <size_t>(end - at) - head, &distance, &more)
            if st != SG_OK:
                return st
            if distance == 0 or distance > at - 12:
                return SG_RANGE
            low = p.first
            high = self.n
            while low < high:
                middle = low + ((high - low) >> 1)
                if self.objects[middle].at < at - distance:
                    low = middle + 1
                else:
                    high = middle
            if low >= self.n or self.objects[low].at != at - distance:
                return SG_RANGE
            o.base = low
        elif type == SG_REF_DELTA:
            more = self.hash_size
            if end - at - head < more:
                return SG_TRUNCATED
        o.head = <uint8_t>(head + more)
        return SG_OK

    cdef sg_status _scan_body(self, Pack *p, Object *o, sg_inflater *inflater, uint8_t **scratch, size_t *room,
                              uint64_t end) noexcept nogil:
        """Inflate an entry to find where it ends."""
        cdef const uint8_t *source = p.data + o.at + o.head
        cdef size_t left = <size_t>(end - o.at - o.head)
        cdef size_t used = 0
        cdef sg_status st
        if o.size > sg_inflate_most(left):
            return SG_SIZE
        if o.size > self.memory_max:
            if not room_for(<void **>scratch, room, WINDOW):
                return SG_MEMORY
            st = sg_inflate_stream(inflater, source, left, o.size, NULL, scratch[0], WINDOW, NULL, &used)
        else:
            if not room_for(<void **>scratch, room, <size_t>o.size):
                return SG_MEMORY
            st = sg_inflate(inflater, source, left, scratch[0], <size_t>o.size, &used)
        o.body = used
        return st

    # ---- families ----

    def link(self):
        """Join bases and children, once, after the last scan and before ``resolve``."""
        if self.linked:
            return
        self.linked = True
        self.roots = <uint32_t *>malloc((<size_t>self.n + 1) * 4)
        self.refs = <uint32_t *>malloc((<size_t>self.n + 1) * 4)
        if self.roots == NULL or self.refs == NULL:
            raise MemoryError
        cdef uint32_t i
        cdef Object *o
        cdef Object *b
        with nogil:
            i = self.n
            while i:
                i -= 1
                o = &self.objects[i]
                if o.entry == SG_OFS_DELTA:
                    b = &self.objects[o.base]
                    b.weight += o.weight
                    o.next = b.child
                    b.child = i
                    if b.heavy == NONE or self.objects[b.heavy].weight <= o.weight:
                        b.heavy = i
            for i in range(self.n):
                o = &self.objects[i]
                if o.entry == SG_REF_DELTA:
                    self.refs[self.n_refs] = i
                    self.n_refs += 1
                elif o.entry != SG_OFS_DELTA:
                    self.roots[self.n_roots] = i
                    self.n_roots += 1
            self._sort_refs()

    cdef const uint8_t *_ref_base(self, uint32_t i) noexcept nogil:
        """The base id that a REF_DELTA entry names."""
        cdef Object *o = &self.objects[i]
        return self.packs[o.pack].data + o.at + o.head - self.hash_size

    cdef int _compare_ref(self, uint32_t i, uint16_t pack, const uint8_t *oid) noexcept nogil:
        if self.objects[i].pack != pack:
            return -1 if self.objects[i].pack < pack else 1
        return memcmp(self._ref_base(i), oid, self.hash_size)

    cdef void _sort_refs(self) noexcept nogil:
        """Heap sort of the REF_DELTA entries by pack and base id: in place, n log n on any input."""
        cdef uint32_t n = self.n_refs, start = n >> 1, end = n, root, child, v
        while end > 1:
            if start > 0:
                start -= 1
            else:
                end -= 1
                v = self.refs[end]
                self.refs[end] = self.refs[0]
                self.refs[0] = v
            root = start
            while 2 * root + 1 < end:
                child = 2 * root + 1
                if child + 1 < end and self._ref_less(self.refs[child], self.refs[child + 1]):
                    child += 1
                if not self._ref_less(self.refs[root], self.refs[child]):
                    break
                v = self.refs[root]
                self.refs[root] = self.refs[child]
                self.refs[child] = v
                root = child

    cdef bint _ref_less(self, uint32_t a, uint32_t b) noexcept nogil:
        cdef int order = self._compare_ref(a, self.objects[b].pack, self._ref_base(b))
        return order < 0 or (order == 0 and a < b)

    cdef uint32_t _find_ref(self, uint16_t pack, const uint8_t *oid) noexcept nogil:
        """The first of ``refs`` that is not below (pack, oid)."""
        cdef uint32_t low = 0, high = self.n_refs, middle
        while low < high:
            middle = low + ((high - low) >> 1)
            if self._compare_ref(self.refs[middle], pack, oid) < 0:
                low = middle + 1
            else:
                high = middle
        return low

    def missing_bases(self):
        """Return the ids that unresolved REF_DELTA entries name and no object of the packs has, ascending.

        Some may come to light once others are there: add what is found, resolve, ask again.
        """
        cdef uint32_t k
        found = set()
        for k in range(self.n_refs):
            if self.objects[self.refs[k]].type == 0:
                found.add(PyBytes_FromStringAndSize(<const char *>self._ref_base(self.refs[k]),
                                                    <Py_ssize_t>self.hash_size))
        return sorted(found)

    def add_base(self, bytes oid not None, int type, bytes data not None, int hops):
        """Give the bytes of an object of the pool as a base; ``hops`` is the longest chain of external bases under it.

        Between rounds of ``resolve`` only. The id is believed. It is never laid out, and an object of the packs with
        the same id is left out: the pool has it.
        """
        if <size_t>len(oid) != self.hash_size or not 1 <= type <= 4:
            raise Internal("a base has an impossible id or type", type=type)
        if self.sorted != NULL or not self.linked:
            raise Internal("a base came too late or too early")
        if <uint64_t>self.n + 1 >= EXTERNAL:
            raise LimitExceeded("too many objects", objects=int(self.n))
        cdef uint32_t i = self.n
        cdef Object *o
        cdef uint32_t *roots = <uint32_t *>realloc(self.roots, (<size_t>self.n + 2) * 4)
        if roots == NULL:
            raise MemoryError
        self.roots = roots
        self._grow(1)
        if self._outside is None:
            self._outside = []
        self._outside.append(data)
        if self.n_lanes > self.lanes_most:
            self.lanes_most = self.n_lanes
        self.n_lanes = 0
        if self.taken > self.n_roots:
            self.taken = self.n_roots
        memcpy(self.ids + <size_t>i * self.hash_size, PyBytes_AS_STRING(oid), self.hash_size)
        o = &self.objects[i]
        memset(o, 0, sizeof(Object))
        o.base = NONE
        o.similar = NONE
        o.child = NONE
        o.next = NONE
        o.heavy = NONE
        o.weight = 1
        o.outside = 1
        o.pool_hops = <uint8_t>(hops if hops < 255 else 255)
        o.entry = <uint8_t>type
        o.at = <uint64_t><size_t>PyBytes_AS_STRING(data)  # its bytes, kept alive by _outside
        o.size = <uint64_t>len(data)
        o.raw = o.size
        self.roots[self.n_roots] = i
        self.n_roots += 1
        self.n += 1
        self.n_outside += 1
        self.outside_bytes += <uint64_t>len(data)

    def bases_alone(self):
        """Return the ids of the bases from outside that the packs do not bring as well. After ``finish``."""
        cdef uint32_t i
        cdef const uint8_t *oid
        out = set()
        for i in range(self.n - self.n_outside, self.n):
            oid = self.ids + <size_t>i * self.hash_size
            if not self._in_packs(oid):
                out.add(PyBytes_FromStringAndSize(<const char *>oid, <Py_ssize_t>self.hash_size))
        return out

    @property
    def bytes_outside(self):
        """Bytes of the bases from outside that are held."""
        return int(self.outside_bytes)

    @property
    def objects_scanned(self):
        """Entries found so far."""
        return int(self.n - self.n_outside)

    @property
    def objects_resolved(self):
        """Objects that were made, their ids all but a few; safe to read while other threads resolve."""
        return sg_load(&self.resolved)

    @property
    def bytes_made(self):
        """Bytes of all objects resolved, those of bases made again included."""
        return sg_load(&self.work)

    def resolve(self):
        """Resolve families until none is left; call it from as many threads as shall work (64 at most).

        Returns when no family is left to take or one failed; ``finish`` raises what went wrong.
        """
        self.link()
        cdef uint64_t number = sg_fetch_add(&self.n_lanes, 1)
        if number >= 64:
            raise Internal("too many resolving threads")
        cdef Lane *lane = &self.lanes[number]
        cdef uint64_t first, i
        cdef uint32_t root
        cdef sg_status st
        with nogil:
            lane.inflater = sg_inflater_new()
            lane.window = <uint8_t *>malloc(WINDOW)
            if self.detect:
                lane.detector = new_detector(False)
            if self.hash_kind == 1:
                # 1, for none: with REF_DELTA entries the id tells at once who waits for it.
                lane.side = side_by_side(0 if self.n_refs == 0 else 1, lane.detector)
                lane.beside = lane.side != NULL and lane.side.lanes > 0
            if lane.inflater == NULL or lane.window == NULL or (
                    self.detect and (lane.side == NULL or lane.detector == NULL)):
                sg_swap(&self.failure, 0, SG_MEMORY)
            while sg_load(&self.failure) == 0:
                first = sg_fetch_add(&self.taken, BATCH)
                if first >= self.n_roots:
                    break
                for i in range(first, min(first + BATCH, <uint64_t>self.n_roots)):
                    root = self.roots[i]
                    st = self._family(lane, <uint8_t>number, &root)
                    if st != SG_OK:
                        sg_swap(&self.failure, 0, <uint64_t>st + (<uint64_t>root << 8))
                        break
            end_side(lane)
            if lane.detector != NULL and lane.detector.n_attacks:
                first = <uint64_t>(<const uint8_t *>lane.detector.attacks[0] - self.ids) // self.hash_size
                sg_swap(&self.failure, 0, SG_ATTACK + (first << 8))
            free(lane.detector)
            lane.detector = NULL
            drop_frames(lane)
            free_scratch(lane)

    cdef sg_status _family(self, Lane *lane, uint8_t number, uint32_t *at) noexcept nogil:
        """Resolve a root and all that hangs from it. *at is the object at work."""
        cdef Frame *f
        cdef uint32_t child
        cdef bint last
        cdef Frame held
        cdef sg_status st = self._object(lane, number, at[0], NULL)
        if st != SG_OK:
            return st
        while lane.n_frames:
            f = &lane.frames[lane.n_frames - 1]
            child = self._next_child(f)
            if child == NONE:
                self._let_go(lane, f)
                f.data = NULL
                drop_frame(lane)
                continue
            at[0] = child
            if f.data == NULL:
                st = self._make_again(lane, f)
                if st != SG_OK:
                    return st
            last = f.heavy == NONE and f.child == NONE and f.ref_at == f.ref_end
            held = f[0]
            if last:
                # The frame goes before its last child's comes, so a chain holds two objects, however deep.
                lane.n_frames -= 1
                lane.retained -= self.objects[held.object].raw
            self.objects[child].base = held.object
            st = self._object(lane, number, child, &held)
            if last:
                self._let_go(lane, &held)
                free(held.bounds)
            if st != SG_OK:
                return st
            if lane.retained > self.cache_max:
                self._evict(lane)
        return SG_OK

    cdef uint32_t _next_child(self, Frame *f) noexcept nogil:
        """Light children by offset first, then those by id, the heaviest last."""
        cdef uint32_t i
        while f.child != NONE:
            i = f.child
            f.child = self.objects[i].next
            if i != self.objects[f.object].heavy:
                # Look ahead, so that "no child left" is known when the last one is taken.
                if f.child == self.objects[f.object].heavy and f.child != NONE:
                    f.child = self.objects[f.child].next
                return i
        while f.ref_at < f.ref_end:
            i = self.refs[f.ref_at]
            f.ref_at += 1
            if sg_claim(&self.objects[i].claimed):
                return i
        i = f.heavy
        f.heavy = NONE
        return i

    cdef void _evict(self, Lane *lane) noexcept nogil:
        """Drop the oldest bases until the rest fits; the newest stays."""
        cdef size_t i
        cdef Frame *f
        for i in range(lane.n_frames - 1 if lane.n_frames else 0):
            f = &lane.frames[i]
            if f.data != NULL:
                self._let_go(lane, f)
                f.data = NULL
                lane.retained -= self.objects[f.object].raw
                if lane.retained <= self.cache_max:
                    return

    cdef void _let_go(self, Lane *lane, Frame *f) noexcept nogil:
        """Free a frame's data, now or once its id is known."""
        if lane.side == NULL or sg_sha1_leave(lane.side, f.data, <size_t>self.objects[f.object].raw):
            free(f.data)

    cdef void _hash(self, Lane *lane, Object *o, uint8_t *data, bint stays, uint8_t *oid) noexcept nogil:
        """Have the id of an object computed beside others; ``data`` is a frame's, which ``stays``, or the result."""
        cdef uint8_t *owned = NULL
        cdef size_t room = 0, size = <size_t>o.raw
        if not stays and size <= SIDE_MAX:
            if lane.result_room <= 2 * size + 65536:
                owned = data
                room = lane.result_room
                lane.result = NULL
                lane.result_room = 0
            else:
                owned = sg_sha1_spare(lane.side, &room)
                if room_for(<void **>&owned, &room, size + 1):
                    memcpy(owned, data, size)
                    data = owned
        if size > SIDE_MAX or (owned == NULL and not stays):
            self._hash_now(lane, o, data, oid)
            return
        sg_sha1_add(lane.side, o.type, data, size, oid, owned, room)
        if lane.result == NULL:
            lane.result = sg_sha1_spare(lane.side, &lane.result_room)
            if lane.result == NULL:
                lane.result_room = 0

    cdef void _hash_now(self, Lane *lane, Object *o, const uint8_t *data, uint8_t *oid) noexcept nogil:
        """Compute the id of an object alone."""
        if lane.detector != NULL:
            sg_sha1_now(lane.side, o.type, data, <size_t>o.raw, oid)
        else:
            sg_object_id(self.hash_kind, o.type, data, <size_t>o.raw, oid)

    cdef sg_status _make_again(self, Lane *lane, Frame *f) noexcept nogil:
        """Make the data of a frame whose data was dropped."""
        cdef size_t size = 0
        cdef sg_status st = self._data(lane, f.object, &f.data, &size)
        if st == SG_OK:
            lane.retained += size
            if sg_load(&self.work) > self.raw_max:
                return SG_LIMIT  # bases made again count too
        return st

    cdef sg_status _data(self, Lane *lane, uint32_t i, uint8_t **out, size_t *out_size) noexcept nogil:
        """Make an object's bytes from its chain, in memory of its own."""
        cdef uint32_t *chain
        cdef uint32_t length = 1, at = i
        cdef uint8_t *data = NULL
        cdef uint8_t *made
        cdef size_t size, used = 0
        cdef Object *o
        cdef sg_status st = SG_OK
        while self.objects[at].base != NONE:
            at = self.objects[at].base
            length += 1
        chain = <uint32_t *>malloc(<size_t>length * 4)
        if chain == NULL:
            return SG_MEMORY
        at = i
        size = length
        while True:
            size -= 1
            chain[size] = at
            if size == 0:
                break
            at = self.objects[at].base
        for at in range(length):
            o = &self.objects[chain[at]]
            if at == 0:
                data = <uint8_t *>malloc(<size_t>o.size + 1)
                if data == NULL:
                    st = SG_MEMORY
                    break
                st = self._inflate(lane, o, data)
                size = <size_t>o.size
            else:
                if not room_for(<void **>&lane.spare, &lane.spare_room, <size_t>o.size):
                    st = SG_MEMORY
                    break
                st = self._inflate(lane, o, lane.spare)
                if st != SG_OK:
                    break
                made = <uint8_t *>malloc(<size_t>o.raw + 1)
                if made == NULL:
                    st = SG_MEMORY
                    break
                st = sg_delta_apply(data, size, lane.spare, <size_t>o.size, made, <size_t>o.raw, NULL, 0, &used)
                free(data)
                data = made
                size = <size_t>o.raw
            if st != SG_OK:
                break
            sg_fetch_add(&self.work, size)
        free(chain)
        if st != SG_OK:
            free(data)
            return st
        out[0] = data
        out_size[0] = size
        return SG_OK

    cdef sg_status _inflate(self, Lane *lane, Object *o, uint8_t *out) noexcept nogil:
        """Inflate an entry's body; it must fill its span exactly."""
        cdef const uint8_t *source
        cdef size_t used = 0
        cdef sg_status st
        if o.outside:
            memcpy(out, <const uint8_t *><size_t>o.at, <size_t>o.size)
            return SG_OK
        source = self.packs[o.pack].data + o.at + o.head
        st = sg_inflate(lane.inflater, source, <size_t>o.body, out, <size_t>o.size, &used)
        if st == SG_OK and used != o.body:
            return SG_RANGE
        return st

    cdef sg_status _object(self, Lane *lane, uint8_t number, uint32_t i, Frame *base) noexcept nogil:
        """Make object ``i`` (from ``base``, NULL for a root): id, edges, and a frame when children wait."""
        cdef Object *o = &self.objects[i]
        cdef uint8_t *oid = self.ids + <size_t>i * self.hash_size
        cdef uint64_t base_size = 0, result_size = 0
        cdef size_t at = 0, n_copies = 0
        cdef uint32_t ref_at = 0, ref_end = 0
        cdef bint waits
        cdef sg_status st
        if base == NULL:
            o.type = o.entry
            o.raw = o.size
            if o.size > self.memory_max and o.type == BLOB and o.child == NONE and not o.outside:
                st = self._stream_id(lane, o, oid)
                if st != SG_OK:
                    return st
                if self.n_refs == 0 or not self._has_ref(o.pack, oid):
                    o.edge_at = lane.n_edges
                    sg_fetch_add(&self.resolved, 1)
                    return SG_OK
            if not room_for(<void **>&lane.result, &lane.result_room, <size_t>o.size):
                return SG_MEMORY
            st = self._inflate(lane, o, lane.result)
        else:
            o.type = self.objects[base.object].type
            if self.objects[base.object].depth >= self.depth_max:
                return SG_DEPTH
            o.depth = <uint16_t>(self.objects[base.object].depth + 1)
            if not room_for(<void **>&lane.delta, &lane.delta_room, <size_t>o.size):
                return SG_MEMORY
            st = self._inflate(lane, o, lane.delta)
            if st != SG_OK:
                return st
            st = sg_delta_sizes(lane.delta, <size_t>o.size, &base_size, &result_size, &at)
            if st != SG_OK:
                return st
            if result_size > self.delta_max or (o.type == TREE and result_size >= EXTERNAL):
                return SG_LIMIT
            o.raw = result_size
            if not room_for(<void **>&lane.result, &lane.result_room, <size_t>result_size):
                return SG_MEMORY
            if o.type == TREE and not room_for(<void **>&lane.copies, &lane.copies_room,
                                               (<size_t>o.size + 1) * sizeof(sg_copy)):
                return SG_MEMORY
            st = sg_delta_apply(base.data, <size_t>self.objects[base.object].raw, lane.delta, <size_t>o.size,
                                lane.result, <size_t>result_size, lane.copies if o.type == TREE else NULL,
                                <size_t>o.size, &n_copies)
        if st != SG_OK:
            return st
        # A few kilobytes of deltas can ask for terabytes of objects: time is bounded by what is made in all.
        if sg_fetch_add(&self.work, o.raw) > self.raw_max:
            return SG_LIMIT
        if not o.outside:
            if not lane.beside:
                self._hash_now(lane, o, lane.result, oid)
            if self.severity != NULL and o.type != BLOB:
                lane.severity = self.severity
                lane.checked = i
                lane.hash_size = self.hash_size
                sg_fsck_object(self.hash_kind, o.type, lane.result, <size_t>o.raw, self.severity, fsck_found,
                               fsck_special, lane)
                if lane.no_memory:
                    return SG_MEMORY
        if self.n_refs:
            ref_at = self._find_ref(o.pack, oid)
            ref_end = ref_at
            while ref_end < self.n_refs and self._compare_ref(self.refs[ref_end], o.pack, oid) == 0:
                ref_end += 1
        waits = o.child != NONE or ref_at < ref_end
        o.lane = number
        o.edge_at = lane.n_edges
        cdef uint64_t *bounds = NULL
        if o.type == TREE:
            if waits:
                bounds = <uint64_t *>calloc((<size_t>o.raw >> 6) + 2, 8)
                if bounds == NULL:
                    return SG_MEMORY
            if base != NULL:
                o.similar = base.object
            st = self._tree(lane, <size_t>o.raw, base, n_copies, bounds)
        elif o.type == COMMIT:
            st = self._commit(lane, o)
        elif o.type == TAG:
            st = self._tag(lane, <size_t>o.raw)
        if st == SG_OK and lane.n_edges - o.edge_at >= EXTERNAL:
            st = SG_LIMIT
        if o.outside:
            lane.n_edges = o.edge_at  # whoever brought it has noted what it links to
        o.edges = <uint32_t>(lane.n_edges - o.edge_at)
        if st == SG_OK and waits:
            st = self._push(lane, i, bounds, ref_at, ref_end)
        if st != SG_OK:
            free(bounds)
            return st
        if not o.outside:
            if lane.beside:
                self._hash(lane, o, lane.frames[lane.n_frames - 1].data if waits else lane.result, waits, oid)
            sg_fetch_add(&self.resolved, 1)
        return SG_OK

    cdef bint _has_ref(self, uint16_t pack, const uint8_t *oid) noexcept nogil:
        cdef uint32_t at = self._find_ref(pack, oid)
        return at < self.n_refs and self._compare_ref(self.refs[at], pack, oid) == 0

    cdef sg_status _stream_id(self, Lane *lane, Object *o, uint8_t *oid) noexcept nogil:
        """Compute the id of a large blob without holding it."""
        cdef sg_watched one
        cdef uint8_t header[32]
        cdef size_t used = 0
        cdef sg_status st
        if lane.detector != NULL:
            sg_watched_begin(&one, lane.detector, oid)
        else:
            sg_hash_init(&one.hash, self.hash_kind)
        sg_hash_update(&one.hash, header, sg_object_header(o.type, o.size, header))
        st = sg_inflate_stream(lane.inflater, self.packs[o.pack].data + o.at + o.head, <size_t>o.body, o.size, NULL,
                               lane.window, WINDOW, &one.hash, &used)
        if st != SG_OK:
            return st
        if lane.detector != NULL:
            sg_watched_end(&one, oid)
        else:
            sg_hash_final(&one.hash, oid)
        sg_fetch_add(&self.work, o.size)
        return SG_OK if used == o.body else SG_RANGE

    cdef sg_status _push(self, Lane *lane, uint32_t i, uint64_t *bounds, uint32_t ref_at,
                         uint32_t ref_end) noexcept nogil:
        """Keep ``lane.result`` as a base."""
        cdef Frame *f
        cdef Frame *grown
        cdef size_t size = <size_t>self.objects[i].raw
        if lane.n_frames == lane.frames_room:
            grown = <Frame *>realloc(lane.frames, (lane.frames_room + 64) * sizeof(Frame))
            if grown == NULL:
                return SG_MEMORY
            lane.frames = grown
            lane.frames_room += 64
        f = &lane.frames[lane.n_frames]
        if lane.result_room > 2 * size + 4096:
            f.data = <uint8_t *>malloc(size + 1)
            if f.data == NULL:
                return SG_MEMORY
            memcpy(f.data, lane.result, size)
        else:
            f.data = lane.result
            lane.result = NULL
            lane.result_room = 0
        f.bounds = bounds
        f.object = i
        f.child = self.objects[i].child
        f.heavy = self.objects[i].heavy
        if f.child == f.heavy and f.child != NONE:
            f.child = self.objects[f.child].next
        f.ref_at = ref_at
        f.ref_end = ref_end
        lane.n_frames += 1
        lane.retained += size
        return SG_OK

    # ---- edges ----

    cdef sg_status _edge(self, Lane *lane, const uint8_t *oid) noexcept nogil:
        cdef void *grown
        cdef uint64_t room
        if lane.n_edges == lane.edges_room:
            room = lane.edges_room * 3 // 2 + 16384
            grown = sg_spill_grow(&self.spill, lane.edges, <size_t>lane.edges_room * self.hash_size,
                                  <size_t>lane.n_edges * self.hash_size, <size_t>room * self.hash_size)
            if grown == NULL:
                return SG_MEMORY
            lane.edges = <uint8_t *>grown
            lane.spill = &self.spill
            lane.hash_size = self.hash_size
            if self.noting:
                grown = realloc(lane.names, <size_t>room * 4)
                if grown == NULL:
                    sg_spill_free(&self.spill, lane.edges, <size_t>room * self.hash_size)
                    lane.edges = NULL
                    lane.edges_room = lane.n_edges = 0
                    return SG_MEMORY
                lane.names = <uint32_t *>grown
            lane.edges_room = room
        if self.noting:
            lane.names[lane.n_edges] = 0
        memcpy(lane.edges + lane.n_edges * self.hash_size, oid, self.hash_size)
        lane.n_edges += 1
        return SG_OK

    cdef sg_status _tree(self, Lane *lane, size_t n, Frame *base, size_t n_copies, uint64_t *bounds) noexcept nogil:
        """Note the children of the tree in ``lane.result`` that its base does not have.

        Where a copy instruction starts on an entry of the base, all entries up to the last boundary inside the copy
        are the base's own: they are skipped without being read.
        """
        cdef const uint8_t *data = lane.result
        cdef size_t p = 0, k = 0, source, stop, end
        cdef sg_copy *c
        cdef bint link
        cdef sg_status st
        while p < n:
            if base != NULL:
                while k < n_copies and <size_t>lane.copies[k].to + lane.copies[k].length <= p:
                    k += 1
                if k < n_copies and lane.copies[k].to <= p:
                    c = &lane.copies[k]
                    source = <size_t>c.from_ + (p - c.to)
                    if bit(base.bounds, source):
                        stop = last_bit(base.bounds, <size_t>c.from_ + c.length)
                        if stop > source:
                            if bounds != NULL:
                                copy_bits(bounds, p, base.bounds, source, stop - source)
                            p += stop - source
                            continue
            st = tree_entry(data, n, p, self.hash_size, &end, &link)
            if st != SG_OK:
                return st
            if bounds != NULL:
                set_bit(bounds, p)
            if not link:
                st = self._edge(lane, data + end - self.hash_size)
                if st != SG_OK:
                    return st
                if self.noting:
                    lane.names[lane.n_edges - 1] = name_hash(data + p, end - p - self.hash_size)
            p = end
        if bounds != NULL:
            set_bit(bounds, n)
        return SG_OK

    cdef sg_status _commit(self, Lane *lane, Object *o) noexcept nogil:
        """Note tree, parents and committer date."""
        cdef const uint8_t *data = lane.result
        cdef size_t n = <size_t>o.raw, p = 0, line, hex = 2 * self.hash_size
        cdef uint8_t oid[32]
        cdef const uint8_t *found
        cdef sg_status st
        if n < 6 + hex or memcmp(data, b"tree ", 5) != 0 or data[5 + hex] != 10 or not unhex(data + 5, self.hash_size, oid):
            return SG_OBJECT
        st = self._edge(lane, oid)
        p = 6 + hex
        while st == SG_OK and n - p >= 8 + hex and memcmp(data + p, b"parent ", 7) == 0:
            if data[p + 7 + hex] != 10 or not unhex(data + p + 7, self.hash_size, oid):
                return SG_OBJECT
            st = self._edge(lane, oid)
            p += 8 + hex
        if st != SG_OK:
            return st
        while p < n and data[p] != 10:
            found = <const uint8_t *>memchr(data + p, 10, n - p)
            line = <size_t>(found - (data + p)) if found != NULL else n - p
            if line > 10 and memcmp(data + p, b"committer ", 10) == 0:
                o.date = date_of(data + p, line)
                break
            p += line + 1
        return SG_OK

    cdef sg_status _tag(self, Lane *lane, size_t n) noexcept nogil:
        """Note what a tag names."""
        cdef const uint8_t *data = lane.result
        cdef size_t hex = 2 * self.hash_size
        cdef uint8_t oid[32]
        if n < 8 + hex or memcmp(data, b"object ", 7) != 0 or data[7 + hex] != 10 or not unhex(data + 7, self.hash_size, oid):
            return SG_OBJECT
        return self._edge(lane, oid)

    def note_names(self):
        """Note the names of tree entries while trees are made, for ``_delta.Chooser``. Before ``resolve``."""
        if self.linked:
            raise Internal("names are noted from the start or never")
        self.noting = True

    # ---- fsck ----

    def check_objects(self, bytes severity not None):
        """Check every object while it is made, by a FsckConfig's table. Before ``resolve``."""
        if len(severity) != SG_FSCK_TABLE:
            raise Internal("not a table of severities", given=len(severity))
        self._severity = severity
        self.severity = <const uint8_t *>PyBytes_AS_STRING(severity)

    def findings(self):
        """Return what fsck found as (object, message, offset), by object: the first thousand errors, some warnings."""
        cdef uint64_t k
        cdef uint32_t f
        out = []
        for k in range(self._lanes_used()):
            for f in range(self.lanes[k].n_findings):
                out.append((int(self.lanes[k].findings[f].object), int(self.lanes[k].findings[f].message),
                            int(self.lanes[k].findings[f].offset)))
        out.sort()
        return out

    def specials(self):
        """Return (kind, id) of the blobs that trees call .gitmodules (1) or .gitattributes (2), each once, ascending."""
        cdef uint64_t k, f
        cdef const uint8_t *row
        found = set()
        for k in range(self._lanes_used()):
            for f in range(self.lanes[k].n_specials):
                row = self.lanes[k].specials + f * (self.hash_size + 1)
                found.add((int(row[0]), PyBytes_FromStringAndSize(<const char *>row + 1, <Py_ssize_t>self.hash_size)))
        return sorted(found)

    # ---- ids ----

    def finish(self):
        """Raise what ``resolve`` met, then sort the ids and keep one copy of each object.

        An id twice in one pack is MalformedPack; over several packs the copy with the shorter chain stays.
        """
        cdef uint64_t failure = sg_load(&self.failure)
        cdef uint32_t i
        if failure or self.resolved != self.n - self.n_outside:
            # At once: who holds the error may hold this too, and it may be gigabytes.
            for i in range(<uint32_t>self._lanes_used()):
                drop_frames(&self.lanes[i])
                free_scratch(&self.lanes[i])
        if failure:
            i = <uint32_t>(failure >> 8)
            if (failure & 255) == SG_ATTACK:
                raise error_of(SG_ATTACK, oid=self.id_at(i).hex())
            raise error_of(<int>(failure & 255), offset=int(self.objects[i].at), pack=int(self.objects[i].pack))
        if self.resolved != self.n - self.n_outside:
            for i in range(self.n):
                if self.objects[i].type == 0:
                    if self.objects[i].entry == SG_REF_DELTA:
                        raise MalformedPack(
                            "delta base is missing",
                            base=self._ref_base(i)[:<Py_ssize_t>self.hash_size].hex(),
                            offset=int(self.objects[i].at),
                            pack=int(self.objects[i].pack),
                        )
            raise MalformedPack("delta base is missing", unresolved=int(self.n - self.n_outside - self.resolved))
        for i in range(<uint32_t>self._lanes_used()):
            free_scratch(&self.lanes[i])
        self.sorted = <uint32_t *>malloc((<size_t>self.n + 1) * 4)
        if self.sorted == NULL:
            raise MemoryError
        if self.n > SORT_SMALL:
            self.buckets = <uint32_t *>calloc(65537, 4)
            if self.buckets == NULL:
                raise MemoryError
        cdef uint32_t twice = NONE
        cdef bint ok = True
        with nogil:
            if self.buckets == NULL:
                self._sort_few()
            else:
                ok = self._sort()
            if ok:
                twice = self._unique()
        if not ok:
            raise MemoryError
        if twice != NONE:
            if twice & EXTERNAL:
                twice &= ~<uint32_t>EXTERNAL
                raise MalformedPack("two objects with one id differ in size or type", oid=self.id_at(twice).hex())
            raise MalformedPack("object stands twice in one pack", oid=self.id_at(twice).hex(),
                                offset=int(self.objects[twice].at), pack=int(self.objects[twice].pack))

    cdef void _sort_few(self) noexcept nogil:
        """Sort a few object indices by id, by insertion: a one-commit push would pay 1 ms for the radix sort's tables."""
        cdef uint32_t i, j
        for i in range(self.n):
            j = i
            while j and memcmp(self.ids + <size_t>self.sorted[j - 1] * self.hash_size,
                               self.ids + <size_t>i * self.hash_size, self.hash_size) > 0:
                self.sorted[j] = self.sorted[j - 1]
                j -= 1
            self.sorted[j] = i

    cdef bint _sort(self) noexcept nogil:
        """Sort object indices by id: radix over the first 8 bytes, then whole ids where those are equal."""
        cdef uint64_t *keys = <uint64_t *>malloc((<size_t>self.n + 1) * 8)
        cdef uint64_t *keys2 = <uint64_t *>malloc((<size_t>self.n + 1) * 8)
        cdef uint32_t *other = <uint32_t *>malloc((<size_t>self.n + 1) * 4)
        cdef uint32_t *source = self.sorted
        cdef uint32_t *target = other
        cdef uint32_t *swap
        cdef uint64_t *keys_swap
        cdef size_t counts[65536]
        cdef size_t i, j, total, c
        cdef unsigned int shift
        cdef uint32_t v
        cdef bint ok = keys != NULL and keys2 != NULL and other != NULL
        if ok:
            for i in range(self.n):
                keys[i] = sg_u64be(self.ids + i * self.hash_size)
                source[i] = <uint32_t>i
            for shift in range(0, 64, 16):
                memset(counts, 0, sizeof(counts))
                for i in range(self.n):
                    counts[(keys[i] >> shift) & 65535] += 1
                total = 0
                for i in range(65536):
                    c = counts[i]
                    counts[i] = total
                    if shift == 48:
                        self.buckets[i] = <uint32_t>total
                    total += c
                for i in range(self.n):
                    j = counts[(keys[i] >> shift) & 65535]
                    counts[(keys[i] >> shift) & 65535] = j + 1
                    keys2[j] = keys[i]
                    target[j] = source[i]
                swap = source
                source = target
                target = swap
                keys_swap = keys
                keys = keys2
                keys2 = keys_swap
            self.buckets[65536] = self.n
            for i in range(1, self.n):  # four passes: the result is in self.sorted again
                j = i
                v = source[i]
                while j and keys[j - 1] == keys[i] and memcmp(self.ids + <size_t>source[j - 1] * self.hash_size,
                                                              self.ids + <size_t>v * self.hash_size, self.hash_size) > 0:
                    source[j] = source[j - 1]
                    j -= 1
                source[j] = v
        if ok:
            self.keys = keys
        else:
            free(keys)
        free(keys2)
        free(other)
        return ok

    cdef bint _same_id(self, uint32_t a, uint32_t b) noexcept nogil:
        return memcmp(self.ids + <size_t>a * self.hash_size, self.ids + <size_t>b * self.hash_size, self.hash_size) == 0

    cdef uint32_t _unique(self) noexcept nogil:
        """Of equal ids keep the one with the shortest chain; NONE, or an object that makes it impossible."""
        cdef uint32_t i = 0, j, best
        cdef Object *o
        cdef Object *b
        cdef bint outside
        while i < self.n:
            best = self.sorted[i]
            outside = self.objects[best].outside
            j = i + 1
            while j < self.n and self._same_id(self.sorted[i], self.sorted[j]):
                o = &self.objects[self.sorted[j]]
                b = &self.objects[best]
                if o.raw != b.raw or o.type != b.type:
                    return self.sorted[j] | EXTERNAL
                if o.outside or b.outside:
                    # The pool has it. What the packs bring goes: a base of itself by a detour must not arise.
                    outside = True
                    if o.outside:
                        best = self.sorted[j]
                    j += 1
                    continue
                if o.pack == b.pack:
                    return self.sorted[j]
                if o.depth < b.depth:
                    best = self.sorted[j]
                j += 1
            if j > i + 1:
                for j in range(i, j):
                    self.objects[self.sorted[j]].keep = 1 if self.sorted[j] == best and not outside else 0
                    # The first of equal ids is the one that lookups find.
                    if self.sorted[j] == best:
                        self.sorted[j] = self.sorted[i]
                        self.sorted[i] = best
                j += 1
            i = j
        return NONE

    cdef uint32_t _find(self, const uint8_t *oid) noexcept nogil:
        """The object with an id, the kept one of equal ids; NONE without."""
        cdef uint32_t low = self._rank(oid)
        if low < self.n and memcmp(self.ids + <size_t>self.sorted[low] * self.hash_size, oid, self.hash_size) == 0:
            return self.sorted[low]
        return NONE

    cdef uint32_t _rank(self, const uint8_t *oid) noexcept nogil:
        """How many of the sorted ids are below ``oid``."""
        cdef uint32_t low = 0, high = self.n, middle
        cdef uint64_t key
        if self.keys != NULL:
            # The first 8 bytes decide but for equal ids, and lie together; ids are all over the memory.
            key = sg_u64be(oid)
            low = self.buckets[key >> 48]
            high = self.buckets[(key >> 48) + 1]
            while high - low > SCAN_KEYS:
                middle = low + ((high - low) >> 1)
                if self.keys[middle] < key:
                    low = middle + 1
                else:
                    high = middle
            while low < high and self.keys[low] < key:
                low += 1
            high = self.buckets[(key >> 48) + 1]
            while low < high and self.keys[low] == key and memcmp(
                    self.ids + <size_t>self.sorted[low] * self.hash_size, oid, self.hash_size) < 0:
                low += 1
            return low
        while low < high:
            middle = low + ((high - low) >> 1)
            if memcmp(self.ids + <size_t>self.sorted[middle] * self.hash_size, oid, self.hash_size) < 0:
                low = middle + 1
            else:
                high = middle
        return low

    def id_at(self, uint32_t i):
        """Return the id of object ``i``."""
        if i >= self.n:
            raise IndexError(i)
        return PyBytes_FromStringAndSize(<char *>self.ids + <size_t>i * self.hash_size, <Py_ssize_t>self.hash_size)

    def find(self, bytes oid not None):
        """Return the index of the object with that id, -1 without."""
        if <size_t>len(oid) != self.hash_size or self.sorted == NULL:
            return -1
        cdef uint32_t i = self._find(<const uint8_t *>PyBytes_AS_STRING(oid))
        return -1 if i == NONE else int(i)

    def type_at(self, uint32_t i):
        """Return the type (1 commit, 2 tree, 3 blob, 4 tag) of object ``i``."""
        if i >= self.n:
            raise IndexError(i)
        return self.objects[i].type

    def size_at(self, uint32_t i):
        """Return the size of object ``i``, in bytes."""
        if i >= self.n:
            raise IndexError(i)
        return int(self.objects[i].raw)

    def sorted_ids(self):
        """Return all ids as one flat bytes, ascending; equal ids stand as often as they came."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(self.n * self.hash_size))
        cdef char *to = PyBytes_AS_STRING(out)
        cdef uint32_t i
        for i in range(self.n):
            memcpy(to + i * self.hash_size, self.ids + <size_t>self.sorted[i] * self.hash_size, self.hash_size)
        return out

    def facts_at(self, uint32_t rank):
        """Return (type, size) of the object at ``rank`` in ``sorted_ids``."""
        if rank >= self.n:
            raise IndexError(rank)
        cdef Object *o = &self.objects[self.sorted[rank]]
        return int(o.type), int(o.raw)

    def drop(self, const uint8_t[::1] ranks not None):
        """Leave out the objects that the pool has: byte ``ranks`` [rank in ``sorted_ids``] is 1 + the hops there, else 0."""
        if <size_t>ranks.shape[0] != self.n:
            raise Internal("one byte for each object is wanted", objects=int(self.n))
        cdef Py_ssize_t i
        for i in range(<Py_ssize_t>self.n):
            if ranks[i]:
                self.objects[self.sorted[i]].keep = 0
                self.objects[self.sorted[i]].pool_hops = <uint8_t>(ranks[i] - 1)

    def read(self, uint32_t i):
        """Return the bytes of object ``i``."""
        if i >= self.n or self.objects[i].type == 0:
            raise IndexError(i)
        cdef Lane lane
        cdef uint8_t *data = NULL
        cdef size_t size = 0
        cdef sg_status st
        memset(&lane, 0, sizeof(Lane))
        with nogil:
            lane.inflater = sg_inflater_new()
            st = SG_MEMORY if lane.inflater == NULL else self._data(&lane, i, &data, &size)
            free_lane(&lane)
        if st != SG_OK:
            raise error_of(st, offset=int(self.objects[i].at), pack=int(self.objects[i].pack))
        try:
            return PyBytes_FromStringAndSize(<char *>data, <Py_ssize_t>size)
        finally:
            free(data)

    def target(self, bytes oid not None):
        """Return the id that the tag ``oid`` names, None when it is not a tag of this ingest."""
        found = self.find(oid)
        if found < 0 or self.objects[<uint32_t>found].type != TAG:
            return None
        cdef Object *o = &self.objects[<uint32_t>found]
        return PyBytes_FromStringAndSize(<char *>self.lanes[o.lane].edges + o.edge_at * self.hash_size,
                                         <Py_ssize_t>self.hash_size)

    # ---- links ----

    def links_outside(self):
        """Return the ids that objects of the packs link to and the packs do not hold, ascending, each once.

        Left-out objects count too. When all of them are there with all that they reach, so is what the packs hold.
        """
        cdef uint32_t i, e
        cdef Object *o
        cdef const uint8_t *oid
        cdef size_t h = self.hash_size
        if self.sorted == NULL:
            raise Internal("links before finish")
        found = set()
        for i in range(self.n - self.n_outside):
            o = &self.objects[i]
            for e in range(o.edges):
                oid = self.lanes[o.lane].edges + (o.edge_at + e) * h
                if not self._in_packs(oid):
                    found.add(PyBytes_FromStringAndSize(<const char *>oid, <Py_ssize_t>h))
        return sorted(found)

    cdef bint _in_packs(self, const uint8_t *oid) noexcept nogil:
        cdef uint32_t i = self._find(oid), rank
        if i == NONE:
            return False
        if not self.objects[i].outside:
            return True
        # Of equal ids the base from outside is found first.
        rank = self._rank(oid)
        while rank < self.n and memcmp(self.ids + <size_t>self.sorted[rank] * self.hash_size, oid, self.hash_size) == 0:
            if not self.objects[self.sorted[rank]].outside:
                return True
            rank += 1
        return False

    def index_rows(self):
        """Return (ids flat ascending, CRC32 of each entry u32 BE, pack offset of each u64 BE) for a pack's .idx.

        Only for one pack; every object once.
        """
        if self.n_buffers != 1 or self.sorted == NULL:
            raise Internal("an .idx is made of one resolved pack")
        cdef bytes crcs = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self.n * 4)
        cdef bytes offsets = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self.n * 8)
        cdef uint8_t *crc_to = <uint8_t *>PyBytes_AS_STRING(crcs)
        cdef uint8_t *offset_to = <uint8_t *>PyBytes_AS_STRING(offsets)
        cdef uint32_t rank
        cdef Object *o
        with nogil:
            for rank in range(self.n):
                o = &self.objects[self.sorted[rank]]
                sg_put_u32(crc_to + <size_t>rank * 4, __builtin_bswap32(
                    sg_crc32(0, self.packs[o.pack].data + o.at, <size_t>(o.head + o.body))))
                sg_put_u64(offset_to + <size_t>rank * 8, __builtin_bswap64(o.at))
        return self.sorted_ids(), crcs, offsets

def error_of(int st, **facts):
    """Return the one typed error that a status stands for."""
    if st == SG_MEMORY:
        return MemoryError()
    if st == SG_LIMIT:
        return LimitExceeded("object is over a size limit", **facts)
    if st == SG_ATTACK:
        return CollisionAttack("object looks like a SHA-1 collision attack", **facts)
    if st == SG_OBJECT:
        return MalformedObject("object does not parse as its type", **facts)
    return MalformedPack(MESSAGES.get(st, "pack is damaged"), **facts)


MESSAGES = {
    SG_TRUNCATED: "pack ends inside an entry",
    SG_DEFLATE: "entry is not a valid zlib stream",
    SG_SIZE: "entry inflates to another size than it claims",
    SG_TYPE: "unknown entry type or bytes after the last entry",
    SG_VARINT: "entry header holds a number past 64 bits",
    SG_RANGE: "delta or entry reaches outside its bounds",
    SG_DELTA: "delta is damaged",
    SG_BASE_SIZE: "delta names another base size",
    SG_CHECKSUM: "pack checksum does not match",
    SG_DEPTH: "delta chain is too deep",
}


cdef sg_detector *new_detector(bint plain) noexcept nogil:
    """Return what looks for collision attacks; NULL without memory."""
    cdef sg_detector *made = <sg_detector *>aligned_alloc(32, sizeof(sg_detector))
    if made != NULL:
        sg_detect_begin(made, plain)
    return made


cdef sg_sha1 *side_by_side(int lanes, sg_detector *detector) noexcept nogil:
    """Return what hashes objects side by side, or one by one for a detector; NULL when neither, or without memory."""
    cdef sg_sha1 *made
    lanes = sg_sha1_lanes(lanes, detector != NULL)
    if lanes == 0 and detector == NULL:
        return NULL
    made = <sg_sha1 *>aligned_alloc(32, sizeof(sg_sha1))
    if made != NULL:
        sg_sha1_begin(made, lanes, detector)
    return made


cdef void end_side(Lane *lane) noexcept nogil:
    """Finish what is hashed side by side; frames hold its bytes until then."""
    if lane.side != NULL:
        sg_sha1_flush(lane.side)
        free(lane.side)
        lane.side = NULL
    lane.beside = False


cdef void drop_frame(Lane *lane) noexcept nogil:
    """Free the topmost frame."""
    cdef Frame *f
    lane.n_frames -= 1
    f = &lane.frames[lane.n_frames]
    free(f.data)
    free(f.bounds)


cdef void drop_frames(Lane *lane) noexcept nogil:
    while lane.n_frames:
        drop_frame(lane)


cdef void free_scratch(Lane *lane) noexcept nogil:
    """Free all but the edges."""
    sg_inflater_free(lane.inflater)
    lane.inflater = NULL
    free(lane.delta)
    lane.delta = NULL
    lane.delta_room = 0
    free(lane.result)
    lane.result = NULL
    lane.result_room = 0
    free(lane.spare)
    lane.spare = NULL
    lane.spare_room = 0
    free(lane.window)
    lane.window = NULL
    free(lane.copies)
    lane.copies = NULL
    lane.copies_room = 0
    free(lane.frames)
    lane.frames = NULL
    lane.frames_room = 0


cdef void free_lane(Lane *lane) noexcept nogil:
    end_side(lane)
    drop_frames(lane)
    free_scratch(lane)
    free(lane.detector)
    lane.detector = NULL
    free(lane.findings)
    lane.findings = NULL
    free(lane.specials)
    lane.specials = NULL
    if lane.spill != NULL:
        sg_spill_free(lane.spill, lane.edges, <size_t>lane.edges_room * lane.hash_size)
    else:
        free(lane.edges)
    lane.edges = NULL
    free(lane.names)
    lane.names = NULL


cdef void fsck_found(void *ctx, int message, size_t offset) noexcept nogil:
    """Note a finding of fsck; past the most that is kept it is dropped, since one error refuses all."""
    cdef Lane *lane = <Lane *>ctx
    cdef Finding *f
    cdef uint8_t severity = lane.severity[message]
    if severity < 3:
        if lane.n_warnings >= WARNINGS_MAX:
            return
        lane.n_warnings += 1
    if lane.findings == NULL:
        lane.findings = <Finding *>malloc((FINDINGS_MAX + WARNINGS_MAX) * sizeof(Finding))
        if lane.findings == NULL:
            lane.no_memory = True
            return
    if lane.n_findings - lane.n_warnings >= FINDINGS_MAX and severity >= 3:
        return
    f = &lane.findings[lane.n_findings]
    f.object = lane.checked
    f.message = <uint32_t>message
    f.offset = offset
    lane.n_findings += 1


cdef void fsck_special(void *ctx, int kind, const uint8_t *oid) noexcept nogil:
    """Note a blob whose content fsck wants to see; the one seen last is not noted again."""
    cdef Lane *lane = <Lane *>ctx
    cdef uint8_t *grown
    cdef size_t width = lane.hash_size + 1
    if lane.n_specials:
        grown = lane.specials + (lane.n_specials - 1) * width
        if grown[0] == kind and memcmp(grown + 1, oid, lane.hash_size) == 0:
            return
    if lane.n_specials == lane.specials_room:
        grown = <uint8_t *>realloc(lane.specials, (lane.specials_room * 2 + 64) * width)
        if grown == NULL:
            lane.no_memory = True
            return
        lane.specials = grown
        lane.specials_room = lane.specials_room * 2 + 64
    grown = lane.specials + lane.n_specials * width
    grown[0] = <uint8_t>kind
    memcpy(grown + 1, oid, lane.hash_size)
    lane.n_specials += 1


cdef sg_status tree_entry(const uint8_t *data, size_t n, size_t at, size_t h, size_t *end, bint *link) noexcept nogil:
    """Find the end of the tree entry at ``at`` and whether it is a gitlink."""
    cdef size_t i = at
    cdef uint32_t mode = 0
    cdef const uint8_t *nul
    while i < n and 48 <= data[i] <= 55 and i - at < 8:
        mode = mode * 8 + (data[i] - 48)
        i += 1
    if i == at or i >= n or data[i] != 32:
        return SG_OBJECT
    nul = <const uint8_t *>memchr(data + i, 0, n - i)
    if nul == NULL:
        return SG_OBJECT
    i = <size_t>(nul - data) + 1
    if n - i < h or i - 1 == at:
        return SG_OBJECT
    end[0] = i + h
    link[0] = (mode & 0o170000) == 0o160000
    return SG_OK


cdef uint32_t name_hash(const uint8_t *entry, size_t n) noexcept nogil:
    """A number for the name in the head of a tree entry ("mode name NUL"): names that end alike are near each other."""
    cdef size_t i = 0
    cdef uint32_t v = 0
    while i < n and entry[i] != 32:
        i += 1
    for i in range(i + 1, n - 1):
        v = (v >> 2) + (<uint32_t>entry[i] << 24)
    return v if v else 1


def tree_children(const uint8_t[::1] tree not None, int hash_size):
    """Return the ids of a tree's entries in order, gitlinks left out; MalformedObject when it does not parse."""
    cdef size_t n = <size_t>tree.shape[0], p = 0, end = 0, h = <size_t>hash_size
    cdef bint link = False
    out = []
    while p < n:
        if tree_entry(&tree[0], n, p, h, &end, &link) != SG_OK:
            raise MalformedObject("tree does not parse", offset=int(p))
        if not link:
            out.append(PyBytes_FromStringAndSize(<const char *>&tree[0] + end - h, <Py_ssize_t>h))
        p = end
    return out


cdef int64_t date_of(const uint8_t *line, size_t n) noexcept nogil:
    """The seconds in "name <mail> 123 +0000"; 0 when there are none, as git reads it."""
    cdef size_t i = n
    cdef int64_t v = 0
    cdef bint minus = False
    while i and line[i - 1] != 62:
        i -= 1
    while i < n and line[i] == 32:
        i += 1
    if i < n and line[i] == 45:
        minus = True
        i += 1
    while i < n and 48 <= line[i] <= 57:
        if v > (<int64_t>1 << 62) // 10:
            return 0
        v = v * 10 + (line[i] - 48)
        i += 1
    return -v if minus else v

