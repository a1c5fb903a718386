"""The graph kernel: what reaches what, without reading objects. See docs/formats/graph.md.

A PoolGraph is the graph streams of a pool's runs with all links turned into pool positions; a Walk marks what tips
reach in a bitset over pool positions (bit p is byte p >> 3, bit p & 7).
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from shardgit._kernel cimport (SG_OK, sg_deflate, sg_deflate_bound, sg_inflate, sg_inflater, sg_inflater_free,
                               sg_inflater_new, sg_put_u32, sg_put_u64, sg_status, sg_u16, sg_u32, sg_u64)

from shardgit.errors import BlockCorrupt, Internal

cdef enum:
    NONE = 0xFFFFFFFF
    MISSING = 0xFFFFFFFE
    EXTERNAL = 0x80000000
    COMMIT = 1
    TREE = 2
    BLOB = 3
    TAG = 4
    WANT = 1
    HAVE = 2
    OPEN = 1
    YES = 2
    NO = 3


ctypedef struct Stream:
    const uint8_t *date
    const uint8_t *generation
    const uint8_t *tree
    const uint8_t *parent_start
    const uint8_t *parents
    const uint8_t *target
    const uint8_t *similar
    const uint8_t *edge_start
    const uint8_t *edges
    const uint8_t *externals
    uint32_t c
    uint32_t g
    uint32_t t
    uint32_t b
    uint32_t m
    uint32_t e
    uint32_t x


ctypedef struct Counts:
    uint64_t objects
    uint64_t commits
    uint64_t tags
    uint64_t trees
    uint64_t parents
    uint64_t edges


cdef bint stream_of(const uint8_t *data, size_t length, int hash_kind, size_t h, Stream *s) noexcept nogil:
    """Place the columns of a graph stream; False when the counts do not add up."""
    cdef uint64_t need
    if length < 64 or memcmp(data, b"SGGR", 4) != 0 or sg_u16(data + 4) != 1 or sg_u16(data + 6) != <uint32_t>hash_kind:
        return False
    s.c = sg_u32(data + 8)
    s.g = sg_u32(data + 12)
    s.t = sg_u32(data + 16)
    s.b = sg_u32(data + 20)
    s.m = sg_u32(data + 24)
    s.e = sg_u32(data + 28)
    s.x = sg_u32(data + 32)
    need = 64 + <uint64_t>s.c * 20 + 4 + <uint64_t>s.m * 4 + <uint64_t>s.g * 4 + <uint64_t>s.t * 8 + 4 \
        + <uint64_t>s.e * 4 + <uint64_t>s.x * h
    if need != length or <uint64_t>s.c + s.g + s.t + s.b >= EXTERNAL or s.x >= 0x7FFFFFFE:
        return False
    s.date = data + 64
    s.generation = s.date + <size_t>s.c * 8
    s.tree = s.generation + <size_t>s.c * 4
    s.parent_start = s.tree + <size_t>s.c * 4
    s.parents = s.parent_start + (<size_t>s.c + 1) * 4
    s.target = s.parents + <size_t>s.m * 4
    s.similar = s.target + <size_t>s.g * 4
    s.edge_start = s.similar + <size_t>s.t * 4
    s.edges = s.edge_start + (<size_t>s.t + 1) * 4
    s.externals = s.edges + <size_t>s.e * 4
    return True


# ---- packed streams ----

cdef uint64_t stream_words(const uint8_t *data) noexcept nogil:
    """The u32 words behind the header of a stream, dates as two, without the external ids."""
    return (<uint64_t>sg_u32(data + 8) * 5 + 1 + sg_u32(data + 24) + sg_u32(data + 12) + <uint64_t>sg_u32(data + 16) * 2 + 1
            + sg_u32(data + 28))


def pack_stream(const uint8_t[::1] stream not None):
    """Return a graph stream of version 1 as one of version 2: the same columns, packed."""
    cdef size_t n = <size_t>stream.shape[0], at = 0, room
    cdef uint64_t words, k, dates, v
    cdef int64_t last = 0, now
    cdef const uint8_t *data
    cdef const uint8_t *p
    cdef uint8_t *out
    cdef uint8_t *squeezed = NULL
    cdef size_t bound, length = 0
    if n < 64:
        raise Internal("not a graph stream")
    data = &stream[0]
    words = stream_words(data)
    dates = sg_u32(data + 8)
    if n - 64 < words * 4:
        raise Internal("not a graph stream")
    room = <size_t>(words * 10) + 16
    out = <uint8_t *>malloc(room)
    if out == NULL:
        raise MemoryError
    try:
        with nogil:
            p = data + 64
            for k in range(words - dates):
                # Dates are one number of 8 bytes each; all else is 4.
                if k < dates:
                    now = <int64_t>sg_u64(p)
                    p += 8
                else:
                    now = <int64_t>sg_u32(p)
                    p += 4
                v = <uint64_t>now - <uint64_t>last
                last = now
                v = (v << 1) ^ (0 - (v >> 63))
                while v >= 0x80:
                    out[at] = <uint8_t>(v | 0x80)
                    at += 1
                    v >>= 7
                out[at] = <uint8_t>v
                at += 1
            bound = sg_deflate_bound(at)
            squeezed = <uint8_t *>malloc(bound)
            if squeezed != NULL:
                length = sg_deflate(9, out, at, squeezed, bound)
        if length == 0:
            raise MemoryError
        packed = PyBytes_FromStringAndSize(<char *>squeezed, <Py_ssize_t>length)
    finally:
        free(out)
        free(squeezed)
    head = bytearray(stream[:64])
    head[4] = 2
    sg_put_u64(<uint8_t *>PyByteArray_AS_STRING(head) + 36, at)
    sg_put_u64(<uint8_t *>PyByteArray_AS_STRING(head) + 44, <uint64_t>len(packed))
    return bytes(head) + packed + bytes(stream[64 + <Py_ssize_t>(words * 4):])


def unpack_stream(bytes stream not None):
    """Return a graph stream of either version as one of version 1. BlockCorrupt when it is damaged."""
    cdef size_t n = <size_t>len(stream)
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(stream)
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef uint8_t *to
    cdef uint64_t words, size, packed, k, dates, v
    cdef int64_t last = 0
    cdef unsigned int shift
    cdef bint ok = True
    cdef sg_inflater *inflater
    cdef sg_status st
    cdef size_t used = 0
    if n < 64 or memcmp(data, b"SGGR", 4) != 0 or sg_u16(data + 4) != 2:
        return stream
    words = stream_words(data)
    dates = sg_u32(data + 8)
    size = sg_u64(data + 36)
    packed = sg_u64(data + 44)
    # A word takes a byte at least, and a byte of deflate holds 1,032: a larger claim is a lie.
    if packed > n - 64 or size > packed * 1032 + 1024 or words - dates > size:
        raise BlockCorrupt("graph stream claims more than it can hold", bytes=int(n))
    cdef bytes flat = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    cdef uint8_t *room = <uint8_t *>PyBytes_AS_STRING(flat)
    inflater = sg_inflater_new()
    if inflater == NULL:
        raise MemoryError
    with nogil:
        st = sg_inflate(inflater, data + 64, <size_t>packed, room, <size_t>size, &used)
        sg_inflater_free(inflater)
    if st != SG_OK or used != packed:
        raise BlockCorrupt("graph stream does not inflate", bytes=int(n))
    out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(words * 4))
    p = <const uint8_t *>PyBytes_AS_STRING(flat)
    end = p + size
    to = <uint8_t *>PyBytes_AS_STRING(out)
    with nogil:
        for k in range(words - dates):
            v = 0
            shift = 0
            while True:
                if p == end or shift > 63:
                    ok = False
                    break
                v |= <uint64_t>(p[0] & 0x7f) << shift
                shift += 7
                p += 1
                if not (p - 1)[0] & 0x80:
                    break
            if not ok:
                break
            v = (v >> 1) ^ (0 - (v & 1))
            last = <int64_t>(<uint64_t>last + v)
            if k < dates:
                sg_put_u64(to, <uint64_t>last)
                to += 8
            else:
                sg_put_u32(to, <uint32_t><uint64_t>last)
                to += 4
    if not ok or p != end:
        raise BlockCorrupt("graph stream is damaged", bytes=int(n))
    head = bytearray(stream[:64])
    head[4] = 1
    head[36:52] = bytes(16)
    return bytes(head) + out + stream[<Py_ssize_t>(64 + packed) :]


cdef bint rising(const uint8_t *starts, uint32_t n, uint32_t end) noexcept nogil:
    cdef uint32_t i, last = 0, v
    for i in range(n + 1):
        v = sg_u32(starts + <size_t>i * 4)
        if v < last or (i == 0 and v != 0):
            return False
        last = v
    return last == end


cdef inline bint has(const uint64_t *bits, uint32_t at) noexcept nogil:
    return (bits[at >> 6] >> (at & 63)) & 1


cdef inline void put(uint64_t *bits, uint32_t at) noexcept nogil:
    bits[at >> 6] |= <uint64_t>1 << (at & 63)


cdef class Arrays:
    """The memory of graphs that grew out of each other: each sees its own first rows, the longest may append in place."""

    cdef uint8_t *kind  # by pool position
    cdef uint32_t *row  # by pool position: index into the arrays of its kind
    cdef int64_t *date
    cdef uint32_t *generation
    cdef uint32_t *tree
    cdef uint32_t *parent_start
    cdef uint32_t *parents
    cdef uint32_t *target
    cdef uint32_t *similar
    cdef uint32_t *edge_start
    cdef uint32_t *edges
    cdef Counts room
    cdef uint64_t used  # objects of the longest graph

    def __dealloc__(self):
        free(self.kind)
        free(self.row)
        free(self.date)
        free(self.generation)
        free(self.tree)
        free(self.parent_start)
        free(self.parents)
        free(self.target)
        free(self.similar)
        free(self.edge_start)
        free(self.edges)

    @staticmethod
    cdef Arrays make(Counts need):
        """Return arrays with room for ``need`` and a quarter more."""
        cdef Arrays made = Arrays()
        cdef Counts r
        r.objects = roomy(need.objects)
        r.commits = roomy(need.commits)
        r.tags = roomy(need.tags)
        r.trees = roomy(need.trees)
        r.parents = roomy(need.parents)
        r.edges = roomy(need.edges)
        made.kind = <uint8_t *>malloc(r.objects + 1)
        made.row = <uint32_t *>malloc((r.objects + 1) * 4)
        made.date = <int64_t *>malloc((r.commits + 1) * 8)
        made.generation = <uint32_t *>malloc((r.commits + 1) * 4)
        made.tree = <uint32_t *>malloc((r.commits + 1) * 4)
        made.parent_start = <uint32_t *>calloc(r.commits + 2, 4)
        made.parents = <uint32_t *>malloc((r.parents + 1) * 4)
        made.target = <uint32_t *>malloc((r.tags + 1) * 4)
        made.similar = <uint32_t *>malloc((r.trees + 1) * 4)
        made.edge_start = <uint32_t *>calloc(r.trees + 2, 4)
        made.edges = <uint32_t *>malloc((r.edges + 1) * 4)
        if (made.kind == NULL or made.row == NULL or made.date == NULL or made.generation == NULL or made.tree == NULL
                or made.parent_start == NULL or made.parents == NULL or made.target == NULL or made.similar == NULL
                or made.edge_start == NULL or made.edges == NULL):
            raise MemoryError
        made.room = r
        return made


cdef inline uint64_t roomy(uint64_t n) noexcept nogil:
    return n + n // 4 + 64


cdef class PoolGraph:
    """The commits, tags and trees of a pool as flat arrays.

    ``extended`` returns a graph with one run more and leaves this one as it is; both share memory. ``add_run`` appends
    to this one, which nobody else may be using.
    """

    cdef readonly int hash_kind
    cdef size_t h
    cdef readonly uint32_t objects
    cdef readonly uint32_t commits
    cdef readonly uint32_t tags
    cdef readonly uint32_t trees
    cdef readonly uint32_t lacking  # parents that the pool did not have when their commit's run was appended
    cdef readonly bint stale  # a commit's generation is not above its parent's
    cdef uint32_t n_parents
    cdef uint32_t n_edges
    cdef Arrays arrays
    # Those of ``arrays``, at hand:
    cdef uint8_t *kind
    cdef uint32_t *row
    cdef int64_t *date
    cdef uint32_t *generation
    cdef uint32_t *tree
    cdef uint32_t *parent_start
    cdef uint32_t *parents
    cdef uint32_t *target
    cdef uint32_t *similar
    cdef uint32_t *edge_start
    cdef uint32_t *edges

    def __cinit__(self, int hash_kind):
        cdef Counts none
        memset(&none, 0, sizeof(none))
        self.hash_kind = hash_kind
        self.h = 32 if hash_kind == 2 else 20
        self._adopt(Arrays.make(none))

    cdef void _adopt(self, Arrays arrays):
        self.arrays = arrays
        self.kind = arrays.kind
        self.row = arrays.row
        self.date = arrays.date
        self.generation = arrays.generation
        self.tree = arrays.tree
        self.parent_start = arrays.parent_start
        self.parents = arrays.parents
        self.target = arrays.target
        self.similar = arrays.similar
        self.edge_start = arrays.edge_start
        self.edges = arrays.edges

    cdef int _make_room(self, Counts need) except -1:
        """Move to larger arrays unless these have room and nobody else has appended to them."""
        cdef Arrays old = self.arrays
        cdef Arrays made
        cdef Counts r = old.room
        if (old.used == self.objects and need.objects <= r.objects and need.commits <= r.commits and need.tags <= r.tags
                and need.trees <= r.trees and need.parents <= r.parents and need.edges <= r.edges):
            return 0
        self._copied_to(Arrays.make(need))
        return 0

    cdef void _copied_to(self, Arrays made):
        """Move to other arrays, which have room."""
        cdef Arrays old = self.arrays
        memcpy(made.kind, old.kind, self.objects)
        memcpy(made.row, old.row, <size_t>self.objects * 4)
        memcpy(made.date, old.date, <size_t>self.commits * 8)
        memcpy(made.generation, old.generation, <size_t>self.commits * 4)
        memcpy(made.tree, old.tree, <size_t>self.commits * 4)
        memcpy(made.parent_start, old.parent_start, (<size_t>self.commits + 1) * 4)
        memcpy(made.parents, old.parents, <size_t>self.n_parents * 4)
        memcpy(made.target, old.target, <size_t>self.tags * 4)
        memcpy(made.similar, old.similar, <size_t>self.trees * 4)
        memcpy(made.edge_start, old.edge_start, (<size_t>self.trees + 1) * 4)
        memcpy(made.edges, old.edges, <size_t>self.n_edges * 4)
        made.used = self.objects
        self._adopt(made)

    cdef PoolGraph _same(self):
        """Return a graph of the same rows in the same memory."""
        cdef PoolGraph made = PoolGraph(self.hash_kind)
        made.objects = self.objects
        made.commits = self.commits
        made.tags = self.tags
        made.trees = self.trees
        made.lacking = self.lacking
        made.stale = self.stale
        made.n_parents = self.n_parents
        made.n_edges = self.n_edges
        made._adopt(self.arrays)
        return made

    def extended(self, bytes stream not None, externals not None):
        """Return a graph with one run more. Arguments as for ``add_run``. One thread at a time in a line of graphs."""
        cdef PoolGraph made = self._same()
        made.add_run(stream, externals)
        return made

    def amended(self, cuts not None, links not None):
        """Return a copy in which commits have other parents; this one stays as it is.

        ``cuts`` are commits that have no parents there. ``links`` are (commit, the positions of all its parents): those
        that the pool lacked are put in, -1 leaves one as it is. Generations are found anew where they no longer rise.
        """
        cdef PoolGraph made = self._same()
        cdef Counts need
        cdef uint32_t r, i, first
        cdef int64_t end
        need.objects = self.objects
        need.commits = self.commits
        need.tags = self.tags
        need.trees = self.trees
        need.parents = self.n_parents
        need.edges = self.n_edges
        made._copied_to(Arrays.make(need))
        for position in cuts:
            r = made._commit(position)
            for i in range(made.parent_start[r], made.parent_start[r + 1]):
                made.lacking -= made.parents[i] == MISSING
                made.parents[i] = <uint32_t>NONE
        for position, parents in links:
            r = made._commit(position)
            first = made.parent_start[r]
            if len(parents) != made.parent_start[r + 1] - first:
                raise BlockCorrupt("commit has another number of parents than its graph row", position=int(position))
            for i in range(made.parent_start[r + 1] - first):
                end = parents[i]
                if made.parents[first + i] == MISSING and 0 <= end < <int64_t>made.objects:
                    made.parents[first + i] = <uint32_t>end
                    made.lacking -= 1
        with nogil:
            made.stale = made._falls(0)
        if made.stale:
            made._restack()
        return made

    def lacking_commits(self, uint32_t start=0):
        """Return the commits from position ``start`` on with a parent that the pool did not have."""
        cdef uint32_t position, r, i
        out = []
        if not self.lacking:
            return out
        for position in range(start, self.objects):
            if self.kind[position] != COMMIT:
                continue
            r = self.row[position]
            for i in range(self.parent_start[r], self.parent_start[r + 1]):
                if self.parents[i] == MISSING:
                    out.append(int(position))
                    break
        return out

    cdef bint _falls(self, uint32_t first) noexcept nogil:
        """Return whether a commit's generation is not above its parent's, from row ``first`` on."""
        cdef uint32_t r, i, parent
        for r in range(first, self.commits):
            for i in range(self.parent_start[r], self.parent_start[r + 1]):
                parent = self.parents[i]
                if (parent < MISSING and self.kind[parent] == COMMIT
                        and self.generation[self.row[parent]] >= self.generation[r]):
                    return True
        return False

    cdef int _restack(self) except -1:
        """Find all generations anew, depth first with an explicit stack."""
        cdef uint8_t *state = <uint8_t *>calloc(<size_t>self.commits + 1, 1)
        cdef uint32_t *stack = <uint32_t *>malloc((<size_t>self.commits + 1) * 4)
        cdef uint32_t *cursor = <uint32_t *>malloc((<size_t>self.commits + 1) * 4)
        try:
            if state == NULL or stack == NULL or cursor == NULL:
                raise MemoryError
            with nogil:
                self._stacked(state, stack, cursor)
            self.stale = False
        finally:
            free(state)
            free(stack)
            free(cursor)
        return 0

    cdef void _stacked(self, uint8_t *state, uint32_t *stack, uint32_t *cursor) noexcept nogil:
        cdef uint32_t start, r, p, i, parent, highest, top = 0
        for start in range(self.commits):
            if state[start]:
                continue
            state[start] = OPEN
            stack[0] = start
            cursor[start] = self.parent_start[start]
            top = 1
            while top:
                r = stack[top - 1]
                if cursor[r] < self.parent_start[r + 1]:
                    parent = self.parents[cursor[r]]
                    cursor[r] += 1
                    if parent < MISSING and self.kind[parent] == COMMIT and state[self.row[parent]] == 0:
                        p = self.row[parent]
                        state[p] = OPEN
                        cursor[p] = self.parent_start[p]
                        stack[top] = p
                        top += 1
                    continue
                highest = 0
                for i in range(self.parent_start[r], self.parent_start[r + 1]):
                    parent = self.parents[i]
                    if parent < MISSING and self.kind[parent] == COMMIT and state[self.row[parent]] == YES:
                        if self.generation[self.row[parent]] > highest:
                            highest = self.generation[self.row[parent]]
                self.generation[r] = highest + 1
                state[r] = YES
                top -= 1

    @staticmethod
    def externals_of(bytes stream not None, int hash_kind):
        """Return the ids of the objects outside the run that its links name, in the stream's order."""
        cdef Stream s
        cdef size_t h = 32 if hash_kind == 2 else 20
        cdef uint32_t i
        if not stream_of(<const uint8_t *>PyBytes_AS_STRING(stream), <size_t>len(stream), hash_kind, h, &s):
            raise BlockCorrupt("graph stream is off", bytes=len(stream))
        return [PyBytes_FromStringAndSize(<const char *>s.externals + i * h, <Py_ssize_t>h) for i in range(s.x)]

    def add_run(self, bytes stream not None, externals not None):
        """Append a run. ``externals`` are the pool positions of ``externals_of`` (stream), -1 where the pool lacks one."""
        cdef Stream s
        cdef uint32_t i, base = self.objects, bad = 0
        cdef int64_t position
        cdef uint32_t *outside
        if not stream_of(<const uint8_t *>PyBytes_AS_STRING(stream), <size_t>len(stream), self.hash_kind, self.h, &s):
            raise BlockCorrupt("graph stream is off", bytes=len(stream))
        cdef uint64_t total = <uint64_t>base + s.c + s.g + s.t + s.b
        cdef Counts need
        if total >= EXTERNAL or <uint64_t>self.n_edges + s.e >= EXTERNAL or <uint64_t>self.n_parents + s.m >= EXTERNAL:
            raise BlockCorrupt("graph is too large", objects=int(total))
        if not rising(s.parent_start, s.c, s.m) or not rising(s.edge_start, s.t, s.e):
            raise BlockCorrupt("graph stream has falling starts")
        if <uint64_t>len(externals) != s.x:
            raise Internal("one position for each external is wanted", externals=int(s.x))
        outside = <uint32_t *>malloc((<size_t>s.x + 1) * 4)
        if outside == NULL:
            raise MemoryError
        try:
            for i in range(s.x):
                position = externals[i]
                outside[i] = <uint32_t>position if 0 <= position < <int64_t>total else <uint32_t>MISSING
            need.objects = total
            need.commits = <uint64_t>self.commits + s.c
            need.tags = <uint64_t>self.tags + s.g
            need.trees = <uint64_t>self.trees + s.t
            need.parents = <uint64_t>self.n_parents + s.m
            need.edges = <uint64_t>self.n_edges + s.e
            self._make_room(need)
            self.arrays.used = total  # what is behind our rows is ours from here on
            with nogil:
                bad = self._append(&s, base, outside)
            if bad:
                raise BlockCorrupt("graph link is out of range", links=int(bad))
            for i in range(s.m):
                self.lacking += self.parents[self.n_parents + i] == MISSING
            self.objects = <uint32_t>total
            self.commits += s.c
            self.tags += s.g
            self.trees += s.t
            self.n_parents += s.m
            self.n_edges += s.e
            with nogil:
                self.stale = self.stale or self._falls(self.commits - s.c)
        finally:
            free(outside)

    cdef uint32_t _append(self, Stream *s, uint32_t base, const uint32_t *outside) noexcept nogil:
        cdef uint32_t i, bad = 0, n = s.c + s.g + s.t + s.b
        for i in range(s.c):
            self.kind[base + i] = COMMIT
            self.row[base + i] = self.commits + i
            self.date[self.commits + i] = <int64_t>sg_u64(s.date + <size_t>i * 8)
            self.generation[self.commits + i] = sg_u32(s.generation + <size_t>i * 4)
            self.tree[self.commits + i] = link(sg_u32(s.tree + <size_t>i * 4), base, n, outside, s.x, &bad)
            self.parent_start[self.commits + i + 1] = self.n_parents + sg_u32(s.parent_start + (<size_t>i + 1) * 4)
        for i in range(s.m):
            self.parents[self.n_parents + i] = link(sg_u32(s.parents + <size_t>i * 4), base, n, outside, s.x, &bad)
        for i in range(s.g):
            self.kind[base + s.c + i] = TAG
            self.row[base + s.c + i] = self.tags + i
            self.target[self.tags + i] = link(sg_u32(s.target + <size_t>i * 4), base, n, outside, s.x, &bad)
        for i in range(s.t):
            self.kind[base + s.c + s.g + i] = TREE
            self.row[base + s.c + s.g + i] = self.trees + i
            self.similar[self.trees + i] = link(sg_u32(s.similar + <size_t>i * 4), base, n, outside, s.x, &bad)
            self.edge_start[self.trees + i + 1] = self.n_edges + sg_u32(s.edge_start + (<size_t>i + 1) * 4)
        for i in range(s.e):
            self.edges[self.n_edges + i] = link(sg_u32(s.edges + <size_t>i * 4), base, n, outside, s.x, &bad)
        for i in range(s.b):
            self.kind[base + s.c + s.g + s.t + i] = BLOB
            self.row[base + s.c + s.g + s.t + i] = 0
        return bad

    cdef uint32_t _commit(self, int64_t position) except? 0xFFFFFFFF:
        if not 0 <= position < self.objects or self.kind[position] != COMMIT:
            raise BlockCorrupt("graph position is no commit", position=int(position))
        return self.row[position]

    def type_at(self, uint32_t position):
        """Return the type at a pool position: 1 commit, 2 tree, 3 blob, 4 tag."""
        if position >= self.objects:
            raise IndexError(position)
        return int(self.kind[position])

    def parents_at(self, uint32_t position):
        """Return the positions of a commit's parents, in its order; -1 where the pool lacks one, none where they are cut."""
        cdef uint32_t r = self._commit(position), i
        return [position_or_none(self.parents[i]) for i in range(self.parent_start[r], self.parent_start[r + 1])
                if self.parents[i] != <uint32_t>NONE]

    def tree_at(self, uint32_t position):
        """Return the position of a commit's tree, -1 where the pool lacks it."""
        return position_or_none(self.tree[self._commit(position)])

    def target_at(self, uint32_t position):
        """Return the position of what a tag names, -1 where the pool lacks it."""
        if position >= self.objects or self.kind[position] != TAG:
            raise BlockCorrupt("graph position is no tag", position=int(position))
        return position_or_none(self.target[self.row[position]])

    def date_at(self, uint32_t position):
        """Return a commit's committer date, in seconds since 1970."""
        return int(self.date[self._commit(position)])

    def generation_at(self, uint32_t position):
        """Return a commit's generation number."""
        return int(self.generation[self._commit(position)])

    def peel(self, uint32_t position):
        """Return the position of what a chain of tags names in the end, -1 where the pool lacks it."""
        cdef uint32_t at = position, steps = 0
        if position >= self.objects:
            raise IndexError(position)
        while self.kind[at] == TAG:
            at = self.target[self.row[at]]
            steps += 1
            if at >= MISSING or steps > self.tags:
                return -1
        return int(at)

    def split(self, wants not None, haves not None):
        """Return (commits that wants reach and haves do not, their parents that haves reach), as pool positions.

        ``wants`` and ``haves`` are commits. Paints by falling generation, so only what lies above the join is visited.
        """
        return split_within(self, wants, haves, (), ())

    cdef inline bint _before(self, uint32_t a, uint32_t b) noexcept nogil:
        return self.generation[a] > self.generation[b]

    cdef uint32_t _heap_push(self, uint32_t *heap, uint32_t n, uint32_t r) noexcept nogil:
        cdef uint32_t at = n, up
        while at:
            up = (at - 1) >> 1
            if not self._before(r, heap[up]):
                break
            heap[at] = heap[up]
            at = up
        heap[at] = r
        return n + 1

    cdef uint32_t _heap_pop(self, uint32_t *heap, uint32_t n) noexcept nogil:
        cdef uint32_t last = heap[n - 1], at = 0, down
        n -= 1
        while 2 * at + 1 < n:
            down = 2 * at + 1
            if down + 1 < n and self._before(heap[down + 1], heap[down]):
                down += 1
            if not self._before(heap[down], last):
                break
            heap[at] = heap[down]
            at = down
        heap[at] = last
        return n

    def all_reach(self, wants not None, haves not None):
        """Return whether every commit of ``wants`` is or reaches one of ``haves``; both are pool positions."""
        cdef uint8_t *state = <uint8_t *>calloc(<size_t>self.commits + 1, 1)
        cdef uint32_t *stack = <uint32_t *>malloc((<size_t>self.commits + 2) * 4)
        cdef uint32_t *cursor = <uint32_t *>malloc((<size_t>self.commits + 1) * 4)
        cdef uint32_t r, lowest = NONE
        cdef bint ok = True
        if state == NULL or stack == NULL or cursor == NULL:
            free(state)
            free(stack)
            free(cursor)
            raise MemoryError
        try:
            for position in haves:
                r = self._commit(position)
                state[r] = YES
                if self.generation[r] < lowest:
                    lowest = self.generation[r]
            for position in wants:
                r = self._commit(position)
                with nogil:
                    ok = self._reaches(r, lowest, state, stack, cursor)
                if not ok:
                    break
        finally:
            free(state)
            free(stack)
            free(cursor)
        return bool(ok)

    cdef bint _reaches(self, uint32_t start, uint32_t lowest, uint8_t *state, uint32_t *stack,
                       uint32_t *cursor) noexcept nogil:
        """Depth-first with an explicit stack; what is known of a commit is kept for the next want."""
        cdef uint32_t top = 1, r, p, parent
        if state[start] == 0:
            state[start] = OPEN
            stack[0] = start
            cursor[start] = self.parent_start[start]
            while top:
                r = stack[top - 1]
                if self.generation[r] < lowest or cursor[r] == self.parent_start[r + 1]:
                    state[r] = NO
                    top -= 1
                    continue
                parent = self.parents[cursor[r]]
                cursor[r] += 1
                if parent >= MISSING or self.kind[parent] != COMMIT:
                    continue
                p = self.row[parent]
                if state[p] == YES:
                    # All that is on the stack reaches it.
                    while top:
                        top -= 1
                        state[stack[top]] = YES
                    break
                if state[p] == 0:
                    state[p] = OPEN
                    cursor[p] = self.parent_start[p]
                    stack[top] = p
                    top += 1
        return state[start] == YES

    def is_ancestor(self, uint32_t ancestor, uint32_t descendant):
        """Return whether ``descendant`` is or reaches ``ancestor``."""
        if ancestor == descendant:
            return True
        if self.generation[self._commit(ancestor)] >= self.generation[self._commit(descendant)]:
            return False
        return not self.split([ancestor], [descendant])[0]


