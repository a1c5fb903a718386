"""Derive what a block of a SHA-1 collision attack cannot avoid, and write src/shardgit/_ubc.h.

    python tools/ubc.py            # writes the header
    python tools/ubc.py --print    # the conditions, for readers

Every attack that is known follows a *disturbance vector* (DV): 80 words that say at which step and bit the two messages
make the working state differ. Each such difference is corrected by the next five steps, a *local collision*, so a DV
gives the XOR difference of the two messages:

    DM[t] = DV[t] ^ rol5(DV[t-1]) ^ DV[t-2] ^ rol30(DV[t-3]) ^ rol30(DV[t-4]) ^ rol30(DV[t-5])

The 32 DVs here are those for which an attack is feasible, of Manuel's types I(K,b) and II(K,b); choice and order of
magnitude are Stevens', "Counter-cryptanalysis" (CRYPTO 2013). From step 35 on an attack has no freedom to leave the
path, so signs of message differences depend on each other: a bit of W[t] and one of W[u] must be equal, or must differ,
in either message of a pair. These are the *unavoidable bit conditions* of Stevens and Shumow, "Speeding up detection of
SHA-1 collision attacks using unavoidable attack conditions" (USENIX Security 2017). They are derived here anew:

A step adds five terms, so bit by bit the signed differences (+1, -1 or 0) must sum to nothing:

    Q[t+1] = rol5(Q[t]) + F(Q[t-1], rol30 Q[t-2], rol30 Q[t-3]) + rol30(Q[t-4]) + W[t]

Signs of the disturbances are tried in all ways, W's follow, and what all solutions share is unavoidable. What F gives
is known where it is XOR of an even number of differences (0), and in MAJ rounds, where it follows its inputs. Bit 31
has no sign. A difference may carry into the bit above and F then give either sign; but not at bit 31, where there is no
bit above, nor at bit 1, where the carry would be torn apart by the rotation by 30. What is not certain is left out:
a condition too few costs time, a condition too many would let an attack pass. See `_loose`.

All conditions found are among those that the paper's authors published; of theirs, five DVs have one more each.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HEADER = Path(__file__).parent.parent / "src" / "shardgit" / "_ubc.h"
STEPS = 80
FIRST, LAST = 35, 64  # steps whose message words are looked at
MAJ = range(40, 60)
MIDDLES = (58, 65)  # steps before which the two states are equal, by DV one of them
WORD = 0xFFFFFFFF

Place = tuple[int, int]  # a step and a bit of its word


@dataclass(frozen=True, order=True, slots=True)
class Vector:
    """A disturbance vector, by type, K and b."""

    middle: int  # step before which both states are equal
    b: int
    type: int
    k: int

    def __str__(self) -> str:
        return f"{'I' * self.type}({self.k},{self.b})"


@dataclass(frozen=True, order=True, slots=True)
class Condition:
    """Two bits of message words that must differ (``differ`` 1) or be equal (0)."""

    first: Place
    second: Place
    differ: int


def rol(word: int, by: int) -> int:
    """Rotate a 32-bit word to the left."""
    by %= 32
    return ((word << by) | (word >> (32 - by))) & WORD


def disturbances(kind: int, k: int, b: int) -> dict[int, int]:
    """Return the words of a DV from step -16 on: sixteen are given, the message expansion gives the others."""
    words = {k + i: 0 for i in range(16)}
    words[k + 15] = 1 << b
    if kind == 2:
        words[k + 1] = words[k + 3] = rol(1, b + 31)
    for t in range(k + 16, STEPS):
        words[t] = rol(words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16], 1)
    for t in range(k - 1, -17, -1):
        words[t] = rol(words[t + 16], 31) ^ words[t + 13] ^ words[t + 8] ^ words[t + 2]
    return words


def differences(words: dict[int, int]) -> list[int]:
    """Return the XOR differences of the two messages of a DV, by step."""
    return [
        words[t]
        ^ rol(words[t - 1], 5)
        ^ words[t - 2]
        ^ rol(words[t - 3] ^ words[t - 4] ^ words[t - 5], 30)
        for t in range(STEPS)
    ]


def vectors() -> list[Vector]:
    """Return the 32 DVs, those whose states meet at the earlier step first."""
    names = [(1, k, 0) for k in range(43, 53)] + [(1, k, 2) for k in range(46, 52)]
    names += [(2, k, 0) for k in range(45, 57)] + [(2, k, 2) for k in (46, 49, 50, 51)]
    return sorted(Vector(_middle(disturbances(*name)), name[2], *name[:2]) for name in names)


def _middle(words: dict[int, int]) -> int:
    """Return the step before which all five words of the state are undisturbed."""
    return next(t for t in MIDDLES if not any(words[t - i] for i in range(1, 6)))


# ---- the equations of one DV ----


@dataclass(frozen=True, slots=True)
class _Sum:
    """What must sum to nothing at one bit of one step."""

    signed: tuple[tuple[Place, int], ...]  # disturbances whose sign counts, with the factor of it
    inputs: tuple[Place, ...]  # disturbances that go through F
    message: bool  # whether W differs here


def _carries(place: Place) -> bool:
    """Whether a difference there may carry into the bit above and still be corrected."""
    return place[1] not in (1, 31)


def _sums(words: dict[int, int], message: list[int], t: int) -> dict[int, _Sum]:
    """Return the sums of a step by bit, those of nothing but zeros left out."""
    out = {}
    for bit in range(32):
        above = (bit + 2) % 32
        signed = (((t, bit), 1), ((t - 1, (bit - 5) % 32), -1), ((t - 5, above), -1))
        inputs = ((t - 2, bit), (t - 3, above), (t - 4, above))
        one = _Sum(
            tuple(each for each in signed if words[each[0][0]] >> each[0][1] & 1),
            tuple(each for each in inputs if words[each[0]] >> each[1] & 1),
            bool(message[t] >> bit & 1),
        )
        if one.signed or one.inputs or one.message:
            out[bit] = one
    return out


def _loose(words: dict[int, int], sums: dict[int, _Sum], t: int) -> set[int]:
    """Return the bits of a step whose sum may come out in another way.

    Two disturbances side by side in one word may be one, with the other sign, one bit lower. F then gets one input
    instead of two; where it would have had to cancel a correction, or where its result must be corrected, either may
    come. A difference that carries gives F an input one bit higher. Neighbours share one number: where one is loose,
    all are that touch it.
    """

    def twin(place: Place) -> bool:
        word, bit = words[place[0]], place[1]
        return bool((bit < 31 and word >> bit + 1 & 1) or (bit > 0 and word >> bit - 1 & 1))

    loose = set()
    for bit, one in sums.items():
        unsure = t in MAJ or any(_carries(place) for place in one.inputs)
        if any(twin(place) for place in one.inputs):
            loose.add(bit)
        if one.inputs and unsure and any(twin(place) for place, _ in one.signed):
            loose.add(bit)
        if any(_carries(place) for place in one.inputs):
            loose.add(bit + 1)
    grown = True
    while grown:
        more = {bit for bit in sums if bit not in loose and {bit - 1, bit + 1} & loose}
        loose |= more
        grown = bool(more)
    return loose


def _through(t: int, inputs: tuple[Place, ...], signs: list[int]) -> set[int]:
    """Return the signs that F may give for inputs of these signs."""
    if not inputs:
        return {0}
    if any(_carries(place) for place in inputs):
        return {-1, 0, 1}
    if t not in MAJ:
        return {-1, 1} if len(inputs) % 2 else {0}
    total = sum(signs)
    if len(inputs) == 1:
        return {0, total}
    return {total // 2} if len(inputs) == 2 else {1 if total > 0 else -1}


def _message_signs(t: int, one: _Sum, sign: dict[Place, int]) -> set[int]:
    """Return the signs that W may have; none when the disturbances' signs are impossible."""
    total = sum(factor * sign[place] for place, factor in one.signed)
    through = _through(t, one.inputs, [sign[place] for place in one.inputs])
    allowed = (-1, 1) if one.message else (0,)
    return {total - each for each in through} & set(allowed)


