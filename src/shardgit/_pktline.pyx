"""Pkt-lines cut out of what was read, and the ids that lines name, a run of them at a time.

A client's request may name thousands of ids, and is read on the event loop: a line cost 2.5 us there in Python.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport int8_t, uint8_t
from libc.string cimport memcmp

cdef Py_ssize_t PACKET_MAX_BYTES = 65_520
cdef int8_t[256] DIGITS


cdef void fill() noexcept:
    cdef int code
    for code in range(256):
        DIGITS[code] = -1
    for code in range(10):
        DIGITS[48 + code] = <int8_t>code
    for code in range(6):
        DIGITS[65 + code] = DIGITS[97 + code] = <int8_t>(10 + code)


fill()


def cut(const uint8_t[::1] data not None, tuple marks not None, list out not None):
    """Append the packets that are whole to ``out``, those without payload as ``marks`` has them by their length.

    Returns where it stopped: at the end, before a packet that is not whole, or before a length that is none.
    """
    cdef Py_ssize_t at = 0, end = data.shape[0], size
    if end < 4:
        return 0
    cdef const uint8_t *text = &data[0]
    while end - at >= 4:
        size = length(text + at)
        if size < 0 or size == 3 or size > PACKET_MAX_BYTES:
            break
        if size < 3:
            out.append(marks[size])
            at += 4
            continue
        if end - at < size:
            break
        out.append(PyBytes_FromStringAndSize(<const char *>text + at + 4, size - 4))
        at += size
    return at


cdef Py_ssize_t length(const uint8_t *text) noexcept nogil:
    """Return what four hex digits say, below 0 where they are none."""
    cdef int one = DIGITS[text[0]], two = DIGITS[text[1]], three = DIGITS[text[2]], four = DIGITS[text[3]]
    if (one | two | three | four) < 0:
        return -1
    return (one << 12) | (two << 8) | (three << 4) | four


def ids_named(list packets not None, Py_ssize_t at, bytes word not None, Py_ssize_t size):
    """Return the ids that the packets from ``at`` on name, as many as follow one another.

    Such a packet is the word, an id of ``size`` bytes in hex, and perhaps a newline; all else ends the run.
    """
    cdef Py_ssize_t count = PyList_GET_SIZE(packets), lead = PyBytes_GET_SIZE(word), long
    cdef const char *begin = PyBytes_AS_STRING(word)
    cdef const char *text
    cdef bytes raw
    cdef list out = []
    if at < 0 or size <= 0:
        raise ValueError("no such place, or no such id")
    while at < count:
        packet = <object>PyList_GET_ITEM(packets, at)
        if not PyBytes_CheckExact(packet):
            break
        long = PyBytes_GET_SIZE(packet)
        text = PyBytes_AS_STRING(packet)
        if long == lead + 2 * size + 1:
            if text[long - 1] != b"\n":
                break
        elif long != lead + 2 * size:
            break
        if memcmp(text, begin, <size_t>lead):
            break
        raw = PyBytes_FromStringAndSize(NULL, size)
        if not unhex(<uint8_t *>PyBytes_AS_STRING(raw), <const uint8_t *>text + lead, size):
            break
        out.append(raw)
        at += 1
    return out


cdef bint unhex(uint8_t *to, const uint8_t *text, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t at
    cdef int high, low
    for at in range(size):
        high, low = DIGITS[text[2 * at]], DIGITS[text[2 * at + 1]]
        if (high | low) < 0:
            return False
        to[at] = <uint8_t>((high << 4) | low)
    return True
