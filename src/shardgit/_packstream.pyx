"""The pack-end kernel: finds the entries and the end of a pack in a byte stream that comes in pieces.

A stream without an end of its own (SSH, a Unix pipe, a bidirectional call) tells where a pack stops only by being
read: header, as many entries as the header claims, trailer. PackStream walks it once, with a window of constant size,
checks that each entry inflates to exactly what it claims and that the trailer is the hash of all before it, and notes
where entries begin, so that the ingest kernel needs no pass of its own to find them.

Memory: the window and eight bytes an entry that has come. Entries that lie whole in a piece go through libdeflate,
three times as fast; those cut between pieces, or larger than the window, through zlib.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from array import array

from shardgit._kernel cimport *

from shardgit.errors import Internal, LimitExceeded, MalformedPack

cdef extern from "zlib.h" nogil:
    ctypedef unsigned int uInt
    ctypedef struct z_stream:
        uint8_t *next_in
        uInt avail_in
        uint8_t *next_out
        uInt avail_out
    int inflateInit(z_stream *z)
    int inflateReset(z_stream *z)
    int inflateEnd(z_stream *z)
    int inflate(z_stream *z, int flush)
    const int Z_OK
    const int Z_STREAM_END
    const int Z_BUF_ERROR
    const int Z_MEM_ERROR
    const int Z_NO_FLUSH

cdef enum:
    WINDOW = 262144  # of 256 KiB: larger objects are rare, and zlib streams them
    HEADER = 12
    VARINT_MAX = 10  # bytes of a 64-bit number in an entry's header
    ALONE = 4096  # smaller pieces are not worth giving up the GIL
    IN_HEADER = 0
    IN_HEAD = 1
    IN_BODY = 2
    IN_TRAILER = 3
    AT_END = 4


cdef enum:
    INDEX_FAN = 1032  # bytes of an .idx before its ids: magic, version, 256 counts
    INDEX_MAGIC = 0xFF744F63


cdef int compare_offsets(const void *one, const void *other) noexcept nogil:
    cdef uint64_t a = (<const uint64_t *>one)[0], b = (<const uint64_t *>other)[0]
    return (a > b) - (a < b)


def index_offsets(index, int hash_kind):
    """Return the entry starts that an .idx of version 2 claims, ascending, as array('Q'); None for other bytes.

    The claim is a hint: whoever uses it checks every entry against it. Layout: gitformat-pack(5).
    """
    cdef Py_buffer view
    cdef const uint8_t *data
    cdef const uint8_t *small
    cdef const uint8_t *large
    cdef uint64_t size, count, i, word, most
    cdef uint64_t *out
    cdef size_t hash_size = sg_hash_size(hash_kind)
    cdef bint fits = True
    PyObject_GetBuffer(index, &view, PyBUF_SIMPLE)
    try:
        data, size = <const uint8_t *>view.buf, <uint64_t>view.len
        if size < INDEX_FAN + 2 * hash_size or sg_u32be(data) != INDEX_MAGIC or sg_u32be(data + 4) != 2:
            return None
        count = sg_u32be(data + INDEX_FAN - 4)
        if size - INDEX_FAN - 2 * hash_size < count * (hash_size + 8):
            return None
        made = array("Q", bytes(8 * count))
        small = data + INDEX_FAN + count * (hash_size + 4)
        large = small + 4 * count
        most = (size - INDEX_FAN - 2 * hash_size - count * (hash_size + 8)) // 8
        out = <uint64_t *><size_t>made.buffer_info()[0]
        with nogil:
            for i in range(count):
                word = sg_u32be(small + 4 * i)
                if word >> 31:
                    word &= 0x7FFFFFFF
                    if word >= most:
                        fits = False
                        break
                    word = sg_u64be(large + 8 * word)
                out[i] = word
            if fits:
                if count:  # of none there is no memory to sort
                    qsort(out, <size_t>count, 8, compare_offsets)
        return made if fits else None
    finally:
        PyBuffer_Release(&view)


cdef class PackStream:
    """One pack in a byte stream. ``feed`` pieces until ``finished``; ``finish`` when the stream ended.

    Errors: MalformedPack and LimitExceeded, as soon as the bytes that are wrong have come, and again from then on.
    Not for two threads at once.
    """

    cdef readonly int hash_kind
    cdef uint64_t size_max
    cdef uint64_t objects_max
    cdef uint64_t raw_max
    cdef size_t hash_size
    cdef int state
    cdef bint busy
    cdef sg_status status
    cdef uint64_t at  # bytes taken so far
    cdef uint64_t entry_at
    cdef uint32_t count  # entries that the header claims
    cdef uint64_t raw  # inflated bytes of entries that were begun, as they claim
    cdef uint64_t *starts
    cdef size_t n
    cdef size_t room
    cdef uint8_t kept[64]  # of a header, a head or a trailer that is not whole yet
    cdef size_t n_kept
    cdef int type
    cdef uint64_t size  # of the entry under way
    cdef uint64_t done  # of it, inflated
    cdef bint streaming  # zlib is inside the entry's stream
    cdef sg_hash hash
    cdef sg_inflater *inflater
    cdef z_stream z
    cdef bint z_ready
    cdef uint8_t *window

    def __cinit__(self, int hash_kind, *, uint64_t size_max, uint64_t objects_max,
                  uint64_t raw_max=<uint64_t>1 << 40):
        self.hash_kind = hash_kind
        self.hash_size = sg_hash_size(hash_kind)
        self.size_max = size_max
        self.objects_max = objects_max
        self.raw_max = raw_max
        self.status = SG_OK
        sg_hash_init(&self.hash, hash_kind)
        memset(&self.z, 0, sizeof(z_stream))
        self.window = <uint8_t *>malloc(WINDOW)
        self.inflater = sg_inflater_new()
        if self.window == NULL or self.inflater == NULL or inflateInit(&self.z) != Z_OK:
            raise MemoryError
        self.z_ready = True

    def __dealloc__(self):
        if self.z_ready:
            inflateEnd(&self.z)
        sg_inflater_free(self.inflater)
        free(self.window)
        free(self.starts)

    def feed(self, data not None):
        """Take what belongs to the pack from the start of ``data``; return how many bytes that is.

        Fewer than all only when the pack ends inside ``data``; 0 once it has ended.
        """
        cdef Py_buffer view
        cdef uint64_t before = self.at
        cdef size_t n
        if self.busy:
            raise Internal("a pack stream was fed by two threads")
        self._check()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        n = <size_t>view.len
        self.busy = True
        try:
            if n >= ALONE:
                with nogil:
                    self.status = self._feed(<const uint8_t *>view.buf, n)
            else:
                self.status = self._feed(<const uint8_t *>view.buf, n)
        finally:
            self.busy = False
            PyBuffer_Release(&view)
        self._check()
        return int(self.at - before)

    def finish(self):
        """Say that the stream has ended: MalformedPack when the pack has not."""
        self._check()
        if self.state != AT_END:
            raise MalformedPack("pack is cut short", bytes=int(self.at), objects=int(self.n), claimed=int(self.count))

    @property
    def finished(self):
        """Whether the whole pack has come and its trailer matched."""
        return self.state == AT_END

    @property
    def objects(self):
        """Entries that the pack claims, 0 until its header has come."""
        return int(self.count)

    @property
    def begun(self):
        """Entries of which at least the head has come."""
        return int(self.n)

    @property
    def bytes(self):
        """Bytes of the pack that have come."""
        return int(self.at)

    @property
    def raw_bytes(self):
        """What the entries begun so far inflate to."""
        return int(self.raw)

    @property
    def offsets(self):
        """Where the entries begun so far start, as an array of u64, ascending."""
        out = array("Q", bytes(8 * self.n))
        cdef uint64_t[::1] to
        if self.n:
            to = out
            memcpy(&to[0], self.starts, 8 * self.n)
        return out

    cdef int _check(self) except -1:
        """Raise the error that the stream has failed with, if it has."""
        cdef sg_status st = self.status
        if st == SG_OK:
            return 0
        where = {"offset": int(self.entry_at), "entry": int(self.n)}
        if st == SG_MEMORY:
            raise MemoryError
        if st == SG_EXTERNAL:
            raise MalformedPack("not a pack", bytes=int(self.at))
        if st == SG_OBJECT:
            raise MalformedPack("unknown pack version", version=int(sg_u32be(self.kept + 4)))
        if st == SG_DEPTH:
            raise LimitExceeded("too many objects", objects=int(self.count), limit=int(self.objects_max))
        if st == SG_LIMIT:
            if self.size > self.size_max:
                raise LimitExceeded("object is over a size limit", size=int(self.size), limit=int(self.size_max), **where)
            raise LimitExceeded("pack inflates to more than allowed", limit=int(self.raw_max), **where)
        raise MalformedPack(MESSAGES[st], **where)

    cdef sg_status _feed(self, const uint8_t *data, size_t n) noexcept nogil:
        """Take from ``data``, move on ``at``, and hash what stands before the trailer."""
        cdef size_t used = 0, hashed = 0, take
        cdef uint8_t sum[32]
        cdef sg_status st = SG_OK
        while used < n and st == SG_OK and self.state != AT_END:
            if self.state == IN_HEADER:
                take = self._keep(data + used, n - used, HEADER)
                used += take
                if self.n_kept == HEADER:
                    st = self._header()
            elif self.state == IN_HEAD:
                st = self._head(data, n, &used)
            elif self.state == IN_BODY:
                st = self._body(data, n, &used)
            else:
                sg_hash_update(&self.hash, data + hashed, used - hashed)
                take = self._keep(data + used, n - used, self.hash_size)
                used += take
                hashed = used
                if self.n_kept == self.hash_size:
                    sg_hash_final(&self.hash, sum)
                    if memcmp(sum, self.kept, self.hash_size) != 0:
                        st = SG_CHECKSUM
                    self.state = AT_END
        if used > hashed:
            sg_hash_update(&self.hash, data + hashed, used - hashed)
        self.at += used
        if st != SG_OK:
            self.state = IN_HEADER  # never finished
        return st

    cdef size_t _keep(self, const uint8_t *data, size_t left, size_t want) noexcept nogil:
        """Add to ``kept`` until it holds ``want`` bytes; return how many were taken."""
        cdef size_t take = want - self.n_kept
        if take > left:
            take = left
        memcpy(self.kept + self.n_kept, data, take)
        self.n_kept += take
        return take

    cdef sg_status _header(self) noexcept nogil:
        cdef uint32_t version = sg_u32be(self.kept + 4)
        if memcmp(self.kept, b"PACK", 4) != 0:
            return SG_EXTERNAL
        if version != 2 and version != 3:
            return SG_OBJECT
        self.count = sg_u32be(self.kept + 8)
        if self.count > self.objects_max:
            return SG_DEPTH
        self._next()
        return SG_OK

    cdef void _next(self) noexcept nogil:
        """Go on to the next entry, or to the trailer."""
        self.n_kept = 0
        self.state = IN_HEAD if self.n < self.count else IN_TRAILER

    cdef sg_status _head(self, const uint8_t *data, size_t n, size_t *used) noexcept nogil:
        """Read an entry's header and what names its base, byte by byte: it is two to forty long."""
        cdef size_t need, length = 0, more = 0
        cdef uint64_t distance = 0
        cdef sg_status st
        if self.n_kept == 0:
            self.entry_at = self.at + used[0]
        while used[0] < n:
            self.kept[self.n_kept] = data[used[0]]
            self.n_kept += 1
            used[0] += 1
            st = sg_entry_header(self.kept, self.n_kept, &self.type, &self.size, &length)
            if st == SG_TRUNCATED:
                if self.n_kept > VARINT_MAX:
                    return SG_VARINT
                continue
            if st != SG_OK:
                return st
            if self.type == SG_REF_DELTA:
                if self.n_kept < length + self.hash_size:
                    continue
            elif self.type == SG_OFS_DELTA:
                st = sg_ofs_distance(self.kept + length, self.n_kept - length, &distance, &more)
                if st == SG_TRUNCATED:
                    if self.n_kept - length > VARINT_MAX:
                        return SG_VARINT
                    continue
                if st != SG_OK:
                    return st
                if distance == 0 or self.entry_at < HEADER or distance > self.entry_at - HEADER:
                    return SG_RANGE
            return self._begin()
        return SG_OK

    cdef sg_status _begin(self) noexcept nogil:
        """Note an entry and get ready for its stream."""
        cdef size_t room
        cdef uint64_t *grown
        if self.size > self.size_max:
            return SG_LIMIT
        if self.size > self.raw_max - self.raw:
            return SG_LIMIT
        self.raw += self.size
        if self.n == self.room:
            room = self.room + (self.room >> 1) + 64
            grown = <uint64_t *>realloc(self.starts, room * sizeof(uint64_t))
            if grown == NULL:
                return SG_MEMORY
            self.starts = grown
            self.room = room
        self.starts[self.n] = self.entry_at
        self.n += 1
        self.done = 0
        self.streaming = False
        self.state = IN_BODY
        return SG_OK

    cdef sg_status _body(self, const uint8_t *data, size_t n, size_t *used) noexcept nogil:
        """Inflate the entry as far as the piece goes."""
        cdef size_t length = 0
        cdef uint64_t want
        cdef uInt room, given, got
        cdef int rc
        if not self.streaming:
            # What fails here may only be cut, which libdeflate cannot tell from damage: zlib has the last word.
            if self.size <= WINDOW and self.size <= sg_inflate_most(n - used[0]):
                if sg_inflate(self.inflater, data + used[0], n - used[0], self.window, <size_t>self.size,
                              &length) == SG_OK:
                    used[0] += length
                    self._next()
                    return SG_OK
            if inflateReset(&self.z) != Z_OK:
                return SG_MEMORY
            self.streaming = True
        while True:
            want = self.size - self.done
            # At its claimed size the stream must end: one byte of room shows when it does not.
            room = 1 if want == 0 else WINDOW if want > WINDOW else <uInt>want
            given = <uInt>(1 << 30) if n - used[0] > <size_t>(1 << 30) else <uInt>(n - used[0])
            self.z.next_in = <uint8_t *>(data + used[0])
            self.z.avail_in = given
            self.z.next_out = self.window
            self.z.avail_out = room
            rc = inflate(&self.z, Z_NO_FLUSH)
            got = room - self.z.avail_out
            used[0] += given - self.z.avail_in
            if want == 0 and got:
                return SG_SIZE
            self.done += got
            if rc == Z_STREAM_END:
                if self.done != self.size:
                    return SG_SIZE
                self._next()
                return SG_OK
            if rc == Z_MEM_ERROR:
                return SG_MEMORY
            if rc != Z_OK and rc != Z_BUF_ERROR:
                return SG_DEFLATE
            if self.z.avail_out:
                # zlib has given all it can from what has come.
                if used[0] == n:
                    return SG_OK
                if got == 0 and self.z.avail_in == given:
                    return SG_DEFLATE


MESSAGES = {
    SG_DEFLATE: "entry is not a valid zlib stream",
    SG_SIZE: "entry inflates to another size than it claims",
    SG_TYPE: "unknown entry type",
    SG_VARINT: "entry header holds a number past 64 bits",
    SG_RANGE: "delta reaches before the first entry",
    SG_CHECKSUM: "pack checksum does not match",
}