def conditions(kind: int, k: int, b: int) -> list[Condition]:
    """Return all pairs of bits that depend on each other for a DV."""
    words = disturbances(kind, k, b)
    message = differences(words)
    sums: dict[Place, _Sum] = {}
    for t in range(FIRST, LAST + 1):
        found = _sums(words, message, t)
        loose = _loose(words, found, t)
        sums |= {(t, bit): one for bit, one in found.items() if bit != 31 and bit not in loose}
    order = sorted({p for one in sums.values() for p in (*(q for q, _ in one.signed), *one.inputs)})
    rank = {place: number for number, place in enumerate(order)}
    ready: dict[int, list[Place]] = defaultdict(list)  # sums by the last disturbance they need
    for at, one in sums.items():
        ready[max(rank[place] for place in (*(q for q, _ in one.signed), *one.inputs))].append(at)
    solutions: list[dict[Place, set[int]]] = []
    stack: list[tuple[int, dict[Place, int], dict[Place, set[int]]]] = [(0, {}, {})]
    while stack:
        number, sign, known = stack.pop()
        if number == len(order):
            solutions.append(known)
            continue
        for value in (-1, 1):
            tried = sign | {order[number]: value}
            found_signs = {at: _message_signs(at[0], sums[at], tried) for at in ready[number]}
            if all(found_signs.values()):
                stack.append((number + 1, tried, known | found_signs))
    certain = [
        at for at in sorted(sums) if sums[at].message and all(len(s[at]) == 1 for s in solutions)
    ]
    out = []
    for first, second in itertools.combinations(certain, 2):
        products = {next(iter(s[first])) * next(iter(s[second])) for s in solutions}
        if len(products) == 1:
            out.append(Condition(first, second, int(products == {-1})))
    return out