cdef inline uint32_t link(uint32_t v, uint32_t base, uint32_t n, const uint32_t *outside, uint32_t x,
                          uint32_t *bad) noexcept nogil:
    """Turn a stream's link into a pool position."""
    if v == NONE:
        return NONE
    if v & EXTERNAL:
        if (v & ~<uint32_t>EXTERNAL) >= x:
            bad[0] += 1
            return NONE
        return outside[v & ~<uint32_t>EXTERNAL]
    if v >= n:
        bad[0] += 1
        return NONE
    return base + v


cdef object position_or_none(uint32_t v):
    return -1 if v >= MISSING else int(v)


cdef class Walk:
    """Marks exactly what tips reach.

    ``have`` is a bitset of objects that count as reached already and are left out; what the trees in it share with
    others counts as had too. Use: ``mark`` tips; ``run`` until it returns no tree; each tree that it returns is to be
    read by the caller, whose ``expand`` marks its children.
    """

    cdef PoolGraph graph
    cdef uint64_t *bits
    cdef uint64_t *have
    cdef size_t words
    cdef uint32_t *stack
    cdef uint64_t n_stack
    cdef uint64_t stack_room
    cdef uint32_t *pending
    cdef uint64_t n_pending
    cdef uint64_t pending_room
    cdef readonly bint incomplete  # a link led to an object that the pool lacks
    cdef bint no_memory

    def __cinit__(self, PoolGraph graph not None, have=None):
        cdef const uint8_t[::1] given
        self.graph = graph
        self.words = (<size_t>graph.objects >> 6) + 1
        self.bits = <uint64_t *>calloc(self.words, 8)
        if self.bits == NULL:
            raise MemoryError
        if have is not None:
            self.have = <uint64_t *>calloc(self.words, 8)
            if self.have == NULL:
                raise MemoryError
            given = have
            if given.shape[0]:
                memcpy(self.have, &given[0], min(<size_t>given.shape[0], self.words * 8))

    def __dealloc__(self):
        free(self.bits)
        free(self.have)
        free(self.stack)
        free(self.pending)

    cdef void _mark(self, uint32_t position) noexcept nogil:
        cdef uint32_t *more
        if position >= MISSING:
            if position == MISSING:
                self.incomplete = True
            return
        if has(self.bits, position) or (self.have != NULL and has(self.have, position)):
            return
        put(self.bits, position)
        if self.graph.kind[position] == BLOB:
            return
        if self.n_stack == self.stack_room:
            more = <uint32_t *>realloc(self.stack, (<size_t>self.stack_room * 2 + 1024) * 4)
            if more == NULL:
                self.no_memory = True
                return
            self.stack = more
            self.stack_room = self.stack_room * 2 + 1024
        self.stack[self.n_stack] = position
        self.n_stack += 1

    def mark(self, positions not None):
        """Mark tips."""
        cdef int64_t position
        for position in positions:
            if not 0 <= position < self.graph.objects:
                raise IndexError(position)
            self._mark(<uint32_t>position)

    def mark_alone(self, positions not None):
        """Mark objects without what they reach."""
        cdef int64_t position
        for position in positions:
            if not 0 <= position < self.graph.objects:
                raise IndexError(position)
            put(self.bits, <uint32_t>position)

    def expand(self, positions not None):
        """Mark the children of a tree that ``run`` returned; -1 stands for one that the pool lacks."""
        cdef int64_t position
        for position in positions:
            if position < 0:
                self.incomplete = True
            elif position < self.graph.objects:
                self._mark(<uint32_t>position)
            else:
                raise IndexError(position)

    cdef inline bint _reached(self, uint32_t position) noexcept nogil:
        return has(self.bits, position) or (self.have != NULL and has(self.have, position))

    cdef void _edges(self, uint32_t r) noexcept nogil:
        cdef uint32_t i
        for i in range(self.graph.edge_start[r], self.graph.edge_start[r + 1]):
            self._mark(self.graph.edges[i])

    cdef void _visit(self, uint32_t position) noexcept nogil:
        cdef uint32_t r = self.graph.row[position], i, similar
        cdef uint32_t *more
        if self.graph.kind[position] == COMMIT:
            self._mark(self.graph.tree[r])
            for i in range(self.graph.parent_start[r], self.graph.parent_start[r + 1]):
                self._mark(self.graph.parents[i])
        elif self.graph.kind[position] == TAG:
            self._mark(self.graph.target[r])
        else:
            similar = self.graph.similar[r]
            if similar == NONE or (similar < MISSING and self._reached(similar)):
                self._edges(r)
                return
            if self.n_pending == self.pending_room:
                more = <uint32_t *>realloc(self.pending, (<size_t>self.pending_room * 2 + 1024) * 4)
                if more == NULL:
                    self.no_memory = True
                    return
                self.pending = more
                self.pending_room = self.pending_room * 2 + 1024
            self.pending[self.n_pending] = position
            self.n_pending += 1

    cdef void _run(self) noexcept nogil:
        cdef uint64_t i, kept
        cdef uint32_t position, similar
        while not self.no_memory:
            while self.n_stack and not self.no_memory:
                self.n_stack -= 1
                self._visit(self.stack[self.n_stack])
            # A tree that waits for its similar tree owes only its edges once that is reached.
            kept = 0
            for i in range(self.n_pending):
                position = self.pending[i]
                similar = self.graph.similar[self.graph.row[position]]
                if similar < MISSING and self._reached(similar):
                    self._edges(self.graph.row[position])
                else:
                    self.pending[kept] = position
                    kept += 1
            self.n_pending = kept
            if self.n_stack == 0:
                return

    def run(self, uint64_t most=512):
        """Mark what is reached without reading; return up to ``most`` trees that must be read, [] at the end."""
        cdef uint64_t i, take
        with nogil:
            self._run()
        if self.no_memory:
            raise MemoryError
        take = self.n_pending if self.n_pending < most else most
        self.n_pending -= take
        out = []
        for i in range(take):
            out.append(int(self.pending[self.n_pending + i]))
        out.sort()
        return out

    def add_closed(self, bits not None):
        """Mark a closed set of objects: all that they reach is in it too."""
        cdef const uint8_t[::1] given = bits
        cdef size_t i, n = min(<size_t>given.shape[0], self.words * 8)
        cdef uint8_t *to = <uint8_t *>self.bits
        for i in range(n):
            to[i] |= given[<Py_ssize_t>i]

    def bitset(self):
        """Return the marks: one bit for each object of the pool."""
        return PyBytes_FromStringAndSize(<char *>self.bits, <Py_ssize_t>((<size_t>self.graph.objects + 7) >> 3))

    def count(self):
        """Return how many objects are marked."""
        cdef uint64_t total = 0
        cdef size_t i
        with nogil:
            for i in range(self.words):
                total += <uint64_t>__builtin_popcountll(self.bits[i])
        return int(total)


