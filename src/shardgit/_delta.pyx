"""The delta kernel: deltas in git's format, and new bases for the objects of an ingest.

``Chooser`` stands between ``Resolver.finish`` and ``Ingest.layout``. It walks the history from the newest commit on, so
that every object has a place in it and trees and blobs have a path; sorts the objects so that those that are alike are
neighbours; tries each against a window of those before it, on any number of threads; and puts what it found in place
of the entries that came. Trees are told against their new bases too (docs/formats/graph.md).
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from shardgit._fastpack cimport *
from shardgit._kernel cimport *

from shardgit._fastpack import error_of
from shardgit.errors import Internal, LimitExceeded

cdef extern from "_delta.h" nogil:
    ctypedef struct sg_delta_index:
        const uint8_t *data
        size_t size
        size_t bytes

    sg_status sg_delta_index_make(sg_delta_index *x, const uint8_t *data, size_t size)
    void sg_delta_index_free(sg_delta_index *x)
    size_t sg_delta_encode(const sg_delta_index *x, const uint8_t *target, size_t size, uint8_t *out, size_t room)

cdef enum:
    WINDOW_MOST = 250
    CACHE_SLOTS = 16384
    LANES_MOST = 64
    CHUNK_OBJECTS = 2000  # that a thread takes at once, and as many more as have the same path
    ROOM_BYTES = 16777216  # of a piece of memory for entries
    DELTA_LEAST = 50  # a smaller object gains nothing: base distance, zlib's frame and instructions take that much


cdef const uint8_t *EMPTY = b""


def encode(const uint8_t[::1] source not None, const uint8_t[::1] target not None, most=None):
    """Return the delta that makes ``target`` of ``source``; None when it takes more than ``most`` bytes.

    Without ``most`` there always is one. LimitExceeded for a source of 2 GiB and more.
    """
    cdef size_t n = <size_t>source.shape[0], m = <size_t>target.shape[0], room, length = 0
    cdef sg_delta_index index
    cdef sg_status st
    cdef uint8_t *out
    cdef const uint8_t *a = EMPTY
    cdef const uint8_t *b = EMPTY
    if n:
        a = &source[0]
    if m:
        b = &target[0]
    room = m + m // 127 + 32
    if most is not None and most < room:
        room = most if most > 0 else 0
    out = <uint8_t *>malloc(room + 1)
    if out == NULL:
        raise MemoryError
    try:
        with nogil:
            st = sg_delta_index_make(&index, a, n)
            if st == SG_OK:
                length = sg_delta_encode(&index, b, m, out, room)
            sg_delta_index_free(&index)
        if st == SG_MEMORY:
            raise MemoryError
        if st != SG_OK:
            raise LimitExceeded("delta source is too large", bytes=int(n))
        return PyBytes_FromStringAndSize(<char *>out, <Py_ssize_t>length) if length else None
    finally:
        free(out)


def apply(const uint8_t[::1] source not None, const uint8_t[::1] delta not None, uint64_t most):
    """Return what a delta makes of ``source``; MalformedPack when it is damaged, LimitExceeded past ``most`` bytes."""
    cdef size_t n = <size_t>source.shape[0], m = <size_t>delta.shape[0], at = 0, copies = 0
    cdef uint64_t base_size = 0, size = 0
    cdef sg_status st
    cdef const uint8_t *a = EMPTY
    cdef const uint8_t *b = EMPTY
    if n:
        a = &source[0]
    if m:
        b = &delta[0]
    st = sg_delta_sizes(b, m, &base_size, &size, &at)
    if st == SG_OK and size > most:
        st = SG_LIMIT
    if st != SG_OK:
        raise error_of(st)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(out)
    with nogil:
        st = sg_delta_apply(a, n, b, m, to, <size_t>size, NULL, 0, &copies)
    if st != SG_OK:
        raise error_of(st)
    return out


ctypedef struct Choice:
    const uint8_t *body  # the new entry's zlib stream; NULL: the entry stays as it came
    uint64_t length
    uint64_t size  # what the stream inflates to
    uint64_t edge_at
    uint32_t base  # NONE: stored whole
    uint32_t edges
    uint32_t root  # of its family
    uint32_t family_objects  # of a root
    uint64_t family_bytes
    uint16_t depth
    uint8_t lane
    uint8_t told  # a tree whose edges are told anew
    uint8_t offered  # the pool has it, and it stays there: a base for others


ctypedef struct Key:
    uint64_t high
    uint64_t low
    uint32_t object


ctypedef struct Cached:
    uint8_t *data
    size_t size
    uint32_t object


ctypedef struct Slot:
    uint8_t *data
    size_t size
    size_t room
    sg_delta_index index
    uint32_t object
    bint indexed


ctypedef struct Desk:
    Lane lane  # for its inflater and spare memory
    sg_deflater *deflater
    Cached *cache
    size_t hand
    size_t cached
    uint32_t *chain
    size_t chain_room
    Slot slots[WINDOW_MOST + 1]
    uint16_t order[WINDOW_MOST + 1]  # slots, the newest first
    uint32_t filled
    size_t window_bytes
    uint8_t *trial
    size_t trial_room
    uint8_t *best
    size_t best_room
    uint8_t *packed
    size_t packed_room
    uint8_t *edges
    uint64_t n_edges
    uint64_t edges_room
    uint8_t *room  # for entries
    size_t room_left


cdef int by_key(const void *a, const void *b) noexcept nogil:
    cdef const Key *x = <const Key *>a
    cdef const Key *y = <const Key *>b
    if x.high != y.high:
        return -1 if x.high < y.high else 1
    if x.low != y.low:
        return -1 if x.low < y.low else 1
    return -1 if x.object < y.object else 1


cdef inline bint grown(void **memory, size_t *room, size_t need) noexcept nogil:
    """Make *memory hold ``need`` bytes, contents lost. False without memory."""
    if need <= room[0]:
        return True
    free(memory[0])
    room[0] = need + need // 4 + 4096
    memory[0] = malloc(room[0])
    if memory[0] == NULL:
        room[0] = 0
    return memory[0] != NULL


cdef class Chooser:
    """New bases for the objects of a resolver that has finished and is not laid out yet.

    Use: ``prepare``; ``search`` from any number of threads (64 at most) until all return; ``apply``. ``room`` is called
    with a size in bytes and returns a writable buffer of that size or larger, for entries; what it raises ends the
    search and is raised by ``apply``.
    """

    cdef Resolver ingest
    cdef object room
    cdef list rooms
    cdef object error
    cdef uint32_t n
    cdef uint32_t window
    cdef uint32_t depth_most
    cdef uint64_t window_bytes
    cdef uint64_t cache_bytes
    cdef uint64_t size_most
    cdef uint64_t family_bytes
    cdef int hops_most
    cdef int level
    cdef bint anew
    cdef Choice *choices
    cdef uint32_t *path
    cdef uint32_t *name
    cdef uint32_t *rank
    cdef Key *keys
    cdef uint32_t n_keys
    cdef uint32_t *older  # pairs of objects: of the ingest, and of the pool at the same path
    cdef uint32_t n_older
    cdef uint64_t taken
    cdef uint64_t n_desks
    cdef uint64_t failure
    cdef uint64_t done_objects
    cdef Desk *desks

    def __cinit__(self, Resolver ingest not None, room not None, *, uint32_t window=10, uint32_t depth=50,
                  uint64_t window_bytes=<uint64_t>64 << 20, uint64_t cache_bytes=<uint64_t>48 << 20,
                  uint64_t size_most=<uint64_t>16 << 20, uint64_t family_bytes=<uint64_t>4 << 20, int hops_most=8,
                  int level=9, bint anew=False):
        if not 1 <= window <= WINDOW_MOST or depth > 4000 or not 1 <= level <= 12:
            raise Internal("impossible bounds of a search for deltas")
        if ingest.sorted == NULL or not ingest.noting:
            raise Internal("bases are chosen for an ingest that noted names and has finished")
        self.ingest = ingest
        self.room = room
        self.rooms = []
        self.n = ingest.n
        self.window = window
        self.depth_most = depth
        self.window_bytes = window_bytes
        self.cache_bytes = cache_bytes
        self.size_most = size_most
        self.family_bytes = family_bytes
        self.hops_most = hops_most
        self.level = level
        self.anew = anew
        self.choices = <Choice *>calloc(<size_t>self.n + 1, sizeof(Choice))
        self.path = <uint32_t *>calloc(<size_t>self.n + 1, 4)
        self.name = <uint32_t *>calloc(<size_t>self.n + 1, 4)
        self.rank = <uint32_t *>malloc((<size_t>self.n + 1) * 4)
        self.keys = <Key *>malloc((<size_t>self.n + 1) * sizeof(Key))
        self.desks = <Desk *>calloc(LANES_MOST, sizeof(Desk))
        if (self.choices == NULL or self.path == NULL or self.name == NULL or self.rank == NULL or self.keys == NULL
                or self.desks == NULL):
            raise MemoryError

    def __dealloc__(self):
        cdef int k
        if self.desks != NULL:
            for k in range(LANES_MOST):
                free_desk(&self.desks[k])
        free(self.desks)
        free(self.choices)
        free(self.older)
        free(self.path)
        free(self.name)
        free(self.rank)
        free(self.keys)

    # ---- order ----

    def sights(self, const uint8_t[::1] ranks not None):
        """Say who sees each object: byte ``ranks`` [rank in ``sorted_ids``], 0 for what the most see. Before ``prepare``.

        An object has a base only of its own sight or of a lower one, and shares no segment with others.
        """
        cdef uint32_t i
        if <size_t>ranks.shape[0] != self.n:
            raise Internal("one byte for each object is wanted", objects=int(self.n))
        free(self.ingest.sight)
        self.ingest.sight = <uint8_t *>malloc(<size_t>self.n + 1)
        if self.ingest.sight == NULL:
            raise MemoryError
        for i in range(self.n):
            self.ingest.sight[self.ingest.sorted[i]] = ranks[<Py_ssize_t>i]

    def offers(self, list pairs not None):
        """Say which object of the pool stood where one of the ingest stands: (new id, old id). Before ``prepare``.

        Old ones that were not given to the ingest as bases are passed over.
        """
        cdef bytes new, old
        cdef uint32_t i, b
        cdef Object *o
        if self.ingest.n == 0:
            return
        if self.older == NULL:
            self.older = <uint32_t *>malloc((<size_t>len(pairs) * 2 + 1) * 4)
            if self.older == NULL:
                raise MemoryError
        else:
            raise Internal("older versions are told once")
        for new, old in pairs:
            if <size_t>len(new) != self.ingest.hash_size or <size_t>len(old) != self.ingest.hash_size:
                raise Internal("an id of another length")
            i = self.ingest._find(<const uint8_t *>PyBytes_AS_STRING(new))
            b = self.ingest._find(<const uint8_t *>PyBytes_AS_STRING(old))
            if i == NONE or b == NONE or not self.ingest.objects[b].outside or not self.ingest.objects[i].keep:
                continue
            o = &self.ingest.objects[b]
            if o.type != self.ingest.objects[i].type or <int>o.pool_hops >= self.hops_most:
                continue
            self.older[2 * self.n_older] = i
            self.older[2 * self.n_older + 1] = b
            self.n_older += 1

    def prepare(self):
        """Find the order of the walk and of the search."""
        cdef sg_status st
        with nogil:
            st = self._prepare()
        if st != SG_OK:
            raise error_of(st)

    cdef inline uint8_t _sight(self, uint32_t i) noexcept nogil:
        return self.ingest.sight[i] if self.ingest.sight != NULL else 0

    cdef sg_status _prepare(self) noexcept nogil:
        cdef uint32_t i, k, ranked = 0
        cdef Object *o
        cdef Key *key
        cdef sg_status st
        memset(self.rank, 0xff, (<size_t>self.n + 1) * 4)
        st = self._walk(&ranked)
        if st != SG_OK:
            return st
        for i in range(self.n):
            if self.rank[i] == NONE:
                self.rank[i] = ranked
                ranked += 1
        free(self.ingest.walk)
        self.ingest.walk = <uint32_t *>malloc((<size_t>self.n + 1) * 4)
        if self.ingest.walk == NULL:
            return SG_MEMORY
        for i in range(self.n):
            self.ingest.walk[self.rank[i]] = i
        if self.ingest.sight != NULL:
            for i in range(self.n):
                self.keys[i].high = self.ingest.sight[i]
                self.keys[i].low = self.rank[i]
                self.keys[i].object = i
            qsort(self.keys, self.n, sizeof(Key), by_key)
            for i in range(self.n):
                self.ingest.walk[i] = self.keys[i].object
        self.n_keys = 0
        for i in range(self.n):
            o = &self.ingest.objects[i]
            if not o.keep:
                continue
            self.choices[i].base = NONE
            self.choices[i].root = i
            key = &self.keys[self.n_keys]
            self.n_keys += 1
            key.object = i
            if o.type == TREE or o.type == BLOB:
                key.high = <uint64_t>o.type << 60 | <uint64_t>self.name[i] << 28 | self.path[i] >> 4
            else:
                key.high = <uint64_t>o.type << 60
            # What is seen by fewer comes later: its base may be what all see.
            key.low = <uint64_t>self._sight(i) << 60 | <uint64_t>self.rank[i]
            if o.type == BLOB or o.type == TREE:
                key.low = <uint64_t>self._sight(i) << 60 | (<uint64_t>(0xFFFFFFF - (o.raw if o.raw < 0xFFFFFFF else 0xFFFFFFF)) << 32) \
                    | <uint64_t>self.rank[i]
        for k in range(self.n_older):
            self._offer(self.older[2 * k], self.older[2 * k + 1])
        for k in range(self.n):
            i = self.ingest.walk[k]
            if self.ingest.objects[i].keep and self._outside_delta(&self.ingest.objects[i]):
                self._offer(i, self.ingest.objects[i].base)
        qsort(self.keys, self.n_keys, sizeof(Key), by_key)
        return SG_OK

    cdef void _offer(self, uint32_t i, uint32_t b) noexcept nogil:
        """Let an object of the pool serve as a base for all of the path of object ``i``, before all of them.

        Otherwise the newest version of each path would be whole in every run that has one.
        """
        cdef Object *o = &self.ingest.objects[i]
        cdef Key *key
        if o.type != TREE and o.type != BLOB:
            return
        if self.choices[b].offered or self.ingest.objects[b].raw > self.size_most:
            return
        self.choices[b].offered = 1
        self.choices[b].base = NONE
        self.choices[b].root = b
        key = &self.keys[self.n_keys]
        self.n_keys += 1
        key.object = b
        key.high = <uint64_t>o.type << 60 | <uint64_t>self.name[i] << 28 | self.path[i] >> 4
        key.low = <uint64_t>self._sight(b) << 60

    cdef sg_status _walk(self, uint32_t *ranked) noexcept nogil:
        """Number the objects as a walk from the newest commit on meets them, and give trees and blobs their paths."""
        cdef uint32_t *stack = <uint32_t *>malloc((<size_t>self.n + 1) * 4)
        cdef uint32_t i, k, e, n_commits = 0, top, child
        cdef Object *o
        cdef Lane *lane
        cdef const uint8_t *row
        if stack == NULL:
            return SG_MEMORY
        for i in range(self.n):
            if self.ingest.objects[i].type == COMMIT and self.ingest.objects[i].keep:
                self.keys[n_commits].high = ~<uint64_t>(self.ingest.objects[i].date + (<int64_t>1 << 62))
                self.keys[n_commits].low = i
                self.keys[n_commits].object = i
                n_commits += 1
        qsort(self.keys, n_commits, sizeof(Key), by_key)
        for i in range(self.n):
            if self.ingest.objects[i].type == TAG and self.ingest.objects[i].keep:
                self.rank[i] = ranked[0]
                ranked[0] += 1
        for k in range(n_commits):
            i = self.keys[k].object
            self.rank[i] = ranked[0]
            ranked[0] += 1
        for k in range(n_commits):
            o = &self.ingest.objects[self.keys[k].object]
            if o.edges == 0:
                continue
            i = self.ingest._find(self.ingest.lanes[o.lane].edges + o.edge_at * self.ingest.hash_size)
            if i == NONE or self.rank[i] != NONE:
                continue
            self.rank[i] = ranked[0]
            ranked[0] += 1
            self.path[i] = 1
            stack[0] = i
            top = 1
            while top:
                top -= 1
                i = stack[top]
                o = &self.ingest.objects[i]
                if o.type != TREE or o.outside:
                    continue
                lane = &self.ingest.lanes[o.lane]
                row = lane.edges + o.edge_at * self.ingest.hash_size
                for e in range(o.edges):
                    child = self.ingest._find(row + e * self.ingest.hash_size)
                    if child == NONE or self.rank[child] != NONE:
                        continue
                    self.rank[child] = ranked[0]
                    ranked[0] += 1
                    self.name[child] = lane.names[o.edge_at + e]
                    self.path[child] = (self.path[i] ^ self.name[child]) * <uint32_t>0x9E3779B1 + self.path[i]
                    # Each object is numbered once, so the stack holds them all at most.
                    stack[top] = child
                    top += 1
        free(stack)
        return SG_OK

    # ---- search ----

    @property
    def objects(self):
        """Objects that bases are chosen for."""
        return int(self.n_keys)

    @property
    def objects_done(self):
        """Objects that are settled; safe to read while other threads search."""
        return int(sg_load(&self.done_objects))

    def stop(self):
        """Let the search end where it is; ``apply`` must not follow."""
        sg_swap(&self.failure, 0, SG_LIMIT)

    def search(self):
        """Choose bases until all objects have been looked at; call it from as many threads as shall work."""
        cdef uint64_t number = sg_fetch_add(&self.n_desks, 1)
        if number >= LANES_MOST:
            raise Internal("too many searching threads")
        cdef Desk *d = &self.desks[number]
        cdef sg_status st = SG_OK
        cdef uint64_t start, stop
        with nogil:
            d.lane.inflater = sg_inflater_new()
            d.deflater = sg_deflater_new(self.level)
            d.cache = <Cached *>calloc(CACHE_SLOTS, sizeof(Cached))
            if d.lane.inflater == NULL or d.deflater == NULL or d.cache == NULL:
                st = SG_MEMORY
            while st == SG_OK and sg_load(&self.failure) == 0:
                start = sg_fetch_add(&self.taken, CHUNK_OBJECTS)
                if start >= self.n_keys:
                    break
                stop = self._border(start + CHUNK_OBJECTS)
                start = self._border(start)
                if start < stop:
                    st = self._chunk(d, <uint8_t>number, start, stop)
            if st != SG_OK:
                sg_swap(&self.failure, 0, <uint64_t>st)
            free_search(d)

    cdef uint64_t _border(self, uint64_t at) noexcept nogil:
        """The first place from ``at`` on where a path begins, or not much further: versions of one file stay together."""
        cdef uint64_t most = at + <uint64_t>(CHUNK_OBJECTS >> 1)
        if at == 0:
            return 0
        while at < most and at < self.n_keys and self.keys[at].high == self.keys[at - 1].high:
            at += 1
        return at if at < self.n_keys else self.n_keys

    cdef sg_status _chunk(self, Desk *d, uint8_t number, uint64_t start, uint64_t stop) noexcept nogil:
        cdef uint64_t k
        cdef sg_status st = SG_OK
        self._clear_window(d)
        for k in range(start, stop):
            if sg_load(&self.failure) != 0:
                break
            st = self._one(d, number, self.keys[k].object)
            if st != SG_OK:
                break
            sg_fetch_add(&self.done_objects, 1)
        return st

    cdef void _clear_window(self, Desk *d) noexcept nogil:
        cdef uint32_t k
        for k in range(d.filled):
            self._drop_index(d, &d.slots[d.order[k]])
        d.filled = 0

    cdef void _drop_index(self, Desk *d, Slot *s) noexcept nogil:
        if s.indexed:
            d.window_bytes -= s.index.bytes
            sg_delta_index_free(&s.index)
            s.indexed = False

    cdef sg_status _one(self, Desk *d, uint8_t number, uint32_t i) noexcept nogil:
        """Choose a base for one object and write its entry."""
        cdef Object *o = &self.ingest.objects[i]
        cdef Choice *c = &self.choices[i]
        cdef const uint8_t *made = NULL
        cdef size_t best_size = 0
        cdef int best_at = -1
        cdef uint32_t k
        cdef uint16_t slot
        cdef Slot *s
        cdef sg_status st
        if o.raw > self.size_most:
            return SG_OK  # stays as it came; nothing else has it for a base
        st = self._made(d, i, &made)
        if st != SG_OK:
            return st
        # The window's last slot is free for this one.
        if d.filled > self.window:
            d.filled -= 1
            self._drop_index(d, &d.slots[d.order[d.filled]])
            slot = d.order[d.filled]
        else:
            slot = self._free_slot(d)
        s = &d.slots[slot]
        if not grown(<void **>&s.data, &s.room, <size_t>o.raw + 1):
            return SG_MEMORY
        memcpy(s.data, made, <size_t>o.raw)
        s.size = <size_t>o.raw
        s.object = i
        s.indexed = False
        if c.offered:
            self._enter(d, slot, -1)
            return SG_OK
        if s.size >= DELTA_LEAST:
            st = self._best(d, s, &best_at, &best_size)
            if st != SG_OK:
                return st
        if best_at >= 0:
            st = self._write_delta(d, i, d.slots[d.order[best_at]].object, best_size)
        elif self._outside_delta(o):
            c.base = o.base
            c.depth = 1
            c.family_bytes = o.body + 128
            c.family_objects = 1
        else:
            st = self._write_whole_entry(d, i, s.data, s.size)
        if st == SG_OK and o.type == TREE and (best_at >= 0 or c.base == NONE):
            st = self._tell(d, number, i, s, &d.slots[d.order[best_at]] if best_at >= 0 else NULL)
        if st != SG_OK:
            return st
        self._enter(d, slot, best_at)
        return SG_OK

    cdef bint _outside_delta(self, Object *o) noexcept nogil:
        """Whether an object is a delta on one of the pool that is not written anew, and may stay so."""
        return o.base != NONE and self.ingest.objects[o.base].outside and (
            <int>self.ingest.objects[o.base].pool_hops < self.hops_most)

    cdef uint16_t _free_slot(self, Desk *d) noexcept nogil:
        cdef bint used[WINDOW_MOST + 1]
        cdef uint32_t k
        memset(used, 0, sizeof(used))
        for k in range(d.filled):
            used[d.order[k]] = True
        for k in range(WINDOW_MOST + 1):
            if not used[k]:
                return <uint16_t>k
        return 0

    cdef void _enter(self, Desk *d, uint16_t slot, int best_at) noexcept nogil:
        """Put a slot in front of the window, the base that served next to it: it is likely to serve again."""
        cdef uint32_t k
        cdef uint16_t served
        if best_at > 0:
            served = d.order[best_at]
            k = <uint32_t>best_at
            while k:
                d.order[k] = d.order[k - 1]
                k -= 1
            d.order[0] = served
        k = d.filled
        while k:
            d.order[k] = d.order[k - 1]
            k -= 1
        d.order[0] = slot
        d.filled += 1
        # Of large objects fewer are kept at hand.
        while d.filled > 1 and self._held(d) > self.window_bytes:
            d.filled -= 1
            self._drop_index(d, &d.slots[d.order[d.filled]])

    cdef uint64_t _held(self, Desk *d) noexcept nogil:
        cdef uint32_t k
        cdef uint64_t total = d.window_bytes
        for k in range(d.filled):
            total += d.slots[d.order[k]].size
        return total

    cdef sg_status _best(self, Desk *d, Slot *t, int *best_at, size_t *best_size) noexcept nogil:
        """Find the window's slot that the smallest delta is on; the delta is in ``d.best``."""
        cdef uint32_t k
        cdef Slot *s
        cdef Choice *c
        cdef Choice *root
        cdef size_t most, length, more, cost = 0
        cdef uint32_t best_depth = 1
        cdef uint8_t *swap
        cdef size_t swap_room
        cdef sg_status st
        cdef uint8_t type = self.ingest.objects[t.object].type
        cdef size_t h = self.ingest.hash_size
        best_at[0] = -1
        for k in range(d.filled):
            s = &d.slots[d.order[k]]
            c = &self.choices[s.object]
            if self.ingest.objects[s.object].type != type or c.depth >= self.depth_most:
                continue
            if self._sight(s.object) > self._sight(t.object):
                continue
            root = &self.choices[c.root]
            if root.family_bytes > self.family_bytes or root.family_objects > 60000:
                continue
            if best_at[0] >= 0:
                most = cost
            elif self._outside_delta(&self.ingest.objects[t.object]):
                # A base in another segment costs its id twice, and a client that lacks it a whole object.
                most = <size_t>self.ingest.objects[t.object].size + 2 * h
                best_depth = 1
            else:
                most = t.size // 2 - h if t.size // 2 > h else 0
                most = max(most, t.size - h if t.size > 2 * h and type == TREE else 0)
                best_depth = 1
            # A longer chain must be worth it.
            most = most * <size_t>(self.depth_most - c.depth) // <size_t>(self.depth_most - best_depth + 1)
            if best_at[0] >= 0 and most == cost and <uint32_t>c.depth + 1 >= best_depth:
                most -= 1
            more = 2 * h if c.offered else 0
            if most < 20 + more:
                if best_at[0] < 0:
                    most = min(<size_t>20, t.size) + more
                else:
                    continue
            most -= more
            if t.size > s.size and t.size - s.size >= most:
                continue
            if t.size < s.size // 32:
                continue
            if not s.indexed:
                st = sg_delta_index_make(&s.index, s.data, s.size)
                if st != SG_OK:
                    return st
                s.indexed = True
                d.window_bytes += s.index.bytes
            if not grown(<void **>&d.trial, &d.trial_room, most + 1):
                return SG_MEMORY
            length = sg_delta_encode(&s.index, t.data, t.size, d.trial, most)
            if length:
                swap = d.best
                d.best = d.trial
                d.trial = swap
                swap_room = d.best_room
                d.best_room = d.trial_room
                d.trial_room = swap_room
                best_at[0] = <int>k
                best_size[0] = length
                cost = length + more
                best_depth = <uint32_t>c.depth + 1
        return SG_OK

    cdef sg_status _room_for(self, Desk *d, size_t need) noexcept nogil:
        """Make room for an entry of ``need`` bytes."""
        if need <= d.room_left:
            return SG_OK
        with gil:
            return self._more_room(d, need if need > ROOM_BYTES else ROOM_BYTES)

    cdef sg_status _more_room(self, Desk *d, size_t need) noexcept:
        cdef Py_buffer *b
        try:
            view = memoryview(self.room(need))
            b = <Py_buffer *>malloc(sizeof(Py_buffer))
            if b == NULL:
                return SG_MEMORY
            try:
                PyObject_GetBuffer(view, b, PyBUF_WRITABLE)
            except BaseException:
                free(b)
                raise
            if <size_t>b.len < need:
                PyBuffer_Release(b)
                free(b)
                raise Internal("less room than asked for")
            d.room = <uint8_t *>b.buf
            d.room_left = <size_t>b.len
            PyBuffer_Release(b)  # the list keeps it
            free(b)
            self.rooms.append(view)
        except BaseException as error:
            self.error = error
            return SG_LIMIT
        return SG_OK

    cdef sg_status _packed(self, Desk *d, uint32_t i, const uint8_t *data, size_t size, size_t most) noexcept nogil:
        """Deflate into room of its own; an entry of more than ``most`` bytes leaves the choice as it is."""
        cdef Choice *c = &self.choices[i]
        cdef size_t bound = sg_deflate_bound(size), length
        cdef sg_status st
        if not grown(<void **>&d.packed, &d.packed_room, bound):
            return SG_MEMORY
        length = sg_deflater_run(d.deflater, data, size, d.packed, bound)
        if length == 0:
            return SG_MEMORY
        if length > most:
            return SG_OK
        st = self._room_for(d, length)
        if st != SG_OK:
            return st
        memcpy(d.room, d.packed, length)
        c.body = d.room
        c.length = length
        c.size = size
        d.room += length
        d.room_left -= length
        return SG_OK

    cdef sg_status _write_delta(self, Desk *d, uint32_t i, uint32_t base, size_t size) noexcept nogil:
        cdef Choice *c = &self.choices[i]
        cdef Choice *b = &self.choices[base]
        cdef Choice *root
        cdef sg_status st = self._packed(d, i, d.best, size, <size_t>-1)
        if st != SG_OK:
            return st
        c.base = base
        c.depth = b.depth + 1
        if b.offered:  # a family of its own
            c.root = i
            c.family_bytes = c.length + 128
            c.family_objects = 1
            return SG_OK
        c.root = b.root
        root = &self.choices[b.root]
        root.family_bytes += c.length + 64
        root.family_objects += 1
        return SG_OK

    cdef sg_status _write_whole_entry(self, Desk *d, uint32_t i, const uint8_t *data, size_t size) noexcept nogil:
        cdef Object *o = &self.ingest.objects[i]
        cdef Choice *c = &self.choices[i]
        cdef bint whole = o.base == NONE
        cdef sg_status st
        if not whole or self.anew:
            st = self._packed(d, i, data, size, <size_t>o.body - 1 if whole else <size_t>-1)
            if st != SG_OK:
                return st
        c.base = NONE
        c.depth = 0
        c.root = i
        c.family_bytes = (c.length if c.body != NULL else o.body) + 64
        c.family_objects = 1
        return SG_OK

    # ---- objects ----

    cdef Cached *_cached(self, Desk *d, uint32_t i) noexcept nogil:
        cdef Cached *e = &d.cache[(i * <uint32_t>0x9E3779B1) >> 18]
        return e if e.data != NULL and e.object == i else NULL

    cdef void _keep(self, Desk *d, uint32_t i, uint8_t *data, size_t size) noexcept nogil:
        """Take an object's bytes into the cache; older ones go."""
        cdef Cached *e = &d.cache[(i * <uint32_t>0x9E3779B1) >> 18]
        cdef Cached *old
        if e.data != NULL:
            d.cached -= e.size
            free(e.data)
        e.data = data
        e.size = size
        e.object = i
        d.cached += size
        while d.cached > self.cache_bytes and d.cached > size:
            old = &d.cache[d.hand]
            d.hand = (d.hand + 1) % CACHE_SLOTS
            if old.data != NULL and old != e:
                d.cached -= old.size
                free(old.data)
                old.data = NULL

    cdef sg_status _made(self, Desk *d, uint32_t wanted, const uint8_t **out) noexcept nogil:
        """Make an object from its chain as it came; the bytes stand until the next is made."""
        cdef uint32_t at = wanted
        cdef size_t n = 0, used = 0
        cdef Cached *e = self._cached(d, at)
        cdef Object *o
        cdef uint8_t *data
        cdef const uint8_t *base
        cdef size_t base_size
        cdef uint32_t *more
        cdef sg_status st
        while e == NULL:
            if n == d.chain_room:
                more = <uint32_t *>realloc(d.chain, (d.chain_room + 1024) * 4)
                if more == NULL:
                    return SG_MEMORY
                d.chain = more
                d.chain_room += 1024
            d.chain[n] = at
            n += 1
            if self.ingest.objects[at].base == NONE:
                break
            at = self.ingest.objects[at].base
            e = self._cached(d, at)
        base = e.data if e != NULL else NULL
        base_size = e.size if e != NULL else 0
        while n:
            n -= 1
            at = d.chain[n]
            o = &self.ingest.objects[at]
            data = <uint8_t *>malloc(<size_t>o.raw + 1)
            if data == NULL:
                return SG_MEMORY
            if base == NULL:
                st = self.ingest._inflate(&d.lane, o, data)
            else:
                if not grown(<void **>&d.lane.spare, &d.lane.spare_room, <size_t>o.size + 1):
                    free(data)
                    return SG_MEMORY
                st = self.ingest._inflate(&d.lane, o, d.lane.spare)
                if st == SG_OK:
                    st = sg_delta_apply(base, base_size, d.lane.spare, <size_t>o.size, data, <size_t>o.raw, NULL, 0, &used)
            if st != SG_OK:
                free(data)
                return st
            self._keep(d, at, data, <size_t>o.raw)
            base = data
            base_size = <size_t>o.raw
        out[0] = base
        return SG_OK

    # ---- trees ----

    cdef sg_status _tell(self, Desk *d, uint8_t number, uint32_t i, const Slot *t, const Slot *base) noexcept nogil:
        """Note the children of a tree that its base does not have, in the base's order of names."""
        cdef size_t h = self.ingest.hash_size, p = 0, q = 0, end = 0, base_end = 0
        cdef bint link = False, base_link = False, read = False
        cdef Choice *c = &self.choices[i]
        cdef uint8_t *more
        cdef int order
        cdef sg_status st
        c.edge_at = d.n_edges
        c.lane = number
        c.told = 1
        while p < t.size:
            st = tree_entry(t.data, t.size, p, h, &end, &link)
            if st != SG_OK:
                return st
            order = 1
            while base != NULL and q < base.size:
                if not read:
                    st = tree_entry(base.data, base.size, q, h, &base_end, &base_link)
                    if st != SG_OK:
                        return st
                    read = True
                order = name_order(base.data + q, base_end - q - h, t.data + p, end - p - h)
                if order >= 0:
                    break
                q = base_end
                read = False
            if order == 0 and q < (base.size if base != NULL else 0) and base_end - q == end - p and memcmp(
                    base.data + q, t.data + p, end - p) == 0:
                p = end
                continue
            if not link:
                if d.n_edges == d.edges_room:
                    more = <uint8_t *>realloc(d.edges, (d.edges_room * 3 // 2 + 16384) * h)
                    if more == NULL:
                        return SG_MEMORY
                    d.edges = more
                    d.edges_room = d.edges_room * 3 // 2 + 16384
                memcpy(d.edges + d.n_edges * h, t.data + end - h, h)
                d.n_edges += 1
            p = end
        if d.n_edges - c.edge_at >= EXTERNAL:
            return SG_LIMIT
        c.edges = <uint32_t>(d.n_edges - c.edge_at)
        return SG_OK

    # ---- the end ----

    def apply(self):
        """Put the chosen bases and entries in place; returns how many objects are deltas. What failed is raised."""
        cdef Resolver g = self.ingest
        cdef uint32_t i, k
        cdef uint64_t lanes
        if self.error is not None:
            raise self.error
        cdef uint64_t failure = sg_load(&self.failure)
        if failure:
            raise error_of(<int>failure)
        if self.done_objects != self.n_keys:
            raise Internal("bases are not all chosen", done=int(self.done_objects))
        lanes = g._lanes_used()
        if lanes + self.n_desks > 64:
            raise Internal("too many threads")
        if g.n_buffers != g.n_packs:
            raise Internal("bases come before the layout")
        self._adopt_rooms()
        for k in range(<uint32_t>self.n_desks):
            g.lanes[lanes + k].edges = self.desks[k].edges
            g.lanes[lanes + k].n_edges = self.desks[k].n_edges
            g.lanes[lanes + k].edges_room = self.desks[k].edges_room
            self.desks[k].edges = NULL
        g.lanes_most = lanes + self.n_desks
        return int(self._apply(<uint8_t>lanes))

    cdef int _adopt_rooms(self) except -1:
        """Make the rooms packs of the resolver: it holds them as long as it lives."""
        cdef Resolver g = self.ingest
        cdef size_t total = <size_t>g.n_packs + <size_t>len(self.rooms)
        cdef Py_buffer *buffers
        cdef Pack *packs
        if total >= 65535:
            raise LimitExceeded("too many packs in one run", limit=65535)
        buffers = <Py_buffer *>realloc(g.buffers, (total + 1) * sizeof(Py_buffer))
        if buffers == NULL:
            raise MemoryError
        g.buffers = buffers
        packs = <Pack *>realloc(g.packs, (total + 1) * sizeof(Pack))
        if packs == NULL:
            raise MemoryError
        g.packs = packs
        for view in self.rooms:
            PyObject_GetBuffer(view, &g.buffers[g.n_buffers], PyBUF_WRITABLE)
            g.packs[g.n_packs].data = <const uint8_t *>g.buffers[g.n_buffers].buf
            g.packs[g.n_packs].size = <uint64_t>g.buffers[g.n_buffers].len
            g.packs[g.n_packs].first = self.n
            g.packs[g.n_packs].count = 0
            g.n_buffers += 1
            g.n_packs += 1
        return 0

    cdef uint16_t _pack_of(self, const uint8_t *body, uint16_t first) noexcept nogil:
        cdef uint16_t k
        for k in range(first, self.ingest.n_packs):
            if self.ingest.packs[k].data <= body < self.ingest.packs[k].data + self.ingest.packs[k].size:
                return k
        return 0

    cdef uint32_t _apply(self, uint8_t first_lane) noexcept nogil:
        cdef uint32_t k, i, deltas = 0
        cdef uint16_t pack = 0
        cdef Object *o
        cdef Choice *c
        for k in range(self.n_keys):
            i = self.keys[k].object
            o = &self.ingest.objects[i]
            c = &self.choices[i]
            if o.raw > self.size_most or c.offered:
                continue
            if c.body != NULL:
                if not (self.ingest.packs[pack].data <= c.body < self.ingest.packs[pack].data + self.ingest.packs[pack].size):
                    pack = self._pack_of(c.body, 0)
                o.pack = pack
                o.at = <uint64_t>(c.body - self.ingest.packs[pack].data)
                o.head = 0
                o.body = c.length
                o.size = c.size
            o.base = c.base
            o.depth = c.depth
            o.entry = o.type if c.base == NONE else <uint8_t>SG_OFS_DELTA
            if c.base != NONE:
                deltas += 1
            if c.told:
                o.similar = c.base
                o.lane = first_lane + c.lane
                o.edge_at = c.edge_at
                o.edges = c.edges
        return deltas


cdef int name_order(const uint8_t *a, size_t n, const uint8_t *b, size_t m) noexcept nogil:
    """Compare the names in the heads of two tree entries ("mode name NUL") as git sorts them: folders end in "/"."""
    cdef size_t i = 0, j = 0, k
    cdef int order
    cdef uint8_t x, y
    while i < n and a[i] != 32:
        i += 1
    while j < m and b[j] != 32:
        j += 1
    cdef bint a_tree = i == 5 and a[0] == 52  # 40000
    cdef bint b_tree = j == 5 and b[0] == 52
    i += 1
    j += 1
    k = min(n - 1 - i, m - 1 - j)
    order = memcmp(a + i, b + j, k)
    if order:
        return order
    x = a[i + k] if k < n - 1 - i else (47 if a_tree else 0)
    y = b[j + k] if k < m - 1 - j else (47 if b_tree else 0)
    return <int>x - <int>y


cdef void free_search(Desk *d) noexcept nogil:
    """Free all but the edges."""
    cdef int k
    if d.cache != NULL:
        for k in range(CACHE_SLOTS):
            free(d.cache[k].data)
    free(d.cache)
    d.cache = NULL
    for k in range(WINDOW_MOST + 1):
        if d.slots[k].indexed:
            sg_delta_index_free(&d.slots[k].index)
        d.slots[k].indexed = False
        free(d.slots[k].data)
        d.slots[k].data = NULL
        d.slots[k].room = 0
    sg_inflater_free(d.lane.inflater)
    d.lane.inflater = NULL
    free(d.lane.spare)
    d.lane.spare = NULL
    d.lane.spare_room = 0
    sg_deflater_free(d.deflater)
    d.deflater = NULL
    free(d.chain)
    d.chain = NULL
    free(d.trial)
    d.trial = NULL
    free(d.best)
    d.best = NULL
    free(d.packed)
    d.packed = NULL


cdef void free_desk(Desk *d) noexcept nogil:
    free_search(d)
    free(d.edges)
    d.edges = NULL
