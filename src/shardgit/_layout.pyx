"""The ingest kernel's second half: what was resolved becomes segments and one graph stream.

Entries are laid out by type, delta families whole (docs/formats/segment.md), and links between commits, tags and trees
become the graph (docs/formats/graph.md). Entry bodies are never deflated again: they are copied as they came.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from shardgit._fastpack cimport *
from shardgit._kernel cimport *
from shardgit._spill cimport *

from shardgit._fastpack import error_of, tree_children
from shardgit.errors import Internal, LimitExceeded


cdef enum:
    OFFSET_WIDTH = 3  # a block has 8 MiB at most


ctypedef struct Segment:
    uint32_t first  # position of its first object
    uint32_t count
    uint32_t entries_end
    uint32_t length
    uint32_t externals
    uint32_t big
    uint64_t raw
    uint64_t bytes
    uint64_t largest  # object
    uint8_t type
    uint8_t hops
    uint8_t alone
    uint8_t sight


cdef class Ingest(Resolver):
    """Packs on their way into a pool.

    Use: ``scan`` each pack; ``resolve`` from any number of threads until ``finished``; ``finish``; maybe ``drop``;
    ``layout``; then ``segment`` and ``graph``. Buffers that were scanned must not change until the Ingest is gone.
    Errors: MalformedPack, MalformedObject, LimitExceeded; after one the Ingest is of no further use.
    """

    cdef uint32_t *order  # object indices by position
    cdef uint32_t kept
    cdef Segment *segments
    cdef uint32_t n_segments
    cdef uint32_t segments_room
    cdef uint32_t counts[5]
    cdef object _externals
    cdef uint64_t n_links
    cdef uint32_t *links  # by edge, as the graph has them: position, or EXTERNAL; made by `externals`

    def __dealloc__(self):
        free(self.order)
        free(self.segments)
        self._forget_links()

    cdef void _forget_links(self) noexcept nogil:
        if self.links != NULL:
            sg_spill_free(&self.spill, self.links, (<size_t>self.n_links + 1) * 4)
            self.links = NULL

    # ---- positions ----

    def position(self, bytes oid not None):
        """Return the run-local position of an object of the layout, -1 when it is not in it."""
        if <size_t>len(oid) != self.hash_size or self.order == NULL:
            return -1
        cdef uint32_t at = self._link(<const uint8_t *>PyBytes_AS_STRING(oid))
        return -1 if at == NONE else int(at)

    def id_at_position(self, uint32_t position):
        """Return the id of the object at a run-local position."""
        if position >= self.kept:
            raise IndexError(position)
        return self.id_at(self.order[position])

    def drop_positions(self, const uint8_t[::1] bits not None, uint64_t first):
        """Leave out what a bitset does not hold: object at run-local position p is bit ``first`` + p.

        Returns how many objects went. ``layout`` must follow when any did.
        """
        cdef uint32_t p, gone = 0
        cdef uint64_t at
        for p in range(self.kept):
            at = first + p
            if <uint64_t>bits.shape[0] <= at >> 3 or not (bits[<Py_ssize_t>(at >> 3)] >> (at & 7)) & 1:
                self.objects[self.order[p]].keep = 0
                self.objects[self.order[p]].pool_hops = 255  # nobody has it: deltas on it are written whole
                gone += 1
        return int(gone)

    def children(self, uint32_t position):
        """Return the ids of all children of the tree at a run-local position, gitlinks left out."""
        if position >= self.kept or self.objects[self.order[position]].type != TREE:
            raise IndexError(position)
        cdef bytes tree = self.read(self.order[position])
        return tree_children(tree, <int>self.hash_size)

    # ---- layout ----

    def layout(self, *, uint64_t target, uint64_t most, uint32_t count_most, int hops_most=254):
        """Assign every kept object to a segment: by type, families whole, close to ``target`` bytes a block.

        ``most`` is the largest block; an entry that does not fit stands alone and is stored in parts; a family that
        does not fit is cut. A delta on a base of the pool whose chain there has ``hops_most`` hops is written whole.
        Returns the number of segments. May be called again after ``drop``.
        """
        if self.sorted == NULL:
            raise Internal("layout before finish")
        free(self.order)
        self._forget_links()
        self._externals = None
        self.order = <uint32_t *>malloc((<size_t>self.n + 1) * 4)
        if self.order == NULL:
            raise MemoryError
        cdef sg_status st = SG_OK
        cdef uint32_t i
        with nogil:
            for i in range(self.n):
                if self.objects[i].keep and self.objects[i].base != NONE and (
                        self._entry_most(&self.objects[i]) + HEADER + TRAILER > most
                        or self._hops_outside(i) > hops_most):
                    st = self._write_whole(i)
                    if st != SG_OK:
                        break
            if st == SG_OK:
                st = self._layout(target, most, count_most)
        if st != SG_OK:
            raise error_of(st)
        return int(self.n_segments)

    cdef int _hops_outside(self, uint32_t i) noexcept nogil:
        """Hops of an object whose base the pool has; 0 for all others."""
        cdef uint32_t b = self.objects[i].base
        if b == NONE or self._kept_base(&self.objects[i]) != NONE or self.objects[b].keep:
            return 0
        return <int>self.objects[b].pool_hops + 1

    cdef sg_status _write_whole(self, uint32_t i) noexcept nogil:
        """Replace a delta by the whole object, where it is larger than a block (only whole objects are stored in parts)
        or its chain would get too long. A tree's edges stay told against the tree that was its base.
        """
        cdef Lane lane
        cdef uint8_t *data = NULL
        cdef uint8_t *entry
        cdef size_t size = 0, room
        cdef Pack *packs
        cdef Object *o = &self.objects[i]
        cdef sg_status st
        if self.n_packs == 65535:
            return SG_OK if self._entry_most(o) + HEADER + TRAILER <= (1 << 20) else SG_LIMIT
        memset(&lane, 0, sizeof(Lane))
        lane.inflater = sg_inflater_new()
        st = SG_MEMORY if lane.inflater == NULL else self._data(&lane, i, &data, &size)
        free_lane(&lane)
        if st != SG_OK:
            return st
        room = sg_deflate_bound(size)
        entry = <uint8_t *>malloc(room)
        packs = <Pack *>realloc(self.packs, (<size_t>self.n_packs + 1) * sizeof(Pack))
        if packs != NULL:
            self.packs = packs
        if entry == NULL or packs == NULL:
            free(data)
            free(entry)
            return SG_MEMORY
        room = sg_deflate(6, data, size, entry, room)
        free(data)
        if room == 0:
            free(entry)
            return SG_MEMORY
        packs = &self.packs[self.n_packs]
        packs.data = entry
        packs.size = room
        packs.first = i
        packs.count = 1
        o.pack = self.n_packs
        self.n_packs += 1
        o.at = 0
        o.head = 0
        o.body = room
        o.size = size
        o.base = NONE
        o.entry = o.type
        return SG_OK

    cdef inline uint32_t _kept_base(self, Object *o) noexcept nogil:
        """The kept object that an object is a delta on; NONE when that is not kept or stands alone."""
        cdef uint32_t b
        if o.base == NONE:
            return NONE
        b = o.base
        if not self.objects[b].keep:
            b = self._find(self.ids + <size_t>b * self.hash_size)
            if b == NONE or not self.objects[b].keep:
                return NONE
        return NONE if self.objects[b].alone else b

    cdef inline uint32_t _family_base(self, uint32_t i) noexcept nogil:
        """The kept base of an object, when it goes into the same family: who sees one of it sees all."""
        cdef uint32_t b = self._kept_base(&self.objects[i])
        return NONE if b != NONE and self.sight != NULL and self.sight[b] != self.sight[i] else b

    cdef inline uint32_t _nth(self, uint32_t k) noexcept nogil:
        """The object that is laid out as number ``k`` of those that hang from nothing."""
        return k if self.walk == NULL else self.walk[k]

    cdef inline uint64_t _entry_most(self, Object *o) noexcept nogil:
        """Most bytes that an entry and its footer rows can take."""
        return o.body + 10 + (self.hash_size if o.base != NONE else 0) + self.hash_size + 4 + 4 + 2 + 8 + (
            self.hash_size + 2 if o.base != NONE else 0)

    cdef sg_status _layout(self, uint64_t target, uint64_t most, uint32_t count_most) noexcept nogil:
        cdef uint32_t i, b, k, type
        cdef Object *o
        cdef sg_status st
        cdef uint32_t types[4]
        types[0] = COMMIT
        types[1] = TAG
        types[2] = TREE
        types[3] = BLOB
        self.kept = 0
        self.n_segments = 0
        memset(self.counts, 0, sizeof(self.counts))
        for i in range(self.n):
            o = &self.objects[i]
            o.child = NONE
            o.next = NONE
            o.position = NONE
            o.hops = 0
            o.weight = 1
            o.alone = 1 if self._entry_most(o) + HEADER + TRAILER > most else 0
            if o.keep:
                self.counts[o.type] += 1
        k = self.n
        while k:
            k -= 1
            i = self._nth(k)
            o = &self.objects[i]
            if o.keep:
                b = self._family_base(i)
                if b != NONE:
                    o.next = self.objects[b].child
                    self.objects[b].child = i
        for type in range(4):
            for k in range(self.n):
                i = self._nth(k)
                o = &self.objects[i]
                if o.keep and o.type == types[type] and self._family_base(i) == NONE:
                    st = self._place_family(i, target, most, count_most)
                    if st != SG_OK:
                        return st
            self._close()
        return SG_OK

    cdef uint32_t _below(self, uint32_t root, uint32_t at) noexcept nogil:
        """The next object of a family in preorder, NONE at its end; base links lead back up."""
        cdef uint32_t i = at
        if self.objects[i].child != NONE:
            return self.objects[i].child
        while i != root:
            if self.objects[i].next != NONE:
                return self.objects[i].next
            i = self._family_base(i)
        return NONE

    cdef sg_status _place_family(self, uint32_t root, uint64_t target, uint64_t most, uint32_t count_most) noexcept nogil:
        cdef uint64_t bytes = 0
        cdef uint32_t count = 0, i = root
        cdef bint whole
        cdef Segment *s
        cdef sg_status st
        while i != NONE:
            bytes += self._entry_most(&self.objects[i])
            count += 1
            i = self._below(root, i)
        whole = bytes + HEADER + TRAILER <= most and count <= count_most
        i = root
        while i != NONE:
            s = self._open_segment()
            if s != NULL and s.count:
                if s.type != self.objects[i].type or s.alone or self.objects[i].alone or (
                        self.sight != NULL and s.sight != self.sight[i]):
                    self._close()
                elif whole:
                    if i == root and (self._weight(s) + bytes > target or s.count + count > count_most):
                        self._close()
                elif self._weight(s) + self._entry_most(&self.objects[i]) > (target if count > 1 else most) \
                        or s.count >= count_most:
                    self._close()
            st = self._place(i)
            if st != SG_OK:
                return st
            i = self._below(root, i)
        return SG_OK

    cdef inline uint64_t _weight(self, Segment *s) noexcept nogil:
        """Bytes of the block as it stands."""
        return <uint64_t>s.entries_end + self._footer(s)

    cdef inline uint64_t _footer(self, Segment *s) noexcept nogil:
        return s.count * (self.hash_size + OFFSET_WIDTH + size_width(s.largest)) + <uint64_t>s.big * 8 + s.externals * (self.hash_size + 2) + TRAILER

    cdef Segment *_open_segment(self) noexcept nogil:
        if self.n_segments == 0 or self.segments[self.n_segments - 1].length:
            return NULL
        return &self.segments[self.n_segments - 1]

    cdef void _close(self) noexcept nogil:
        cdef Segment *s = self._open_segment()
        if s != NULL:
            s.length = <uint32_t>self._weight(s)

    cdef sg_status _place(self, uint32_t i) noexcept nogil:
        """Put one object at the end of the open segment."""
        cdef Object *o = &self.objects[i]
        cdef Object *b
        cdef Segment *s = self._open_segment()
        cdef Segment *grown
        cdef uint8_t scratch[16]
        cdef uint64_t length
        cdef uint32_t base = NONE
        if s == NULL:
            if self.n_segments == self.segments_room:
                grown = <Segment *>realloc(self.segments, (<size_t>self.segments_room * 2 + 64) * sizeof(Segment))
                if grown == NULL:
                    return SG_MEMORY
                self.segments = grown
                self.segments_room = self.segments_room * 2 + 64
            s = &self.segments[self.n_segments]
            memset(s, 0, sizeof(Segment))
            self.n_segments += 1
            s.first = self.kept
            s.type = o.type
            s.entries_end = HEADER
            s.alone = o.alone
            s.sight = self.sight[i] if self.sight != NULL else 0
        length = sg_put_entry_header(scratch, o.type, o.size) + o.body
        o.segment = self.n_segments - 1
        o.place = s.entries_end
        if o.base != NONE:
            base = self._kept_base(o)
            if base != NONE and self.objects[base].segment == o.segment and self.objects[base].position != NONE:
                length += sg_put_ofs_distance(scratch, <uint64_t>o.place - self.objects[base].place)
                o.hops = self.objects[base].hops
            else:
                length += self.hash_size
                s.externals += 1
                if base != NONE:
                    b = &self.objects[base]
                    if b.hops >= 254:
                        return SG_DEPTH
                    o.hops = b.hops + 1
                else:
                    o.hops = <uint8_t>(min(<int>self.objects[o.base].pool_hops, 254) + 1)
            if o.hops > s.hops:
                s.hops = o.hops
        o.position = self.kept
        self.order[self.kept] = i
        self.kept += 1
        s.count += 1
        s.raw += o.raw
        if o.raw > s.largest:
            s.largest = o.raw
        s.bytes += length
        if o.raw >= EXTERNAL:
            s.big += 1
        if not o.alone:
            s.entries_end += <uint32_t>length
        return SG_OK

    @property
    def objects_kept(self):
        """Objects in the layout."""
        return self.kept

    @property
    def counts_by_type(self):
        """Kept objects as (commits, tags, trees, blobs)."""
        return (self.counts[COMMIT], self.counts[TAG], self.counts[TREE], self.counts[BLOB])

    def segment_facts(self, uint32_t number):
        """Return (objects, block bytes without parts, entry bytes, type, hops of external bases, alone)."""
        if number >= self.n_segments:
            raise IndexError(number)
        cdef Segment *s = &self.segments[number]
        return (int(s.count), int(s.length), int(s.bytes), int(s.type), int(s.hops if s.externals else 0), bool(s.alone))

    def alone_entry(self, uint32_t number, uint64_t start, uint64_t length):
        """Return a slice of the entry of a segment that stands alone, for its part blocks."""
        if number >= self.n_segments or not self.segments[number].alone:
            raise IndexError(number)
        cdef Object *o = &self.objects[self.order[self.segments[number].first]]
        cdef uint8_t head[16]
        cdef uint64_t n = sg_put_entry_header(head, o.type, o.size)
        cdef const uint8_t *body = self.packs[o.pack].data + o.at + o.head
        cdef uint64_t total = n + o.body
        if start >= total:
            return b""
        if length > total - start:
            length = total - start
        if start >= n:
            return PyBytes_FromStringAndSize(<const char *>body + (start - n), <Py_ssize_t>length)
        if length <= n - start:
            return PyBytes_FromStringAndSize(<char *>head + start, <Py_ssize_t>length)
        return (PyBytes_FromStringAndSize(<char *>head + start, <Py_ssize_t>(n - start))
                + PyBytes_FromStringAndSize(<const char *>body, <Py_ssize_t>(length - (n - start))))

    def segment(self, uint32_t number, bytes header not None, bytes parts=b""):
        """Return segment block ``number`` behind a block header of 64 bytes; ``parts`` are the ids of its part blocks."""
        if number >= self.n_segments or len(header) != HEADER or len(parts) % 32:
            raise IndexError(number)
        cdef Segment *s = &self.segments[number]
        cdef size_t length = s.length + <size_t>len(parts)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(out)
        cdef const uint8_t *part_ids = <const uint8_t *>PyBytes_AS_STRING(parts)
        cdef uint32_t n_parts = <uint32_t>(len(parts) // 32)
        cdef bint ok
        memcpy(to, PyBytes_AS_STRING(header), HEADER)
        with nogil:
            ok = self._write(s, to, length, part_ids, n_parts)
        if not ok:
            raise Internal("segment does not come out as laid out", segment=int(number))
        return out

    cdef bint _write(self, Segment *s, uint8_t *out, size_t length, const uint8_t *parts, uint32_t n_parts) noexcept nogil:
        cdef size_t h = self.hash_size, n = s.count
        cdef uint8_t *to = out + HEADER
        cdef uint8_t *ids = out + s.entries_end
        cdef uint8_t *offsets = ids + n * h
        cdef size_t width = size_width(s.largest)
        cdef uint8_t *sizes = offsets + n * OFFSET_WIDTH
        cdef uint8_t *big = sizes + n * width
        cdef uint8_t *ext_at = big + <size_t>s.big * 8
        cdef uint8_t *ext_id = ext_at + <size_t>s.externals * 2
        cdef uint8_t *end = ext_id + s.externals * h + <size_t>n_parts * 32
        cdef uint32_t k, i, base, size, bigs = 0, externals = 0
        cdef Object *o
        if <size_t>(end - out) + TRAILER != length or (s.alone != 0) != (n_parts != 0):
            return False
        for k in range(s.count):
            i = self.order[s.first + k]
            o = &self.objects[i]
            if not s.alone and to != out + o.place:
                return False
            if o.base == NONE:
                if not s.alone:
                    to += sg_put_entry_header(to, o.type, o.size)
            else:
                base = self._kept_base(o)
                if base != NONE and self.objects[base].segment == o.segment:
                    to += sg_put_entry_header(to, SG_OFS_DELTA, o.size)
                    to += sg_put_ofs_distance(to, <uint64_t>o.place - self.objects[base].place)
                else:
                    to += sg_put_entry_header(to, SG_REF_DELTA, o.size)
                    memcpy(to, self.ids + <size_t>o.base * h, h)
                    if externals >= s.externals:
                        return False
                    sg_put_u16(ext_at + <size_t>externals * 2, <uint16_t>k)
                    memcpy(ext_id + externals * h, to, h)
                    externals += 1
                    to += h
            if not s.alone:
                memcpy(to, self.packs[o.pack].data + o.at + o.head, <size_t>o.body)
                to += o.body
            memcpy(ids + k * h, self.ids + <size_t>i * h, h)
            memcpy(offsets + k * OFFSET_WIDTH, &o.place, OFFSET_WIDTH)  # both are little-endian
            size = <uint32_t>o.raw
            if o.raw >= EXTERNAL:
                size = <uint32_t>EXTERNAL | bigs
                sg_put_u64(big + <size_t>bigs * 8, o.raw)
                bigs += 1
            memcpy(sizes + k * width, &size, width)
        if to != out + s.entries_end or externals != s.externals:
            return False
        if n_parts:
            memcpy(end - <size_t>n_parts * 32, parts, <size_t>n_parts * 32)
        memset(end, 0, TRAILER)
        sg_put_u32(end, s.entries_end)
        sg_put_u32(end + 4, s.count)
        sg_put_u32(end + 8, s.big)
        sg_put_u32(end + 12, s.externals)
        sg_put_u32(end + 16, n_parts)
        end[20] = s.type
        end[21] = 1 if s.alone else 0
        end[22] = s.hops if s.externals else 0
        end[23] = <uint8_t>(OFFSET_WIDTH | width << 3)
        sg_put_u64(end + 24, s.raw)
        sg_put_u64(end + 32, s.bytes)
        memcpy(end + 44, b"SGSF", 4)
        return True

    def index(self):
        """Return (ids flat ascending, positions u32 flat) of the kept objects, for the run's index pieces."""
        cdef bytes ids = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(self.kept * self.hash_size))
        cdef bytes positions = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self.kept * 4)
        cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(ids)
        cdef uint8_t *where = <uint8_t *>PyBytes_AS_STRING(positions)
        cdef uint32_t i, rank, k = 0
        with nogil:
            for rank in range(self.n):
                i = self.sorted[rank]
                if self.objects[i].keep:
                    memcpy(to + k * self.hash_size, self.ids + <size_t>i * self.hash_size, self.hash_size)
                    sg_put_u32(where + <size_t>k * 4, self.objects[i].position)
                    k += 1
        return ids, positions

    # ---- graph ----

    cdef uint32_t _link(self, const uint8_t *oid) noexcept nogil:
        """Run-local position of an id, or NONE when it is not among the kept objects."""
        cdef uint32_t i = self._find(oid)
        if i == NONE or not self.objects[i].keep:
            return NONE
        return self.objects[i].position

    def externals(self):
        """Return the ids of objects outside the layout that kept objects link to, ascending, each once."""
        cdef uint32_t p, e
        cdef uint64_t at = 0, n = 0, outside
        cdef Object *o
        cdef const uint8_t *oid
        cdef size_t h = self.hash_size
        found = set()
        for p in range(self.kept):
            n += self.objects[self.order[p]].edges
        self._forget_links()
        self.n_links = n
        self.links = <uint32_t *>sg_spill_new(&self.spill, (<size_t>n + 1) * 4)
        if self.links == NULL:
            raise MemoryError
        with nogil:
            outside = self._find_links()
        if outside:
            for p in range(self.kept):
                o = &self.objects[self.order[p]]
                for e in range(o.edges):
                    if self.links[at + e] == EXTERNAL:
                        oid = self.lanes[o.lane].edges + (o.edge_at + e) * h
                        found.add(PyBytes_FromStringAndSize(<const char *>oid, <Py_ssize_t>h))
                at += o.edges
                if o.type == TREE and o.similar != NONE and self._position(o.similar) == NONE:
                    found.add(PyBytes_FromStringAndSize(<const char *>self.ids + <size_t>o.similar * h, <Py_ssize_t>h))
        self._externals = sorted(found)
        return self._externals

    cdef uint64_t _find_links(self) noexcept nogil:
        """Find all edges' positions; returns how many links lead outside."""
        cdef uint32_t p, e, link
        cdef uint64_t at = 0, outside = 0
        cdef const uint8_t *row
        cdef Object *o
        for p in range(self.kept):
            o = &self.objects[self.order[p]]
            if o.edges:
                row = self.lanes[o.lane].edges + o.edge_at * self.hash_size
                for e in range(o.edges):
                    link = self._link(row + e * self.hash_size)
                    if link == NONE:
                        link = EXTERNAL
                        outside += 1
                    self.links[at] = link
                    at += 1
            if o.type == TREE and o.similar != NONE and self._position(o.similar) == NONE:
                outside += 1
        return outside

    cdef inline uint32_t _position(self, uint32_t i) noexcept nogil:
        """Run-local position of an object, or of the copy of it that is kept; NONE without."""
        if self.objects[i].keep:
            return self.objects[i].position
        return self._link(self.ids + <size_t>i * self.hash_size)

    def graph(self, generations=None):
        """Return the run's graph stream. ``generations`` maps external commit ids to their generation."""
        if self._externals is None:
            self.externals()
        cdef list externals = self._externals
        cdef bytes flat = b"".join(externals)
        cdef const uint8_t *ext = <const uint8_t *>PyBytes_AS_STRING(flat)
        cdef uint32_t x = <uint32_t>len(externals)
        cdef uint32_t *known = <uint32_t *>calloc(<size_t>x + 1, 4)
        cdef uint32_t c = self.counts[COMMIT], g = self.counts[TAG], t = self.counts[TREE]
        cdef uint64_t parents = 0, edges = 0
        cdef uint32_t p, k
        cdef size_t length
        cdef sg_status st
        if known == NULL:
            raise MemoryError
        try:
            if generations:
                for k in range(x):
                    known[k] = generations.get(externals[k], 0)
            for p in range(c):
                parents += self.objects[self.order[p]].edges - 1
            for p in range(c + g, c + g + t):
                edges += self.objects[self.order[p]].edges
            if parents >= EXTERNAL or edges >= EXTERNAL:
                raise LimitExceeded("too many links in one import", links=int(parents + edges))
            length = (64 + <size_t>c * 16 + (<size_t>c + 1) * 4 + <size_t>parents * 4 + <size_t>g * 4 + <size_t>t * 4
                      + (<size_t>t + 1) * 4 + <size_t>edges * 4 + x * self.hash_size)
            out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
            to = <uint8_t *>PyBytes_AS_STRING(out)
            with nogil:
                st = self._write_graph(to, <uint32_t>parents, <uint32_t>edges, ext, x, known)
            if st != SG_OK:
                raise error_of(st)
            return out
        finally:
            free(known)
            self._forget_links()
            self._externals = None

    cdef inline uint32_t _link_of(self, uint64_t at, const uint8_t *oid, const uint8_t *ext, uint32_t x) noexcept nogil:
        """The link of edge ``at``, whose id is ``oid``."""
        cdef uint32_t link = self.links[at]
        return link if link != EXTERNAL else self._external(oid, ext, x)

    cdef uint32_t _external(self, const uint8_t *oid, const uint8_t *ext, uint32_t x) noexcept nogil:
        cdef uint32_t low = 0, high = x, middle
        while low < high:
            middle = low + ((high - low) >> 1)
            if memcmp(ext + middle * self.hash_size, oid, self.hash_size) < 0:
                low = middle + 1
            else:
                high = middle
        return <uint32_t>EXTERNAL | low

    cdef sg_status _write_graph(self, uint8_t *out, uint32_t n_parents, uint32_t n_edges, const uint8_t *ext,
                                uint32_t x, const uint32_t *known) noexcept nogil:
        cdef uint32_t c = self.counts[COMMIT], g = self.counts[TAG], t = self.counts[TREE]
        cdef size_t h = self.hash_size
        cdef uint8_t *date = out + 64
        cdef uint8_t *generation = date + <size_t>c * 8
        cdef uint8_t *tree = generation + <size_t>c * 4
        cdef uint8_t *parent_start = tree + <size_t>c * 4
        cdef uint8_t *parents = parent_start + (<size_t>c + 1) * 4
        cdef uint8_t *target = parents + <size_t>n_parents * 4
        cdef uint8_t *similar = target + <size_t>g * 4
        cdef uint8_t *edge_start = similar + <size_t>t * 4
        cdef uint8_t *edges = edge_start + (<size_t>t + 1) * 4
        cdef uint32_t p, e, at = 0, link
        cdef uint64_t edge = 0
        cdef const uint8_t *row
        cdef Object *o
        memset(out, 0, 64)
        memcpy(out, b"SGGR", 4)
        sg_put_u16(out + 4, 1)
        sg_put_u16(out + 6, <uint16_t>self.hash_kind)
        sg_put_u32(out + 8, c)
        sg_put_u32(out + 12, g)
        sg_put_u32(out + 16, t)
        sg_put_u32(out + 20, self.counts[BLOB])
        sg_put_u32(out + 24, n_parents)
        sg_put_u32(out + 28, n_edges)
        sg_put_u32(out + 32, x)
        for p in range(c):
            o = &self.objects[self.order[p]]
            row = self.lanes[o.lane].edges + o.edge_at * h
            sg_put_u64(date + <size_t>p * 8, <uint64_t>o.date)
            sg_put_u32(tree + <size_t>p * 4, self._link_of(edge, row, ext, x))
            sg_put_u32(parent_start + <size_t>p * 4, at)
            for e in range(1, o.edges):
                sg_put_u32(parents + <size_t>at * 4, self._link_of(edge + e, row + e * h, ext, x))
                at += 1
            edge += o.edges
        sg_put_u32(parent_start + <size_t>c * 4, at)
        for p in range(g):
            o = &self.objects[self.order[c + p]]
            sg_put_u32(target + <size_t>p * 4,
                       self._link_of(edge, self.lanes[o.lane].edges + o.edge_at * h, ext, x))
            edge += o.edges
        at = 0
        for p in range(t):
            o = &self.objects[self.order[c + g + p]]
            link = NONE
            if o.similar != NONE:
                link = self._position(o.similar)
                if link == NONE:
                    link = self._external(self.ids + <size_t>o.similar * h, ext, x)
            sg_put_u32(similar + <size_t>p * 4, link)
            sg_put_u32(edge_start + <size_t>p * 4, at)
            row = self.lanes[o.lane].edges + o.edge_at * h
            for e in range(o.edges):
                sg_put_u32(edges + <size_t>at * 4, self._link_of(edge, row + e * h, ext, x))
                at += 1
                edge += 1
        sg_put_u32(edge_start + <size_t>t * 4, at)
        memcpy(edges + <size_t>n_edges * 4, ext, x * h)
        return number_generations(c, parent_start, parents, generation, known)