cdef extern from * nogil:
    int __builtin_popcountll(unsigned long long v)


def positions_of(const uint8_t[::1] bits not None):
    """Return the set bits of a bitset as a list."""
    cdef Py_ssize_t i
    cdef int k
    out = []
    for i in range(bits.shape[0]):
        if bits[i]:
            for k in range(8):
                if (bits[i] >> k) & 1:
                    out.append(int(i * 8 + k))
    return out


# ---- shallow histories: walks that stop at commits ----

cdef uint8_t *stops_of(PoolGraph graph, object positions) except NULL:
    """Return a byte for each commit row: 1 where a walk goes no further."""
    cdef uint8_t *stops = <uint8_t *>calloc(<size_t>graph.commits + 1, 1)
    if stops == NULL:
        raise MemoryError
    try:
        for position in positions:
            stops[graph._commit(position)] = 1
    except:
        free(stops)
        raise
    return stops


def commits_within(PoolGraph graph not None, tips not None, uint64_t depth):
    """Return (commits fewer than ``depth`` steps from a tip, those exactly that far); a tip itself is step 1.

    Both are lists of pool positions, as ``tips`` is.
    """
    cdef uint8_t *seen = <uint8_t *>calloc(<size_t>graph.commits + 1, 1)
    cdef uint32_t *queue = <uint32_t *>malloc((<size_t>graph.commits + 2) * 4)
    cdef uint64_t head = 0, tail = 0, level_end, step = 1, last_level = 0
    cdef uint32_t r, p, i, parent
    if seen == NULL or queue == NULL:
        free(seen)
        free(queue)
        raise MemoryError
    try:
        for position in tips:
            r = graph._commit(position)
            if not seen[r]:
                seen[r] = 1
                queue[tail] = position
                tail += 1
        with nogil:
            while step < depth and last_level < tail:
                level_end = tail
                head = last_level
                last_level = level_end
                while head < level_end:
                    r = graph.row[queue[head]]
                    head += 1
                    for i in range(graph.parent_start[r], graph.parent_start[r + 1]):
                        parent = graph.parents[i]
                        if parent >= MISSING or graph.kind[parent] != COMMIT:
                            continue
                        p = graph.row[parent]
                        if not seen[p]:
                            seen[p] = 1
                            queue[tail] = parent
                            tail += 1
                step += 1
        return [int(queue[head]) for head in range(last_level)], [int(queue[head]) for head in range(last_level, tail)]
    finally:
        free(seen)
        free(queue)


