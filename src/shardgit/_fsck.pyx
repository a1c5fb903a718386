"""The fsck kernel for Python: git's message ids, the check of one object, the entries of a config blob."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy

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


cdef class ConfigReader:
    """The entries of a config file, read one by one as git reads them.

    Iterates over (section, key, value). A section is ``name.`` or ``name.subsection.``, one and the same object for all
    of its entries, b"" before the first; a value is None where the key stands alone. Ends at the first mistake, which
    ``mistaken`` tells.
    """

    cdef Config c
    cdef bytes data
    cdef bytes section
    cdef bint moved  # to another section since `section` was made
    cdef readonly bint mistaken

    def __cinit__(self, bytes data not None):
        cdef size_t n = <size_t>len(data)
        self.data = data
        self.section = b""
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
        cdef int step
        with nogil:
            step = self.step()
        if step < 0:
            self.mistaken = True
            self.c.at = self.c.end
        if step <= 0:
            raise StopIteration
        if self.moved:
            self.section = PyBytes_FromStringAndSize(<char *>self.c.name, <Py_ssize_t>self.c.name_n)
            self.moved = False
        return (
            self.section,
            PyBytes_FromStringAndSize(<char *>self.c.key, <Py_ssize_t>self.c.key_n),
            PyBytes_FromStringAndSize(<char *>self.c.value, <Py_ssize_t>self.c.value_n) if step == 2 else None,
        )

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
                self.moved = True
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
