"""The fsck kernel for Python: git's message ids, the check of one object, the entries of a config blob."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy

from shardgit._kernel cimport sg_hash_size

MESSAGES = tuple([sg_fsck_name(k).decode("ascii") for k in range(SG_FSCK_COUNT)])
SEVERITIES = bytes([sg_fsck_default(k) for k in range(SG_FSCK_COUNT)])
TABLE_BYTES = SG_FSCK_TABLE
NAME_MAX_AT = SG_FSCK_NAME_MAX_AT
NAME_MAX_BYTES = SG_FSCK_NAME_MAX

ctypedef struct Findings:
    int messages[128]
    size_t offsets[128]
    size_t n
    uint8_t *specials  # rows of a kind and an id
    size_t row
    size_t used
    size_t room
    bint memory_gone


cdef void on_finding(void *ctx, int message, size_t offset) noexcept nogil:
    cdef Findings *f = <Findings *>ctx
    if f.n < 128:
        f.messages[f.n] = message
        f.offsets[f.n] = offset
        f.n += 1


cdef void on_special(void *ctx, int kind, const uint8_t *oid) noexcept nogil:
    cdef Findings *f = <Findings *>ctx
    cdef void *more
    if f.room - f.used < f.row:
        more = realloc(f.specials, f.room * 2 + 1024)
        if more == NULL:
            f.memory_gone = True
            return
        f.specials = <uint8_t *>more
        f.room = f.room * 2 + 1024
    f.specials[f.used] = <uint8_t>kind
    memcpy(f.specials + f.used + 1, oid, f.row - 1)
    f.used += f.row


def check(int hash_kind, int type, data not None, bytes severity not None):
    """Check an object as ``git index-pack --strict`` does.

    ``severity`` is a table of TABLE_BYTES. Returns the findings, as (message, offset), and the tree entries whose blobs
    need a check of their own, as (1 for .gitmodules or 2 for .gitattributes, id).
    """
    cdef Py_buffer view
    cdef Findings f
    cdef const uint8_t *table
    cdef size_t k
    if hash_kind != 1 and hash_kind != 2:
        raise ValueError("unknown hash kind")
    if len(severity) != SG_FSCK_TABLE:
        raise ValueError("not a table of severities")
    table = <const uint8_t *>PyBytes_AS_STRING(severity)
    f.n = f.used = f.room = 0
    f.row = 1 + sg_hash_size(hash_kind)
    f.specials = NULL
    f.memory_gone = False
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            sg_fsck_object(hash_kind, type, <const uint8_t *>view.buf, <size_t>view.len, table, on_finding, on_special,
                           <void *>&f)
        if f.memory_gone:
            raise MemoryError
        return (
            [(f.messages[k], f.offsets[k]) for k in range(f.n)],
            [
                (f.specials[k * f.row], PyBytes_FromStringAndSize(<char *>f.specials + k * f.row + 1, <Py_ssize_t>f.row - 1))
                for k in range(f.used // f.row)
            ],
        )
    finally:
        PyBuffer_Release(&view)
        free(f.specials)


# ---- config files ----

ctypedef struct Config:
    const uint8_t *at
    const uint8_t *end
    bint eof
    uint8_t *name  # "section.subsection."
    size_t name_n
    uint8_t *key
    size_t key_n
    uint8_t *value
    size_t value_n


cdef inline int next_char(Config *c) noexcept nogil:
    """The next byte; a CR before a LF is dropped, and the end reads as a LF with ``eof`` set."""
    cdef int byte
    if c.at < c.end:
        byte = c.at[0]
        c.at += 1
        if byte == 13 and c.at < c.end and c.at[0] == 10:
            c.at += 1
            byte = 10
        return byte
    c.eof = True
    return 10


cdef inline bint is_alpha(int c) noexcept nogil:
    return 97 <= (c | <int>32) <= 122


cdef inline bint is_key(int c) noexcept nogil:
    return is_alpha(c) or 48 <= c <= 57 or c == 45


cdef inline bint is_space(int c) noexcept nogil:
    return c == 32 or c == 9 or c == 10 or c == 13


cdef inline void name_add(Config *c, int byte) noexcept nogil:
    c.name[c.name_n] = <uint8_t>byte
    c.name_n += 1


cdef inline int lower(int c) noexcept nogil:
    return c + <int>32 if 65 <= c <= 90 else c


cdef bint read_section(Config *c) noexcept nogil:
    """Read past "[" up to and with "]"; False when it is broken or empty."""
    cdef int byte
    c.name_n = 0
    while True:
        byte = next_char(c)
        if c.eof:
            return False
        if byte == 93:  # ]
            break
        if is_space(byte):
            while is_space(byte):
                if byte == 10:
                    return False
                byte = next_char(c)
            if byte != 34:  # "
                return False
            name_add(c, 46)
            while True:
                byte = next_char(c)
                if byte == 10:
                    return False
                if byte == 34:
                    break
                if byte == 92:  # backslash
                    byte = next_char(c)
                    if byte == 10:
                        return False
                name_add(c, byte)
            if next_char(c) != 93:
                return False
            break
        if not is_key(byte) and byte != 46:
            return False
        name_add(c, lower(byte))
    if c.name_n == 0:
        return False
    name_add(c, 46)
    return True


cdef bint read_value(Config *c) noexcept nogil:
    """Read a value up to the end of its line; False when a quote stays open or an escape is unknown."""
    cdef int byte
    cdef bint quote = False, comment = False, trims = False
    cdef size_t trim = 0  # where blanks that may be the last ones start
    c.value_n = 0
    while True:
        byte = next_char(c)
        if byte == 10:
            if quote:
                return False
            if trims:
                c.value_n = trim
            return True
        if comment:
            continue
        if is_space(byte) and not quote:
            if not trims:
                trims, trim = True, c.value_n
            if c.value_n:
                c.value[c.value_n] = <uint8_t>byte
                c.value_n += 1
            continue
        if not quote and (byte == 59 or byte == 35):  # ; #
            comment = True
            continue
        trims = False
        if byte == 34:
            quote = not quote
            continue
        if byte == 92:
            byte = next_char(c)
            if byte == 10:
                continue
            if byte == 116:
                byte = 9
            elif byte == 98:
                byte = 8
            elif byte == 110:
                byte = 10
            elif byte != 92 and byte != 34:
                return False
        c.value[c.value_n] = <uint8_t>byte
        c.value_n += 1


cdef extern from "_gitmodules.h" nogil:
    int sg_submodule_name(const uint8_t *s, size_t n)
    int sg_submodule_url(const uint8_t *s, size_t n)


NAME, URL, PATH, UPDATE, PARSE = range(5)


def is_submodule_name(bytes name not None):
    """Whether a submodule may have this name."""
    return sg_submodule_name(<const uint8_t *>PyBytes_AS_STRING(name), <size_t>len(name)) != 0


def is_submodule_url(bytes url not None):
    """Whether a submodule may be cloned from this URL."""
    return sg_submodule_url(<const uint8_t *>PyBytes_AS_STRING(url), <size_t>len(url)) != 0


cdef class GitmodulesReader:
    """What a .gitmodules file says and must not: iterates over (what, value), b"" where there is no value.

    NAME comes once a section that has entries; PARSE last, where the file stops to be a config file as git reads it.
    """

    cdef Config c
    cdef bytes data
    cdef bint named  # the section's name was judged
    cdef bint is_submodule
    cdef size_t name_at  # of the submodule, in the section
    cdef size_t name_n
    cdef size_t word_at  # of the key that all entries have, when the section holds a NUL
    cdef size_t word_n
    cdef bint has_word
    cdef bint waiting  # an entry was read and is still to be judged
    cdef bint done

    def __cinit__(self, bytes data not None):
        cdef size_t n = <size_t>len(data)
        self.data = data
        self.named = True
        self.c.at = <const uint8_t *>PyBytes_AS_STRING(data)
        self.c.end = self.c.at + n
        if data.startswith(b"\xef\xbb\xbf"):
            self.c.at += 3
        # Each byte adds at most one to a name, key or value; two dots come on top.
        self.c.name = <uint8_t *>malloc(n + 2)
        self.c.key = <uint8_t *>malloc(n + 1)
        self.c.value = <uint8_t *>malloc(n + 1)
        if self.c.name == NULL or self.c.key == NULL or self.c.value == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.c.name)
        free(self.c.key)
        free(self.c.value)

    def __iter__(self):
        return self

    def __next__(self):
        cdef int what
        with nogil:
            what = self.judge()
        if what < 0:
            raise StopIteration
        if what == 0:
            return what, PyBytes_FromStringAndSize(<char *>self.c.name + self.name_at, <Py_ssize_t>self.name_n)
        return what, PyBytes_FromStringAndSize(<char *>self.c.value, <Py_ssize_t>self.c.value_n) if what < 4 else b""

    cdef int judge(self) noexcept nogil:
        """Read on to what must not be; -1 at the end."""
        cdef Config *c = &self.c
        cdef const uint8_t *key
        cdef const uint8_t *nul
        cdef size_t key_n
        cdef int step
        while not self.done:
            if not self.waiting:
                step = self.step()
                if step <= 0:
                    self.done = True
                    return 4 if step < 0 else -1
                self.waiting = step == 2
                if not self.named:
                    self.named = True
                    self.take_apart()
                    if self.is_submodule and not sg_submodule_name(c.name + self.name_at, self.name_n):
                        return 0
                continue
            self.waiting = False
            if not self.is_submodule:
                continue
            key, key_n = c.key, c.key_n
            if self.has_word:
                key, key_n = c.name + self.word_at, self.word_n
            nul = <const uint8_t *>memchr(c.value, 0, c.value_n) if c.value_n else NULL
            if nul != NULL:  # where git's strings end
                c.value_n = <size_t>(nul - c.value)
            if key_n == 3 and memcmp(key, b"url", 3) == 0:
                if not sg_submodule_url(c.value, c.value_n):
                    return 1
            elif key_n == 4 and memcmp(key, b"path", 4) == 0:
                if c.value_n and c.value[0] == 45:  # -
                    return 2
            elif key_n == 6 and memcmp(key, b"update", 6) == 0:
                if c.value_n and c.value[0] == 33:  # !
                    return 3
        return -1

    cdef void take_apart(self) noexcept nogil:
        """Find the submodule's name in the section: what is after "submodule." up to the last dot.

        git's strings end at a NUL: where one stands in a section, what comes before it is taken apart as if an entry's
        key were its last part.
        """
        cdef Config *c = &self.c
        cdef size_t n = c.name_n
        cdef const uint8_t *nul = <const uint8_t *>memchr(c.name, 0, n) if n else NULL
        self.is_submodule = self.has_word = False
        if nul != NULL:
            n = <size_t>(nul - c.name)
        if n < 11 or memcmp(c.name, b"submodule.", 10) != 0:
            return
        self.word_n = 0
        while n > 10 and c.name[n - 1] != 46:
            n -= 1
            self.word_n += 1
        if n == 10:
            return
        self.is_submodule = True
        self.has_word = nul != NULL
        self.word_at = n
        self.name_at = 10
        self.name_n = n - 11

    cdef int step(self) noexcept nogil:
        """Read up to the end of an entry: 2 with a value, 1 without, 0 at the end, -1 at a mistake."""
        cdef Config *c = &self.c
        cdef int byte
        while True:
            byte = next_char(c)
            if c.eof:
                return 0
            if is_space(byte):
                continue
            if byte == 35 or byte == 59:  # comments: # ;
                while next_char(c) != 10:
                    pass
            elif byte == 91:  # [
                if not read_section(c):
                    return -1
                self.named = False
            elif is_alpha(byte):
                break
            else:
                return -1
        c.key_n = 0
        while not c.eof and is_key(byte):
            c.key[c.key_n] = <uint8_t>lower(byte)
            c.key_n += 1
            byte = next_char(c)
        while byte == 32 or byte == 9:
            byte = next_char(c)
        if byte == 10:
            return 1
        return 2 if byte == 61 and read_value(c) else -1