def depth_to(PoolGraph graph not None, tips not None, targets not None):
    """Return how many steps the nearest of ``targets`` is from a tip, 1 for a tip itself, 0 when none is reached."""
    cdef uint8_t *seen = stops_of(graph, targets)
    cdef uint32_t *queue = <uint32_t *>malloc((<size_t>graph.commits + 2) * 4)
    cdef uint64_t head = 0, tail = 0, level_end = 0, step = 0
    cdef uint32_t r, p, i, parent
    if queue == NULL:
        free(seen)
        raise MemoryError
    try:
        for position in tips:
            r = graph._commit(position)
            if seen[r] == 1:
                return 1
            if seen[r] == 0:
                seen[r] = 2
                queue[tail] = position
                tail += 1
        with nogil:
            step = 1
            while head < tail:
                level_end = tail
                step += 1
                while head < level_end:
                    r = graph.row[queue[head]]
                    head += 1
                    for i in range(graph.parent_start[r], graph.parent_start[r + 1]):
                        parent = graph.parents[i]
                        if parent >= MISSING or graph.kind[parent] != COMMIT:
                            continue
                        p = graph.row[parent]
                        if seen[p] == 1:
                            with gil:
                                return int(step)
                        if seen[p] == 0:
                            seen[p] = 2
                            queue[tail] = parent
                            tail += 1
        return 0
    finally:
        free(seen)
        free(queue)


