"""Many objects at once: found by id, decoded straight into the messages that carry them.

A message is a shardgit.v1.GetObjectsResponse as protobuf writes it, with its fields in another order: a reader may not
count on any. What an object costs beyond its inflation is one write of its bytes; a bytes object for each, joined, sliced
and written again by protobuf were a third of what a read cost (bench objects).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport PyObject, Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from shardgit._foot cimport NONE, Foot, foot_of, offset_at, ordinal_at, size_at, span_at
from shardgit._kernel cimport *

from shardgit.errors import BlockCorrupt, Internal

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) except NULL
    char *text_of "PyBytes_AS_STRING"(PyObject *)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1

cdef enum:
    HELD_BYTES = 16777216  # of bases that later objects of a segment want
    STEP_BYTES = 67108864  # made in one fill: some 0.1 s, in which nobody can cancel and a transaction is open
    EACH_BYTES = 1024  # what making an object costs beside its bytes, in bytes
    ROOM_MAX = 2097151  # what a length of three bytes can tell
    SIZE_BITS = 56  # of an object; no delta that a segment holds makes more
    HEAD = 4  # the data field's tag and length
    ROW = 11  # bytes of an object's type, size and share of two lengths, at most


cdef int take_foot(const uint8_t[::1] block, int hash_size, Foot *f) except -1:
    if block.shape[0] == 0 or not foot_of(&block[0], <size_t>block.shape[0], <size_t>hash_size, f):
        raise BlockCorrupt("segment footer is off", bytes=int(block.shape[0]))
    return 0


def confirm(const uint8_t[::1] block not None, int hash_size, int64_t base, const int64_t[::1] places not None,
            const int64_t[::1] numbers not None, Py_ssize_t start, Py_ssize_t stop, const uint8_t[::1] ids not None):
    """Return those of ``numbers`` (ids of the flat ``ids``) whose id does not stand at its place in this segment.

    Looks at ``places[start:stop]`` and the ``numbers`` beside them; the segment's first object is at ``base``.
    """
    cdef Foot f
    cdef Py_ssize_t i = start
    cdef int64_t count = ids.shape[0] // hash_size
    cdef const int64_t *place = NULL
    cdef const int64_t *number = NULL
    cdef const uint8_t *oid = NULL
    take_foot(block, hash_size, &f)
    if start < 0 or stop > places.shape[0] or stop > numbers.shape[0]:
        raise IndexError(stop)
    out = []
    if count == 0 and start < stop:
        raise IndexError(0)
    if start < stop:
        place = &places[0]
        number = &numbers[0]
        oid = &ids[0]
    while i < stop:
        with nogil:
            i = another(&f, base, place, number, i, stop, oid, count)
        if i < 0:
            raise IndexError(numbers[-1 - i])
        if i < stop:
            out.append(int(numbers[i]))
        i += 1
    return out


cdef Py_ssize_t another(const Foot *f, int64_t base, const int64_t *places, const int64_t *numbers, Py_ssize_t i,
                        Py_ssize_t stop, const uint8_t *ids, int64_t count) noexcept nogil:
    """The next of the places from ``i`` on at which another id stands, ``stop`` without; -1 - i for one that is off."""
    cdef int64_t k
    while i < stop:
        k = places[i] - base
        if k < 0 or k >= f.n or numbers[i] < 0 or numbers[i] >= count:
            return -1 - i
        if memcmp(f.ids + <size_t>k * f.h, ids + <size_t>numbers[i] * f.h, f.h) != 0:
            return i
        i += 1
    return stop


def outside(const uint8_t[::1] bits not None, const int64_t[::1] places not None):
    """Return the numbers of the places, those of -1 left out, that a bitset does not hold."""
    cdef Py_ssize_t i
    cdef int64_t at
    out = []
    for i in range(places.shape[0]):
        at = places[i]
        if at >= 0 and ((at >> 3) >= bits.shape[0] or not bits[at >> 3] >> (at & 7) & 1):
            out.append(int(i))
    return out


ctypedef struct Entry:
    uint8_t *made  # the object's bytes, NULL where they are not at hand
    const uint8_t *on  # of a base outside the segment
    uint64_t on_size
    uint64_t size  # of the object
    uint64_t raw  # of what its stream inflates to: the object, or a delta
    uint32_t body  # where the stream begins, from the entry's start
    uint32_t base  # in the segment, NONE without
    uint32_t asked  # how often it is wanted
    uint32_t uses  # by deltas that are still to be made for the first time
    uint32_t end  # which base outside the segment its chain ends on, NONE without
    uint32_t older  # of those that are ours, used before
    uint32_t newer
    uint8_t type  # of the entry
    uint8_t needed
    uint8_t owned  # made is ours to free; else it lies in the message
    uint8_t counted  # made once; its base has one use less since


ctypedef struct Maker:
    sg_inflater *inflater
    Entry *entries
    uint32_t *stack
    uint8_t *delta
    size_t entries_room
    size_t delta_room
    uint64_t held
    uint64_t most  # of held, beside a base and what is made of it
    uint64_t spent  # in this fill
    uint64_t step  # of spent
    uint64_t times  # objects made, again ones too
    uint32_t oldest  # of those that are ours, in the order in which they were used
    uint32_t newest


cdef void hold(Maker *m, uint32_t k) noexcept nogil:
    """An object that was made is ours."""
    cdef Entry *e = m.entries + k
    e.owned = 1
    e.older = m.newest
    e.newer = <uint32_t>NONE
    if m.newest != <uint32_t>NONE:
        m.entries[m.newest].newer = k
    else:
        m.oldest = k
    m.newest = k
    m.held += e.size


cdef void let_go(Maker *m, uint32_t k) noexcept nogil:
    """An object is ours no longer."""
    cdef Entry *e = m.entries + k
    if e.older != <uint32_t>NONE:
        m.entries[e.older].newer = e.newer
    else:
        m.oldest = e.newer
    if e.newer != <uint32_t>NONE:
        m.entries[e.newer].older = e.older
    else:
        m.newest = e.older
    m.held -= e.size
    e.owned = 0


cdef void forget(Maker *m, uint32_t k) noexcept nogil:
    """Let go of an object that is made."""
    cdef Entry *e = m.entries + k
    if e.owned:
        let_go(m, k)
        free(e.made)
    e.made = NULL


cdef void make_room(Maker *m, uint64_t size, uint32_t base) noexcept nogil:
    """Forget what was used longest ago until so much more fits; not the base of what is to be made."""
    cdef uint32_t k = m.oldest, newer
    while k != <uint32_t>NONE and m.held + size > m.most:
        newer = m.entries[k].newer
        if k != base:
            forget(m, k)
        k = newer


cdef sg_status head_of(const Foot *f, uint32_t k, Entry *e) noexcept nogil:
    """Read the head of an entry."""
    cdef uint32_t at = 0
    cdef size_t left = 0, head = 0, more = 0
    cdef uint64_t distance = 0
    cdef int type = 0
    cdef sg_status st
    e.base = <uint32_t>NONE
    e.end = <uint32_t>NONE
    e.size = size_at(f, k)
    if not span_at(f, k, &at, &left):
        return SG_RANGE
    if e.size >> SIZE_BITS:
        return SG_SIZE
    st = sg_entry_header(f.data + at, left, &type, &e.raw, &head)
    if st != SG_OK:
        return st
    if type == SG_OFS_DELTA:
        st = sg_ofs_distance(f.data + at + head, left - head, &distance, &more)
        if st != SG_OK:
            return st
        if distance > at:
            return SG_RANGE
        e.base = ordinal_at(f, <uint32_t>(at - distance))
        if e.base == <uint32_t>NONE or e.base >= k:
            return SG_RANGE
    elif type == SG_REF_DELTA:
        more = f.h
    elif e.raw != e.size:
        return SG_SIZE
    if more > left - head:
        return SG_TRUNCATED
    e.body = <uint32_t>(head + more)
    e.type = <uint8_t>type
    return SG_SIZE if e.raw > sg_inflate_most(left - e.body) else SG_OK


cdef sg_status inflate(const Foot *f, Maker *m, uint32_t k, uint8_t **to) noexcept nogil:
    """Make an object whose base is at hand, at ``to``, or in memory of its own when that is NULL."""
    cdef Entry *e = m.entries + k
    cdef const uint8_t *source
    cdef uint32_t at = 0
    cdef size_t left = 0, used = 0
    cdef uint64_t claimed = 0, claimed_base = 0
    cdef const uint8_t *on = e.on
    cdef uint64_t on_size = e.on_size
    cdef sg_status st
    # The block may lie elsewhere than when its heads were read.
    if not span_at(f, k, &at, &left) or e.body > left:
        return SG_RANGE
    source = f.data + at + e.body
    left -= e.body
    if e.type < 5:
        if to[0] == NULL:
            to[0] = <uint8_t *>malloc(<size_t>e.size + 1)
            if to[0] == NULL:
                return SG_MEMORY
        return sg_inflate(m.inflater, source, left, to[0], <size_t>e.size, &used)
    if e.base != <uint32_t>NONE:
        on = m.entries[e.base].made
        on_size = m.entries[e.base].size
    if on == NULL:
        return SG_EXTERNAL
    if m.delta_room < e.raw:
        free(m.delta)
        m.delta = <uint8_t *>malloc(<size_t>e.raw + 1)
        m.delta_room = <size_t>e.raw if m.delta != NULL else 0
        if m.delta == NULL:
            return SG_MEMORY
    st = sg_inflate(m.inflater, source, left, m.delta, <size_t>e.raw, &used)
    if st != SG_OK:
        return st
    if to[0] == NULL:
        st = sg_delta_sizes(m.delta, <size_t>e.raw, &claimed_base, &claimed, &used)
        if st != SG_OK:
            return st
        if claimed != e.size:
            return SG_SIZE
        to[0] = <uint8_t *>malloc(<size_t>e.size + 1)
        if to[0] == NULL:
            return SG_MEMORY
    return sg_delta_apply(on, <size_t>on_size, m.delta, <size_t>e.raw, to[0], <size_t>e.size, NULL, 0, &used)


cdef sg_status make(const Foot *f, Maker *m, uint32_t wanted, uint8_t *to) noexcept nogil:
    """Make an object, and of its bases those that are not at hand; at ``to``, or in memory of its own when that is NULL.

    Where this fill has made enough it ends early, with SG_OK: the object is not made, but its next base is at hand.
    """
    cdef uint32_t top = 0, k = wanted
    cdef uint8_t *made
    cdef Entry *e
    cdef Entry *base
    cdef sg_status st
    while k != <uint32_t>NONE and m.entries[k].made == NULL:
        m.stack[top] = k  # bases have lower ordinals, so there are fewer than f.n
        top += 1
        k = m.entries[k].base
    if k != <uint32_t>NONE and m.entries[k].owned:
        let_go(m, k)
        hold(m, k)  # used last
    while top:
        if m.spent >= m.step:
            return SG_OK
        top -= 1
        k = m.stack[top]
        e = m.entries + k
        made = to if k == wanted else NULL
        if made == NULL:
            make_room(m, e.size, e.base)
        st = inflate(f, m, k, &made)
        if st != SG_OK:
            if made != to or k != wanted:
                free(made)
            return st
        e.made = made
        if made != to:
            hold(m, k)
        m.times += 1
        m.spent += e.size + e.raw + EACH_BYTES
        if e.base != <uint32_t>NONE:
            base = m.entries + e.base
            if not e.counted:
                e.counted = 1
                base.uses -= 1
            if base.uses == 0 and base.asked == 0:
                forget(m, e.base)
    return SG_OK


cdef class Messages:
    """Makes messages of the objects of one segment after another.

    ``begin`` a segment, ``fill`` until it says that the segment is done, and ``take`` each message that is full. What is
    made on the way is freed when no object wants it any more; of bases that wait at most ``held`` bytes are kept, and one.
    Bases outside the segment are the caller's to bound: they are held until the segment is done, or others are given.
    A fill ends when it has made about ``step`` bytes, too: it holds a transaction, and cannot be cancelled.
    """
    cdef Maker m
    cdef Foot f
    cdef int hash_size
    cdef size_t room
    cdef bint begun
    cdef readonly Py_ssize_t objects  # in the message so far
    cdef PyObject *out  # bytes under construction: head, data
    cdef dict bases
    cdef list names  # of bases outside the segment
    cdef int64_t base  # where the segment's first object is
    cdef uint8_t *data
    cdef size_t at
    cdef uint8_t *ids
    cdef uint8_t *types
    cdef uint8_t *sizes
    cdef size_t rows_room
    cdef size_t sizes_at
    cdef uint32_t next
    cdef uint32_t first  # ordinal of the first object that may lie in the message
    cdef uint32_t rest  # the object that goes on in the next message
    cdef uint64_t rest_at

    def __cinit__(self, int hash_size, size_t room, uint64_t held=HELD_BYTES, uint64_t step=STEP_BYTES):
        if not (1024 <= room <= ROOM_MAX) or hash_size not in (20, 32):
            raise Internal("messages have no such room", room=int(room))
        memset(&self.m, 0, sizeof(Maker))
        memset(&self.f, 0, sizeof(Foot))
        self.hash_size = hash_size
        self.room = room
        self.m.most = held
        self.m.step = step
        self.m.oldest = <uint32_t>NONE
        self.m.newest = <uint32_t>NONE
        self.rest = <uint32_t>NONE
        self.m.inflater = sg_inflater_new()
        if self.m.inflater == NULL:
            raise MemoryError
        # A row counts against the room, so that there are never more.
        self.rows_room = room // (<size_t>hash_size + ROW) + 1
        self.ids = <uint8_t *>malloc(self.rows_room * <size_t>hash_size)
        self.types = <uint8_t *>malloc(self.rows_room)
        self.sizes = <uint8_t *>malloc(self.rows_room * 10)
        if self.ids == NULL or self.types == NULL or self.sizes == NULL:
            raise MemoryError
        self._turn(self._blank())

    def __dealloc__(self):
        Py_XDECREF(self.out)
        self._let_go()
        sg_inflater_free(self.m.inflater)
        free(self.m.entries)
        free(self.m.stack)
        free(self.m.delta)
        free(self.ids)
        free(self.types)
        free(self.sizes)

    cdef void _let_go(self) noexcept:
        """Free what was made of the segment."""
        cdef uint32_t k
        for k in range(self.f.n):
            if self.m.entries[k].owned:
                free(self.m.entries[k].made)
            self.m.entries[k].made = NULL
            self.m.entries[k].owned = 0
        self.m.held = 0
        self.m.oldest = <uint32_t>NONE
        self.m.newest = <uint32_t>NONE
        self.f.n = 0

    cdef PyObject *_blank(self) except NULL:
        return new_bytes(NULL, <Py_ssize_t>(HEAD + self.room + 64))

    cdef void _turn(self, PyObject *blank) noexcept:
        """Begin another message."""
        self.out = blank
        self.data = <uint8_t *>text_of(blank) + HEAD
        self.at = 0
        self.objects = 0
        self.sizes_at = 0

    @property
    def made(self):
        """How many objects were made so far, those that were made again too."""
        return int(self.m.times)

    @property
    def held(self):
        """Bytes of the objects that are kept for others."""
        return int(self.m.held)

    cdef size_t _left(self, size_t more) noexcept nogil:
        """The room for data once the message has ``more`` rows more."""
        cdef size_t taken = self.at + (<size_t>self.objects + more) * (<size_t>self.hash_size + ROW)
        return self.room - taken if taken < self.room else 0

    cdef void _row(self, const uint8_t *oid, int type, uint64_t size) noexcept nogil:
        memcpy(self.ids + <size_t>self.objects * <size_t>self.hash_size, oid, <size_t>self.hash_size)
        self.types[self.objects] = <uint8_t>type
        self.sizes_at += varint(self.sizes + self.sizes_at, size)
        self.objects += 1

    def absent(self, const uint8_t[::1] ids not None, Py_ssize_t start):
        """Add ids that are answered as absent, from number ``start`` of the flat ``ids`` on; returns where it ended."""
        cdef Py_ssize_t count = ids.shape[0] // self.hash_size
        while start < count and self._left(1):
            self._row(&ids[start * self.hash_size], 0, 0)
            start += 1
        return int(start)

    def begin(self, const uint8_t[::1] block not None, int64_t base, const int64_t[::1] places not None,
              Py_ssize_t start, Py_ssize_t stop, uint64_t large, dict bases=None):
        """Turn to a segment whose first object is at ``base``; its objects at ``places[start:stop]`` are wanted.

        Returns (the places of those over ``large`` bytes, which are left out; ids of bases outside the segment that
        ``bases`` lacks, each once, with which this must be called again).
        """
        cdef Py_ssize_t i
        cdef int64_t k
        cdef uint32_t at
        cdef Foot f
        if self.rest != <uint32_t>NONE:
            raise Internal("an object goes on in the next message")
        self.begun = False
        self._let_go()
        take_foot(block, self.hash_size, &f)
        if f.flags & 1:
            raise Internal("a segment in parts is not decoded here")
        self._grow(f.n)
        self.f = f
        memset(self.m.entries, 0, <size_t>self.f.n * sizeof(Entry))
        self.next = 0
        self.first = 0
        self.base = base
        if start < 0 or stop > places.shape[0]:
            raise IndexError(stop)
        over = []
        for i in range(start, stop):
            k = places[i] - base
            if k < 0 or k >= self.f.n:
                raise IndexError(places[i])
            at = <uint32_t>k
            if size_at(&self.f, at) > large:
                over.append(int(places[i]))
            else:
                self.m.entries[at].asked += 1
        self._mark()
        self._name()
        self.begun = True
        return over, self.give(bases)

    def ends(self, const int64_t[::1] places not None, Py_ssize_t start, Py_ssize_t stop):
        """Return for each of the places which of the segment's ids of bases outside it wants, -1 for none of them.

        They are numbered as ``begin`` without bases names them.
        """
        cdef Py_ssize_t i
        cdef int64_t k
        cdef Entry *e
        if start < 0 or stop > places.shape[0]:
            raise IndexError(stop)
        out = []
        for i in range(start, stop):
            k = places[i] - self.base
            if k < 0 or k >= self.f.n:
                raise IndexError(places[i])
            e = self.m.entries + k
            out.append(int(e.end) if e.asked and e.end != <uint32_t>NONE else -1)
        return out

    def give(self, dict bases=None):
        """Have these bases outside the segment at hand and no others; returns the ids that are wanted and not there."""
        cdef Entry *e
        cdef uint32_t k
        cdef bytes held
        self.bases = bases
        if not self.names:
            return []
        for k in range(self.f.n):
            e = self.m.entries + k
            if e.needed and e.type == SG_REF_DELTA:
                held = bases.get(self.names[e.end]) if bases is not None else None
                e.on = <const uint8_t *>PyBytes_AS_STRING(held) if held is not None else NULL
                e.on_size = <uint64_t>len(held) if held is not None else 0
        return [oid for oid in self.names if bases is None or oid not in bases]

    cdef int _grow(self, size_t n) except -1:
        if n <= self.m.entries_room:
            return 0
        free(self.m.entries)
        free(self.m.stack)
        self.m.entries_room = 0
        self.m.entries = <Entry *>calloc(n, sizeof(Entry))
        self.m.stack = <uint32_t *>malloc(n * 4)
        if self.m.entries == NULL or self.m.stack == NULL:
            raise MemoryError
        self.m.entries_room = n
        return 0

    cdef int _mark(self) except -1:
        """Mark what is asked for and its bases as needed."""
        cdef sg_status st = SG_OK
        cdef Entry *e
        cdef uint32_t k = 0, each
        with nogil:
            for each in range(self.f.n):
                if not self.m.entries[each].asked:
                    continue
                k = each
                while k != <uint32_t>NONE and not self.m.entries[k].needed:
                    e = self.m.entries + k
                    e.needed = 1
                    st = head_of(&self.f, k, e)
                    if st != SG_OK:
                        break
                    if e.base != <uint32_t>NONE:
                        self.m.entries[e.base].uses += 1
                    k = e.base
                if st != SG_OK:
                    break
        if st != SG_OK:
            raise BlockCorrupt("segment entry is off", ordinal=int(k), status=int(st))
        return 0

    cdef int _name(self) except -1:
        """Number the ids of bases outside the segment, and tell which of them each chain ends on."""
        cdef Entry *e
        cdef uint32_t k
        cdef dict names = {}
        for k in range(self.f.n):
            e = self.m.entries + k
            if not e.needed:
                continue
            if e.base != <uint32_t>NONE:
                e.end = self.m.entries[e.base].end  # a base has a lower ordinal
            elif e.type == SG_REF_DELTA:
                oid = PyBytes_FromStringAndSize(
                    <const char *>self.f.data + offset_at(&self.f, k) + e.body - self.f.h, <Py_ssize_t>self.f.h)
                e.end = <uint32_t>names.setdefault(oid, len(names))
        self.names = list(names)
        return 0

    def fill(self, const uint8_t[::1] block not None):
        """Go on with the segment that was begun, whose bytes these are; says whether it is done.

        Else the message is full, or enough was made for now: there may be nothing in it. BlockCorrupt when an object does
        not decode.
        """
        cdef sg_status st
        cdef bint done = False
        cdef Foot now
        take_foot(block, self.hash_size, &now)
        if not self.begun or now.n != self.f.n or now.length != self.f.length:
            raise Internal("segment is another than was begun")
        self.f = now
        with nogil:
            st = self._fill(&done)
        if st == SG_MEMORY:
            raise MemoryError
        if st != SG_OK:
            raise BlockCorrupt("stored object does not decode", ordinal=int(self.next), status=int(st))
        if done:
            self.bases = None
            self._let_go()
        return bool(done)

    cdef sg_status _fill(self, bint *done) noexcept nogil:
        cdef Entry *e
        cdef sg_status st
        done[0] = False
        self.m.spent = 0
        if self.rest != <uint32_t>NONE and not self._go_on():
            return SG_OK
        while self.next < self.f.n:
            e = self.m.entries + self.next
            if not e.asked:
                if not e.uses:
                    forget(&self.m, self.next)
                self.next += 1  # a base is made when what hangs from it is
                continue
            if not self._left(1):
                return SG_OK
            if e.made == NULL:
                st = make(&self.f, &self.m, self.next, self.data + self.at if e.size <= self._left(1) else NULL)
                if st != SG_OK or e.made == NULL:
                    return st
            e.asked -= 1
            self._row(self.f.ids + <size_t>self.next * self.f.h, self.f.type, e.size)
            if e.made == self.data + self.at:
                self.at += <size_t>e.size
                continue
            self.rest = self.next
            self.rest_at = 0
            if not self._go_on():
                return SG_OK
        done[0] = True
        return SG_OK

    cdef bint _go_on(self) noexcept nogil:
        """Copy what is left of an object that did not fit; whether all of it is in the messages now."""
        cdef Entry *e = self.m.entries + self.rest
        cdef uint64_t left = e.size - self.rest_at
        cdef size_t some = self._left(0)
        if some > left:
            some = <size_t>left
        memcpy(self.data + self.at, e.made + self.rest_at, some)
        self.at += some
        self.rest_at += some
        if some < left:
            return False
        self.rest = <uint32_t>NONE
        return True

    def take(self):
        """Return the message, b"" where there is nothing to tell; the next one begins."""
        cdef size_t head, rows, sizes_size, end = 0
        cdef size_t ids_size = <size_t>self.objects * <size_t>self.hash_size
        cdef uint8_t *to
        cdef PyObject *out = self.out
        cdef PyObject *blank
        if not self.objects and not self.at:
            return b""
        blank = self._blank()
        try:
            self._keep()
        except MemoryError:
            Py_XDECREF(blank)
            raise
        to = self.data - HEAD
        if self.at:
            to[0] = 0x22
            head = 1 + varint(to + 1, self.at)
            if head < HEAD:
                memmove(to + head, self.data, self.at)
            end = head + self.at
        rows = <size_t>self.objects
        sizes_size = self.sizes_at
        self._turn(blank)  # from here on the message is lost where memory is short
        _PyBytes_Resize(&out, <Py_ssize_t>(end + ids_size + rows + sizes_size + 24))
        to = <uint8_t *>text_of(out) + end
        if rows:
            to += column(to, 0x0A, self.ids, ids_size)
            to += column(to, 0x12, self.types, rows)
            to += column(to, 0x1A, self.sizes, sizes_size)
        _PyBytes_Resize(&out, <Py_ssize_t>(to - <uint8_t *>text_of(out)))
        message = <object>out
        Py_XDECREF(out)
        return message

    cdef int _keep(self) except -1:
        """Copy the bases that lie in the message and are still wanted: it goes away."""
        cdef uint32_t k
        cdef Entry *e
        cdef uint8_t *made
        for k in range(self.first, min(self.next + 1, self.f.n)):
            e = self.m.entries + k
            if e.made == NULL or e.owned:
                continue
            if e.uses or e.asked or k == self.rest:
                made = <uint8_t *>malloc(<size_t>e.size + 1)
                if made == NULL:
                    raise MemoryError
                memcpy(made, e.made, <size_t>e.size)
                e.made = made
                hold(&self.m, k)
            else:
                e.made = NULL
        self.first = self.next
        return 0


cdef inline size_t varint(uint8_t *to, uint64_t v) noexcept nogil:
    """Write a number as protobuf does; returns its length."""
    cdef size_t n = 0
    while v > 127:
        to[n] = <uint8_t>(v & 127 | 128)
        n += 1
        v >>= 7
    to[n] = <uint8_t>v
    return n + 1


cdef inline size_t column(uint8_t *to, uint8_t tag, const uint8_t *data, size_t size) noexcept nogil:
    """Write a field of bytes; returns its length."""
    cdef size_t n
    to[0] = tag
    n = 1 + varint(to + 1, size)
    memcpy(to + n, data, size)
    return n + size
