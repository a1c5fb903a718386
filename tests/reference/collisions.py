"""Detection of SHA-1 collision attacks, slowly and obviously: the witness for _detect.h; and a published collision.

The twin looks at no condition first: for each disturbance vector it makes the other message of the pair.
"""

from __future__ import annotations

import struct
from functools import cache

import ubc

# The first 320 bytes of the two PDF files of "The first collision for full SHA-1" (Stevens, Bursztein, Karpman,
# Albertini, Markov; CRYPTO 2017, https://shattered.io): what they share, and the two blocks of each.
SHARED = bytes.fromhex(
    "255044462d312e330a25e2e3cfd30a0a0a312030206f626a0a3c3c2f57696474682032203020522f4865696768742033"
    "203020522f547970652034203020522f537562747970652035203020522f46696c7465722036203020522f436f6c6f72"
    "53706163652037203020522f4c656e6774682038203020522f42697473506572436f6d706f6e656e7420383e3e0a7374"
    "7265616d0affd8fffe00245348412d3120697320646561642121212121852fec092339759c39b1a1c63c4c97e1fffe01"
)
FIRST = SHARED + bytes.fromhex(
    "7346dc9166b67e118f029ab621b2560ff9ca67cca8c7f85ba84c79030c2b3de218f86db3a90901d5df45c14f26fedfb3"
    "dc38e96ac22fe7bd728f0e45bce046d23c570feb141398bb552ef5a0a82be331fea48037b8b5d71f0e332edf93ac3500"
    "eb4ddc0decc1a864790c782c76215660dd309791d06bd0af3f98cda4bc4629b1"
)
SECOND = SHARED + bytes.fromhex(
    "7f46dc93a6b67e013b029aaa1db2560b45ca67d688c7f84b8c4c791fe02b3df614f86db1690901c56b45c1530afedfb7"
    "6038e972722fe7ad728f0e4904e046c230570fe9d41398abe12ef5bc942be33542a4802d98b5d70f2a332ec37fac3514"
    "e74ddc0f2cc1a874cd0c78305a21566461309789606bd0bf3f98cda8044629a1"
)

State = tuple[int, int, int, int, int]
START: State = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0)
WORD = 0xFFFFFFFF


def words(block: bytes) -> list[int]:
    """Return the 80 message words of a block."""
    w = list(struct.unpack(">16I", block))
    for t in range(16, 80):
        w.append(ubc.rol(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1))
    return w


def mixed(t: int, b: int, c: int, d: int) -> int:
    """Return the round function and constant of a step."""
    if t < 20:
        return (b & c | ~b & d) + 0x5A827999
    if 40 <= t < 60:
        return (b & c | b & d | c & d) + 0x8F1BBCDC
    return (b ^ c ^ d) + (0x6ED9EBA1 if t < 40 else 0xCA62C1D6)


def forth(state: State, w: list[int], steps: range) -> State:
    """Return the state after some steps."""
    a, b, c, d, e = state
    for t in steps:
        made = (ubc.rol(a, 5) + mixed(t, b, c, d) + e + w[t]) & WORD
        a, b, c, d, e = made, a, ubc.rol(b, 30), c, d
    return a, b, c, d, e


def back(state: State, w: list[int], steps: range) -> State:
    """Return the state before some steps."""
    a, b, c, d, e = state
    for t in reversed(steps):
        made, a, b, c, d = a, b, ubc.rol(c, 2), d, e
        e = (made - ubc.rol(a, 5) - mixed(t, b, c, d) - w[t]) & WORD
    return a, b, c, d, e


def added(one: State, other: State) -> State:
    """Return the sums of two states' words."""
    a, b, c, d, e = ((x + y) & WORD for x, y in zip(one, other, strict=True))
    return a, b, c, d, e


def attacked(before: State, block: bytes) -> list[str]:
    """Return the disturbance vectors along which another block gives the same state behind it."""
    w = words(block)
    out = added(before, forth(before, w, range(80)))
    found = []
    for vector in ubc.vectors():
        change = ubc.differences(ubc.disturbances(vector.type, vector.k, vector.b))
        v = [one ^ other for one, other in zip(w, change, strict=True)]
        middle = forth(before, w, range(vector.middle))
        start = back(middle, v, range(vector.middle))
        if added(start, forth(middle, v, range(vector.middle, 80))) == out:
            found.append(str(vector))
    return found


def blocks_of(message: bytes) -> list[tuple[State, bytes]]:
    """Return the blocks of a message, the last ones with its length, and the state before each."""
    padded = (
        message + b"\x80" + bytes((55 - len(message)) % 64) + struct.pack(">Q", 8 * len(message))
    )
    out, state = [], START
    for at in range(0, len(padded), 64):
        out.append((state, padded[at : at + 64]))
        state = added(state, forth(state, words(padded[at : at + 64]), range(80)))
    return out


@cache
def conditions() -> list[list[ubc.Condition]]:
    """Return all conditions that were found, by disturbance vector."""
    return [ubc.conditions(vector.type, vector.k, vector.b) for vector in ubc.vectors()]


def possible(block: bytes) -> int:
    """Return a bit for each disturbance vector whose conditions, all that were found, a block meets."""
    w = words(block)
    return sum(
        1 << number
        for number, found in enumerate(conditions())
        if all(
            (w[one.first[0]] >> one.first[1] & 1) ^ (w[one.second[0]] >> one.second[1] & 1)
            == one.differ
            for one in found
        )
    )