def commits_since(PoolGraph graph not None, wants not None, int64_t since):
    """Return the commits that wants reach through commits of ``since`` (seconds since 1970) or later, those alone."""
    cdef uint8_t *seen = <uint8_t *>calloc(<size_t>graph.commits + 1, 1)
    cdef uint32_t *queue = <uint32_t *>malloc((<size_t>graph.commits + 2) * 4)
    cdef uint64_t head = 0, tail = 0
    cdef uint32_t r, p, i, parent
    if seen == NULL or queue == NULL:
        free(seen)
        free(queue)
        raise MemoryError
    try:
        for position in wants:
            r = graph._commit(position)
            if not seen[r] and graph.date[r] >= since:
                seen[r] = 1
                queue[tail] = position
                tail += 1
        with nogil:
            while head < tail:
                r = graph.row[queue[head]]
                head += 1
                for i in range(graph.parent_start[r], graph.parent_start[r + 1]):
                    parent = graph.parents[i]
                    if parent >= MISSING or graph.kind[parent] != COMMIT:
                        continue
                    p = graph.row[parent]
                    if not seen[p] and graph.date[p] >= since:
                        seen[p] = 1
                        queue[tail] = parent
                        tail += 1
        return [int(queue[head]) for head in range(tail)]
    finally:
        free(seen)
        free(queue)


