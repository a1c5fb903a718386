"""The ref page kernel: sorted refs with shared prefixes, read, merged and rendered where they lie.

A page is the bytes from ``SGRP`` on, see docs/formats/refs.md. Changes are a page in which deletions may stand; they
hide what a page has under their names. Pages come from outside: every length and count is checked as it is met.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from shardgit._kernel cimport sg_put_u16, sg_put_u32, sg_u16, sg_u32

from shardgit.errors import BlockCorrupt, Internal

cdef enum:
    PAGE_HEAD = 12
    BLOCK_HEAD = 64
    RESTART = 16
    SHARED_MAX = 255
    NAME_MAX = 1024
    DIRECT = 1
    PEELED = 2
    SYMBOLIC = 3
    DELETED = 4

cdef enum Status:
    ST_OK
    ST_END
    ST_FULL
    ST_SYMBOLIC
    ST_MEMORY
    ST_HEAD
    ST_SHORT
    ST_SHARED
    ST_NAME
    ST_ORDER
    ST_KIND
    ST_BEHIND

cdef dict TEXTS = {
    ST_HEAD: "ref page is off",
    ST_SHORT: "ref page is cut short",
    ST_SHARED: "ref page shares what is not there",
    ST_NAME: "ref page has a name that is too long",
    ST_ORDER: "ref page is not sorted",
    ST_KIND: "ref page holds what it may not hold",
    ST_BEHIND: "ref page has bytes behind its refs",
}

ctypedef struct Cursor:
    const uint8_t *offsets
    const uint8_t *entries
    size_t end
    size_t at
    size_t h
    uint32_t count
    uint32_t restarts
    uint32_t number  # of entries read
    bint deletions  # may stand here
    size_t n
    const uint8_t *body
    size_t body_n
    int kind
    uint8_t name[NAME_MAX]

ctypedef struct Merge:
    Cursor page
    Cursor changes
    bint page_on
    bint changes_on
    int used  # 1 page, 2 changes: whose entry was given out
    Cursor *pending


cdef object failed(Status st, const Merge *m):
    if st == ST_MEMORY:
        return MemoryError()
    return BlockCorrupt(TEXTS[st], ref=m.page.number, change=m.changes.number)


cdef inline int compare(const uint8_t *a, size_t n, const uint8_t *b, size_t m) noexcept nogil:
    cdef int r = memcmp(a, b, n if n < m else m)
    if r:
        return r
    return 0 if n == m else (-1 if n < m else 1)


cdef Status open_page(Cursor *c, const uint8_t *data, size_t size, size_t h, bint deletions) noexcept nogil:
    cdef uint64_t need
    c.n = 0
    c.at = 0
    c.number = 0
    c.h = h
    c.deletions = deletions
    if size < PAGE_HEAD or memcmp(data, b"SGRP", 4) != 0:
        return ST_HEAD
    c.count = sg_u32(data + 4)
    c.restarts = sg_u32(data + 8)
    need = (<uint64_t>c.count + RESTART - 1) // RESTART
    if c.count == 0 or c.restarts != need or need * 4 > size - PAGE_HEAD:
        return ST_HEAD
    c.offsets = data + PAGE_HEAD
    c.entries = c.offsets + <size_t>need * 4
    c.end = size - PAGE_HEAD - <size_t>need * 4
    return ST_OK


cdef Status whole_name(const Cursor *c, uint32_t restart, const uint8_t **name, size_t *n) noexcept nogil:
    cdef size_t at = sg_u32(c.offsets + <size_t>restart * 4)
    if at > c.end or c.end - at < 3:
        return ST_SHORT
    n[0] = sg_u16(c.entries + at + 1)
    if c.entries[at]:
        return ST_SHARED
    if n[0] > c.end - at - 3:
        return ST_SHORT
    name[0] = c.entries + at + 3
    return ST_OK


cdef Status advance(Cursor *c) noexcept nogil:
    """Read the next entry; ST_END behind the last."""
    cdef const uint8_t *p
    cdef size_t shared, rest, left, old, need
    cdef int r
    if c.number == c.count:
        return ST_END if c.at == c.end else ST_BEHIND
    left = c.end - c.at
    if left < 3:
        return ST_SHORT
    p = c.entries + c.at
    shared = p[0]
    rest = sg_u16(p + 1)
    if rest > left - 3:
        return ST_SHORT
    if shared > c.n or (shared and c.number % RESTART == 0):
        return ST_SHARED
    if shared + rest > NAME_MAX:
        return ST_NAME
    old = c.n - shared
    r = memcmp(p + 3, c.name + shared, old if old < rest else rest)
    if r < 0 or (r == 0 and rest <= old):
        return ST_ORDER
    memcpy(c.name + shared, p + 3, rest)
    c.n = shared + rest
    left -= 3 + rest
    if left < 1:
        return ST_SHORT
    p += 3 + rest
    c.body = p
    c.kind = p[0]
    if c.kind == DIRECT:
        need = 1 + c.h
    elif c.kind == PEELED:
        need = 1 + 2 * c.h
    elif c.kind == SYMBOLIC:
        if left < 3:
            return ST_SHORT
        need = 3 + <size_t>sg_u16(p + 1)
    elif c.kind == DELETED and c.deletions:
        need = 1
    else:
        return ST_KIND
    if need > left:
        return ST_SHORT
    c.body_n = need
    c.at = <size_t>(p - c.entries) + need
    c.number += 1
    return ST_OK


cdef Status seek(Cursor *c, const uint8_t *low, size_t low_n) noexcept nogil:
    """Read on to the first entry that is not before ``low``, from the last whole name that can lead to it."""
    cdef uint32_t left = 0, right = c.restarts - 1, middle
    cdef const uint8_t *name = NULL
    cdef size_t n = 0
    cdef Status st
    while left < right:
        middle = left + ((right - left + 1) >> 1)
        st = whole_name(c, middle, &name, &n)
        if st != ST_OK:
            return st
        if compare(name, n, low, low_n) <= 0:
            left = middle
        else:
            right = middle - 1
    c.at = sg_u32(c.offsets + <size_t>left * 4)
    if c.at > c.end:
        return ST_SHORT
    c.number = left * RESTART
    c.n = 0
    while True:
        st = advance(c)
        if st != ST_OK or compare(c.name, c.n, low, low_n) >= 0:
            return st


cdef Status begin(Merge *m, const uint8_t[::1] page, const uint8_t[::1] changes, size_t h, bytes low, bint deletions):
    """Stand before the first entry of both that is not before ``low``; ``deletions`` may stand in the page too."""
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(low)
    cdef size_t n = <size_t>PyBytes_GET_SIZE(low)
    cdef Status st
    m.page_on = m.changes_on = False
    m.used = 0
    m.pending = NULL
    m.page.number = m.changes.number = 0
    if page is not None:
        if page.shape[0] == 0:
            return ST_HEAD
        st = open_page(&m.page, &page[0], <size_t>page.shape[0], h, deletions)
        if st == ST_OK:
            st = seek(&m.page, start, n)
        if st > ST_END:
            return st
        m.page_on = st == ST_OK
    if changes is not None:
        if changes.shape[0] == 0:
            return ST_HEAD
        st = open_page(&m.changes, &changes[0], <size_t>changes.shape[0], h, True)
        if st == ST_OK:
            st = seek(&m.changes, start, n)
        if st > ST_END:
            return st
        m.changes_on = st == ST_OK
    return ST_OK


cdef Status pick(Merge *m, Cursor **out) noexcept nogil:
    """Give out the next entry of both by rising name; changes come instead of what they hide."""
    cdef Status st
    cdef int r
    if m.used & 1:
        st = advance(&m.page)
        if st > ST_END:
            return st
        m.page_on = st == ST_OK
    if m.used & 2:
        st = advance(&m.changes)
        if st > ST_END:
            return st
        m.changes_on = st == ST_OK
    m.used = 0
    if m.page_on and m.changes_on:
        r = compare(m.page.name, m.page.n, m.changes.name, m.changes.n)
        m.used = 1 if r < 0 else (2 if r > 0 else 3)
    elif m.page_on:
        m.used = 1
    elif m.changes_on:
        m.used = 2
    else:
        return ST_END
    out[0] = &m.page if m.used == 1 else &m.changes
    return ST_OK


cdef inline bytes part(const uint8_t *data, size_t n):
    return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>n)


def take(const uint8_t[::1] page, const uint8_t[::1] changes, size_t hash_size, bytes low not None,
         bytes high not None, size_t most, make not None, *, bint deletions=False):
    """Return up to ``most`` refs with low <= name < high, and whether there may be more.

    Each is what ``make(name, target, symbolic, peeled)`` returns; deletions are left out unless they are asked for.
    """
    cdef Merge m
    cdef Cursor *c = NULL
    cdef list found = []
    cdef const uint8_t *stop = <const uint8_t *>PyBytes_AS_STRING(high)
    cdef size_t stop_n = <size_t>PyBytes_GET_SIZE(high)
    cdef size_t count = 0
    cdef size_t h = hash_size
    cdef Status st = begin(&m, page, changes, h, low, False)
    if st != ST_OK:
        raise failed(st, &m)
    while True:
        st = pick(&m, &c)
        if st == ST_END or (st == ST_OK and compare(c.name, c.n, stop, stop_n) >= 0):
            return found, False
        if st != ST_OK:
            raise failed(st, &m)
        if c.kind == DELETED and not deletions:
            continue
        if count == most:
            return found, True
        name = part(c.name, c.n)
        if c.kind == DIRECT:
            found.append(make(name, part(c.body + 1, h), None, None))
        elif c.kind == PEELED:
            found.append(make(name, part(c.body + 1, h), None, part(c.body + 1 + h, h)))
        elif c.kind == SYMBOLIC:
            found.append(make(name, None, part(c.body + 3, c.body_n - 3), None))
        else:
            found.append(make(name, None, None, None))
        count += 1


# ---- rendering ----

cdef const char *HEX = b"0123456789abcdef"

ctypedef struct Out:
    uint8_t *data
    size_t n
    size_t room


cdef uint8_t[512] PAIRS  # both digits of each byte: half the time of one digit after the other


cdef void fill_pairs() noexcept:
    cdef size_t k
    for k in range(256):
        PAIRS[2 * k] = <uint8_t>HEX[k >> 4]
        PAIRS[2 * k + 1] = <uint8_t>HEX[k & 15]


fill_pairs()


cdef inline uint8_t *hex_to(uint8_t *out, const uint8_t *raw, size_t n) noexcept nogil:
    cdef size_t k
    for k in range(n):
        memcpy(out + 2 * k, PAIRS + 2 * <size_t>raw[k], 2)
    return out + 2 * n


cdef inline void head_to(uint8_t *out, size_t n) noexcept nogil:
    out[0] = <uint8_t>HEX[n >> 12 & 15]
    out[1] = <uint8_t>HEX[n >> 8 & 15]
    out[2] = <uint8_t>HEX[n >> 4 & 15]
    out[3] = <uint8_t>HEX[n & 15]


cdef inline uint8_t *name_to(uint8_t *out, const Cursor *c) noexcept nogil:
    out[0] = b" "
    memcpy(out + 1, c.name, c.n)
    return out + 1 + c.n


cdef Status render_run(Merge *m, Out *o, const uint8_t *stop, size_t stop_n, size_t h, bint v0, bint peel) noexcept nogil:
    cdef Cursor *c = NULL
    cdef Status st
    cdef uint8_t *at
    cdef uint8_t *begun
    cdef size_t room
    while True:
        st = pick(m, &c)
        if st != ST_OK:
            return st
        if compare(c.name, c.n, stop, stop_n) >= 0:
            return ST_END
        if c.kind == DELETED:
            continue
        if c.kind == SYMBOLIC:
            m.pending = c
            return ST_SYMBOLIC
        if o.room - o.n < 2 * NAME_MAX + 4 * h + 64:
            room = o.room * 2 + 1048576  # a page of SHA-1 ids in one piece
            at = <uint8_t *>realloc(o.data, room)
            if at == NULL:
                return ST_MEMORY
            o.data = at
            o.room = room
        begun = o.data + o.n
        at = name_to(hex_to(begun + 4, c.body + 1, h), c)
        if c.kind == PEELED and peel and not v0:
            memcpy(at, b" peeled:", 8)
            at = hex_to(at + 8, c.body + 1 + h, h)
        at[0] = b"\n"
        at += 1
        head_to(begun, <size_t>(at - begun))
        if c.kind == PEELED and v0:
            begun = at
            at = name_to(hex_to(begun + 4, c.body + 1 + h, h), c)
            memcpy(at, b"^{}\n", 4)
            at += 4
            head_to(begun, <size_t>(at - begun))
        o.n = <size_t>(at - o.data)


def render(const uint8_t[::1] page, const uint8_t[::1] changes, size_t hash_size, bytes low not None,
           bytes high not None, *, bint v0, bint peel):
    """Return pkt-lines of the refs with low <= name < high up to a symbolic one, and that one's name and target.

    ``v0`` are the lines of a ref advertisement, with a second one for what a tag peels to; else those of ls-refs.
    """
    cdef Merge m
    cdef Out o
    cdef const uint8_t *stop = <const uint8_t *>PyBytes_AS_STRING(high)
    cdef size_t stop_n = <size_t>PyBytes_GET_SIZE(high)
    cdef size_t h = hash_size
    cdef Status st
    o.data = NULL
    o.n = o.room = 0
    st = begin(&m, page, changes, h, low, False)
    try:
        if st == ST_OK:
            with nogil:
                st = render_run(&m, &o, stop, stop_n, h, v0, peel)
        if st == ST_END:
            return part(o.data, o.n), None, None
        if st == ST_SYMBOLIC:
            return part(o.data, o.n), part(m.pending.name, m.pending.n), part(
                m.pending.body + 3, m.pending.body_n - 3
            )
        raise failed(st, &m)
    finally:
        free(o.data)


# ---- writing ----

cdef inline size_t common(const uint8_t *a, const uint8_t *b, size_t most) noexcept nogil:
    cdef size_t k = 0
    while most - k >= 8 and memcmp(a + k, b + k, 8) == 0:
        k += 8
    while k < most and a[k] == b[k]:
        k += 1
    return k


cdef class PageWriter:
    """Writes refs that come by rising name into pages; ``page_bytes`` count a block's header.

    ``deletions`` says whether they are written, and may stand in a page, or are left out.
    """

    cdef size_t hash_size
    cdef size_t page_bytes
    cdef bint deletions
    cdef uint8_t *entries
    cdef size_t room
    cdef size_t at
    cdef uint32_t *restarts
    cdef size_t restarts_room
    cdef uint32_t n_restarts
    cdef uint32_t count
    cdef size_t n_last
    cdef size_t n_first
    cdef list done
    cdef uint8_t last[NAME_MAX]
    cdef uint8_t first[NAME_MAX]

    def __cinit__(self, size_t hash_size, size_t page_bytes, *, bint deletions=False):
        self.hash_size = hash_size
        self.page_bytes = page_bytes
        self.deletions = deletions
        self.entries = NULL
        self.restarts = NULL
        self.room = self.at = self.restarts_room = self.n_last = self.n_first = 0
        self.n_restarts = self.count = 0
        self.done = []

    def __dealloc__(self):
        free(self.entries)
        free(self.restarts)

    @property
    def open_bytes(self):
        """The size of the page begun, as a block; 0 when none is begun."""
        return self.size() if self.count else 0

    cdef size_t size(self) noexcept nogil:
        return BLOCK_HEAD + PAGE_HEAD + self.at + <size_t>self.n_restarts * 4

    cdef Status put(self, const uint8_t *name, size_t n, const uint8_t *body, size_t body_n) noexcept nogil:
        cdef bint restart = self.count % RESTART == 0
        cdef size_t shared = 0, need, room, most
        cdef void *more
        cdef uint8_t *p
        if not restart:
            most = n if n < self.n_last else self.n_last
            shared = common(name, self.last, most if most < SHARED_MAX else SHARED_MAX)
        need = 3 + n - shared + body_n
        if self.count and self.size() + need + (4 if restart else 0) > self.page_bytes:
            return ST_FULL
        if self.room - self.at < need:
            room = self.room * 2 + need + 4096
            more = realloc(self.entries, room)
            if more == NULL:
                return ST_MEMORY
            self.entries = <uint8_t *>more
            self.room = room
        if restart:
            if self.n_restarts == self.restarts_room:
                room = self.restarts_room * 2 + 64
                more = realloc(self.restarts, room * 4)
                if more == NULL:
                    return ST_MEMORY
                self.restarts = <uint32_t *>more
                self.restarts_room = room
            if self.at >> 32:
                return ST_MEMORY
            self.restarts[self.n_restarts] = <uint32_t>self.at
            self.n_restarts += 1
        p = self.entries + self.at
        p[0] = <uint8_t>shared
        sg_put_u16(p + 1, <uint16_t>(n - shared))
        memcpy(p + 3, name + shared, n - shared)
        memcpy(p + 3 + n - shared, body, body_n)
        self.at += need
        memcpy(self.last + shared, name + shared, n - shared)
        self.n_last = n
        if not self.count:
            memcpy(self.first, name, n)
            self.n_first = n
        self.count += 1
        return ST_OK

    cdef Status run(self, Merge *m, const uint8_t *stop, size_t stop_n) noexcept nogil:
        cdef Cursor *c
        cdef Status st
        while True:
            if m.pending == NULL:
                st = pick(m, &m.pending)
                if st != ST_OK:
                    m.pending = NULL
                    return st
            c = m.pending
            if compare(c.name, c.n, stop, stop_n) >= 0:
                return ST_END
            if c.kind != DELETED or self.deletions:
                st = self.put(c.name, c.n, c.body, c.body_n)
                if st != ST_OK:
                    return st
            m.pending = NULL

    def add(self, bytes name not None, bytes body not None):
        """Write one ref; names rise."""
        cdef const uint8_t *n = <const uint8_t *>PyBytes_AS_STRING(name)
        cdef const uint8_t *b = <const uint8_t *>PyBytes_AS_STRING(body)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(name)
        cdef Status st
        if not 0 < size <= NAME_MAX or (self.n_last and compare(n, size, self.last, self.n_last) <= 0):
            raise Internal("refs do not come by rising name", bytes=size)
        st = self.put(n, size, b, <size_t>PyBytes_GET_SIZE(body))
        if st == ST_FULL:
            self.close_page()
            st = self.put(n, size, b, <size_t>PyBytes_GET_SIZE(body))
        if st != ST_OK:
            raise MemoryError

    def merge(self, const uint8_t[::1] page, const uint8_t[::1] changes, bytes low not None, bytes high not None):
        """Write the refs of a page under changes with low <= name < high."""
        cdef Merge m
        cdef const uint8_t *stop = <const uint8_t *>PyBytes_AS_STRING(high)
        cdef size_t stop_n = <size_t>PyBytes_GET_SIZE(high)
        cdef Status st = begin(&m, page, changes, self.hash_size, low, self.deletions)
        while st == ST_OK:
            with nogil:
                st = self.run(&m, stop, stop_n)
            if st == ST_FULL:
                self.close_page()
                st = ST_OK
        if st != ST_END:
            raise failed(st, &m)

    def close_page(self):
        """End the page begun, if one is."""
        cdef bytes payload
        cdef uint8_t *p
        cdef uint32_t k
        if not self.count:
            return
        payload = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(self.size() - BLOCK_HEAD))
        p = <uint8_t *>PyBytes_AS_STRING(payload)
        memcpy(p, b"SGRP", 4)
        sg_put_u32(p + 4, self.count)
        sg_put_u32(p + 8, self.n_restarts)
        p += PAGE_HEAD
        for k in range(self.n_restarts):
            sg_put_u32(p, self.restarts[k])
            p += 4
        memcpy(p, self.entries, self.at)
        self.done.append((payload, self.count, part(self.first, self.n_first)))
        self.count = self.n_restarts = 0
        self.at = 0

    def pages(self):
        """Return what was written since the last call, the page begun too: (page, refs, first name) of each."""
        self.close_page()
        done, self.done = self.done, []
        return done