# ---- few conditions for all DVs ----


def chosen(found: dict[Vector, list[Condition]]) -> dict[Condition, list[Vector]]:
    """Return conditions that say the same as all those found, few of them, with the DVs each is needed for.

    Greedy: a condition that most DVs have use for comes first. One whose bits are tied already is of no use.
    """
    tied: dict[Vector, dict[Place, Place]] = {vector: {} for vector in found}
    left = {
        condition: {vector for vector in found if condition in set(found[vector])}
        for condition in sorted({each for some in found.values() for each in some})
    }
    out: dict[Condition, list[Vector]] = {}

    def root(vector: Vector, place: Place) -> Place:
        while place in tied[vector]:
            place = tied[vector][place]
        return place

    while left:
        best = max(
            left, key=lambda one: (len(left[one]), one.first[1] == one.second[1], -one.first[0])
        )
        users = left.pop(best)
        out[best] = sorted(users)
        for vector in users:
            tied[vector][root(vector, best.first)] = root(vector, best.second)
        for condition in list(left):
            left[condition] = {
                vector
                for vector in left[condition]
                if root(vector, condition.first) != root(vector, condition.second)
            }
            if not left[condition]:
                del left[condition]
    return out


# ---- the header ----


def header() -> str:
    """Return src/shardgit/_ubc.h."""
    dvs = vectors()
    picked = chosen({dv: conditions(dv.type, dv.k, dv.b) for dv in dvs})
    mask = {dv: 1 << number for number, dv in enumerate(dvs)}
    late = sum(dv.middle == MIDDLES[0] for dv in dvs)
    lines = [
        "/* Made by tools/ubc.py: what a block of a SHA-1 collision attack cannot avoid, by disturbance vector (DV).",
        " *",
        *(f" * {number:2} {dv}" for number, dv in enumerate(dvs)),
        " */",
        "#ifndef SHARDGIT_UBC_H",
        "#define SHARDGIT_UBC_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define SG_DVS {len(dvs)}",
        f"#define SG_MIDDLE {MIDDLES[0]} /* step before which the two states of a pair are equal, */",
        f"#define SG_MIDDLE_LATE {MIDDLES[1]} /* and that of the DVs */",
        f"#define SG_LATE {late} /* from here on */",
        "/* Message words that are looked at. */",
        f"#define SG_UBC_FIRST {min(one.first[0] for one in picked)}",
        f"#define SG_UBC_LAST {max(one.second[0] for one in picked)}",
        "",
        f"/* {len(picked)} conditions. EQUAL(t, b, u, c): bit b of W[t] is bit c of W[u]; DIFFER: it is not.",
        " * NEEDED(dvs): so it is, with all those in its line, in a block of these DVs. */",
        "#define SG_UBC(EQUAL, DIFFER, NEEDED) \\",
    ]
    groups: dict[int, list[Condition]] = defaultdict(list)
    for one in sorted(picked):
        groups[sum(mask[dv] for dv in picked[one])].append(one)
    rows = []
    for users, some in groups.items():
        words = [
            f"{'DIFFER' if one.differ else 'EQUAL'}({one.first[0]}, {one.first[1]}, {one.second[0]}, {one.second[1]})"
            for one in some
        ]
        rows.append(f"    {' '.join(words)} NEEDED(0x{users:08x}u)")
    lines.append(" \\\n".join(rows))
    lines += [
        "",
        "/* XOR differences of the first 16 message words; the expansion gives the others. */",
    ]
    lines.append("static const uint32_t sg_dv_words[SG_DVS][16] = {")
    for dv in dvs:
        words = [f"0x{word:08x}u" for word in differences(disturbances(dv.type, dv.k, dv.b))[:16]]
        lines.append("    {" + ", ".join(words[:8]) + ",")
        lines.append("     " + ", ".join(words[8:]) + "},")
    lines += ["};", "", "#endif", ""]
    return "\n".join(lines)


def main() -> None:
    """Write the header, or print the conditions."""
    parser = argparse.ArgumentParser(
        description="derive unavoidable bit conditions of SHA-1 attacks"
    )
    parser.add_argument("--print", action="store_true", help="print the conditions instead")
    if not parser.parse_args().print:
        HEADER.write_text(header())
        return
    for dv in vectors():
        own = chosen({dv: conditions(dv.type, dv.k, dv.b)})
        words = " ".join(
            f"W{c.first[0]}[{c.first[1]}]{'!=' if c.differ else '='}W{c.second[0]}[{c.second[1]}]"
            for c in own
        )
        print(f"{dv} from {dv.middle}: {len(own)} conditions: {words}")


if __name__ == "__main__":
    main()