def split_within(PoolGraph graph not None, wants not None, haves not None, want_stops not None, have_stops not None,
                 int64_t since=-0x7FFFFFFFFFFFFFFF):
    """As PoolGraph.split, but wants reach nothing beyond ``want_stops`` and haves nothing beyond ``have_stops``.

    A commit older than ``since`` counts as one of the haves.
    """
    cdef uint8_t *paint = <uint8_t *>calloc(<size_t>graph.commits + 1, 1)
    cdef uint32_t *heap = <uint32_t *>malloc((<size_t>graph.commits + 2) * 4)
    cdef uint32_t *place = <uint32_t *>malloc((<size_t>graph.commits + 1) * 4)
    cdef uint32_t *order = <uint32_t *>malloc((<size_t>graph.commits + 1) * 4)
    cdef uint8_t *want_stop = NULL
    cdef uint8_t *have_stop = NULL
    cdef uint32_t n = 0, only_want = 0, n_order = 0, r, p, i, k, parent
    cdef uint8_t color, old
    wanted = []
    boundary = set()
    # place: the pool position of each commit row that was met; order: rows that were wanted when their turn came
    try:
        if paint == NULL or heap == NULL or place == NULL or order == NULL:
            raise MemoryError
        want_stop = stops_of(graph, want_stops)
        have_stop = stops_of(graph, have_stops)
        for color, tips in ((WANT, wants), (HAVE, haves)):
            for position in tips:
                r = graph._commit(position)
                old = paint[r]
                if old & color:
                    continue
                paint[r] = old | color
                place[r] = position
                if old == 0:
                    n = graph._heap_push(heap, n, r)
                    if color == WANT:
                        only_want += 1
                elif old == WANT:
                    only_want -= 1
        with nogil:
            while n and only_want:
                r = heap[0]
                n = graph._heap_pop(heap, n)
                color = paint[r]
                if color == WANT:
                    only_want -= 1
                    if graph.date[r] < since:
                        color = WANT | HAVE
                        paint[r] = color
                    else:
                        order[n_order] = r
                        n_order += 1
                if want_stop[r]:
                    color &= <uint8_t>~WANT
                if have_stop[r]:
                    color &= <uint8_t>~HAVE
                if color == 0:
                    continue
                for i in range(graph.parent_start[r], graph.parent_start[r + 1]):
                    parent = graph.parents[i]
                    if parent >= MISSING or graph.kind[parent] != COMMIT:
                        continue
                    p = graph.row[parent]
                    old = paint[p]
                    if old & color == color:
                        continue
                    paint[p] = old | color
                    place[p] = parent
                    if old == 0:
                        n = graph._heap_push(heap, n, p)
                        if color == WANT:
                            only_want += 1
                    elif old == WANT:
                        only_want -= 1
        for k in range(n_order):
            r = order[k]
            if paint[r] != WANT:
                continue
            wanted.append(int(place[r]))
            if want_stop[r]:
                continue
            for i in range(graph.parent_start[r], graph.parent_start[r + 1]):
                parent = graph.parents[i]
                if parent < MISSING and graph.kind[parent] == COMMIT and paint[graph.row[parent]] & HAVE:
                    boundary.add(int(parent))
    finally:
        free(paint)
        free(heap)
        free(place)
        free(order)
        free(want_stop)
        free(have_stop)
    return wanted, sorted(boundary)