cdef inline size_t size_width(uint64_t largest) noexcept nogil:
    """Bytes that the size of each object of a segment takes."""
    return 1 if largest < 0x100 else 2 if largest < 0x10000 else 3 if largest < 0x1000000 else 4


cdef sg_status number_generations(uint32_t c, const uint8_t *start, const uint8_t *parents, uint8_t *out,
                                  const uint32_t *known) noexcept nogil:
    """Give each commit 1 + the highest generation of its parents, with an explicit stack."""
    cdef uint32_t *stack = <uint32_t *>malloc((<size_t>c + 1) * 4)
    cdef uint32_t p, top, e, link, best, v
    cdef bint ready
    if stack == NULL:
        return SG_MEMORY
    for p in range(c):
        sg_put_u32(out + <size_t>p * 4, 0)
    for p in range(c):
        if sg_u32(out + <size_t>p * 4):
            continue
        top = 1
        stack[0] = p
        while top:
            v = stack[top - 1]
            best = 0
            ready = True
            for e in range(sg_u32(start + <size_t>v * 4), sg_u32(start + (<size_t>v + 1) * 4)):
                link = sg_u32(parents + <size_t>e * 4)
                if link & EXTERNAL:
                    best = max(best, known[link & ~<uint32_t>EXTERNAL])
                elif link >= c:
                    free(stack)
                    return SG_OBJECT  # a parent that is no commit
                elif sg_u32(out + <size_t>link * 4) == 0:
                    # An unnumbered parent goes first. A commit names its parents by their hash, so no cycle exists
                    # and the stack holds a path: at most c.
                    ready = False
                    if top >= c:
                        free(stack)
                        return SG_OBJECT
                    stack[top] = link
                    top += 1
                    break
                else:
                    best = max(best, sg_u32(out + <size_t>link * 4))
            if ready:
                sg_put_u32(out + <size_t>v * 4, best + 1)
                top -= 1
    free(stack)
    return SG_OK