def edge_of(PoolGraph graph not None, commits not None):
    """Return the commits among ``commits`` with a parent that is not among them, or that the pool lacks."""
    cdef uint8_t *inside = stops_of(graph, commits)
    cdef uint32_t r, i, parent
    out = []
    try:
        for position in commits:
            r = graph._commit(position)
            for i in range(graph.parent_start[r], graph.parent_start[r + 1]):
                parent = graph.parents[i]
                if parent >= MISSING or graph.kind[parent] != COMMIT or not inside[graph.row[parent]]:
                    out.append(position)
                    break
    finally:
        free(inside)
    return out


def trees_of(PoolGraph graph not None, commits not None):
    """Return the positions of commits' trees, in their order; what the pool lacks is left out."""
    cdef uint32_t tree
    out = []
    for position in commits:
        tree = graph.tree[graph._commit(position)]
        if tree < MISSING:
            out.append(int(tree))
    return out


def only_types(PoolGraph graph not None, const uint8_t[::1] bits not None, int types):
    """Return a bitset without the objects whose type is not in ``types``: 1 << type, of 1 commit .. 4 tag."""
    cdef size_t n = min(<size_t>bits.shape[0], ((<size_t>graph.objects + 7) >> 3)), i
    cdef bytes made = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(made)
    cdef uint32_t at
    cdef uint8_t byte, kept
    cdef int k
    with nogil:
        for i in range(n):
            byte = bits[<Py_ssize_t>i]
            kept = 0
            if byte:
                for k in range(8):
                    at = <uint32_t>(i * 8) + <uint32_t>k
                    if (byte >> k) & 1 and at < graph.objects and (types >> graph.kind[at]) & 1:
                        kept |= <uint8_t>(1 << k)
            out[i] = kept
    return made


cdef class LevelWalk:
    """Marks trees and blobs a level below their roots at a time: what stands at depth 0, then 1, and so on.

    ``have`` is a bitset of objects that count as reached, as for Walk. Use: ``start`` roots; ``run`` until it returns no
    tree, giving the children of each that it returns to ``expand``; ``descend`` to the level below, while it has trees.
    """

    cdef PoolGraph graph
    cdef uint64_t *bits
    cdef uint64_t *have
    cdef uint64_t *expanded  # trees whose children are marked, or will be before the level ends
    cdef size_t words
    cdef uint32_t *level
    cdef uint64_t n_level
    cdef uint64_t at_level
    cdef uint32_t *below
    cdef uint64_t n_below
    cdef uint64_t below_room
    cdef readonly bint incomplete

    def __cinit__(self, PoolGraph graph not None, have=None):
        cdef const uint8_t[::1] given
        self.graph = graph
        self.words = (<size_t>graph.objects >> 6) + 1
        self.bits = <uint64_t *>calloc(self.words, 8)
        self.have = <uint64_t *>calloc(self.words, 8)
        self.expanded = <uint64_t *>calloc(self.words, 8)
        if self.bits == NULL or self.have == NULL or self.expanded == NULL:
            raise MemoryError
        if have is not None:
            given = have
            if given.shape[0]:
                memcpy(self.have, &given[0], min(<size_t>given.shape[0], self.words * 8))
                memcpy(self.expanded, self.have, self.words * 8)

    def __dealloc__(self):
        free(self.bits)
        free(self.have)
        free(self.expanded)
        free(self.level)
        free(self.below)

    cdef bint _mark(self, uint32_t position) noexcept nogil:
        """Mark an object below; False without memory."""
        cdef uint32_t *more
        if position >= MISSING:
            self.incomplete = self.incomplete or position == MISSING
            return True
        if has(self.bits, position) or has(self.have, position):
            return True
        put(self.bits, position)
        if self.graph.kind[position] != TREE:
            return True
        if self.n_below == self.below_room:
            more = <uint32_t *>realloc(self.below, (<size_t>self.below_room * 2 + 1024) * 4)
            if more == NULL:
                return False
            self.below = more
            self.below_room = self.below_room * 2 + 1024
        self.below[self.n_below] = position
        self.n_below += 1
        return True

    def start(self, positions not None):
        """Mark trees and blobs of the level below the present one: the first level, before any ``descend``."""
        cdef int64_t position
        for position in positions:
            if position >= self.graph.objects:
                raise IndexError(position)
            if position < 0:
                self.incomplete = True
            elif not self._mark(<uint32_t>position):
                raise MemoryError

    def descend(self):
        """Go to the level below; return how many trees it has."""
        cdef uint64_t i
        cdef uint32_t *spare = self.level
        self.level = self.below
        self.n_level = self.n_below
        self.at_level = 0
        free(spare)
        self.below = NULL
        self.n_below = self.below_room = 0
        for i in range(self.n_level):
            put(self.expanded, self.level[i])
        return int(self.n_level)

    def run(self, uint64_t most=512):
        """Mark the children of the level's trees; return up to ``most`` trees that must be read for it, [] at the end."""
        cdef uint32_t position, r, similar, i
        cdef bint room = True
        out = []
        with nogil:
            while self.at_level < self.n_level and room:
                position = self.level[self.at_level]
                r = self.graph.row[position]
                similar = self.graph.similar[r]
                self.at_level += 1
                if similar == NONE or (similar < MISSING and has(self.expanded, similar)):
                    for i in range(self.graph.edge_start[r], self.graph.edge_start[r + 1]):
                        room = room and self._mark(self.graph.edges[i])
                else:
                    with gil:
                        out.append(int(position))
                        if <uint64_t>len(out) >= most:
                            break
        if not room:
            raise MemoryError
        out.sort()
        return out

    def expand(self, positions not None):
        """Mark the children of a tree that ``run`` returned; -1 stands for one that the pool lacks."""
        self.start(positions)

    def bitset(self):
        """Return the marks: one bit for each object of the pool."""
        return PyBytes_FromStringAndSize(<char *>self.bits, <Py_ssize_t>((<size_t>self.graph.objects + 7) >> 3))
