"""SHA-1 collision attacks are found in whatever lane and piece they come, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
import itertools
import random
import struct
from pathlib import Path

import pytest
import ubc
from gcing import MAIN, ME, commit
from hypothesis import given
from hypothesis import strategies as st
from reference.collisions import FIRST, SECOND, attacked, blocks_of, possible
from reference.packs import PackMaker, delta, object_id

import shardgit
from shardgit._fastpack import (
    attack_vectors,
    error_of,
    message_digests,
    object_ids,
    watched_id,
)
from shardgit._layout import Ingest
from shardgit.config import load_config
from shardgit.errors import CollisionAttack, InvalidArgument
from shardgit.node import create_store, open_store
from shardgit.oid import HashKind
from shardgit.operate.operation import silent_control
from shardgit.operate.verify import verify_repository
from shardgit.operate.verifying import verify_store
from shardgit.protocol.receive_pack import Command, PushRequest, report
from shardgit.service.exporting import export_repository
from shardgit.service.importing import import_repository
from shardgit.service.push import Push

LANES = (1, 3, 8)
WIDTHS = (False, True)  # AVX2 where there is, and plain
ATTACK = 15  # SG_ATTACK


def digests(messages: list[bytes]) -> list[bytes]:
    return [hashlib.sha1(message).digest() for message in messages]


def test_the_table_is_what_the_generator_makes() -> None:
    kernel = Path(shardgit.__file__).parent / "_ubc.h"
    assert kernel.read_text() == ubc.header()


def test_the_published_messages_collide() -> None:
    assert FIRST != SECOND
    assert hashlib.sha1(FIRST).digest() == hashlib.sha1(SECOND).digest()


@pytest.mark.parametrize("plain", WIDTHS)
@pytest.mark.parametrize("lanes", LANES)
def test_a_collision_is_found_in_every_lane(lanes: int, plain: bool) -> None:
    rand = random.Random(lanes)
    for attack in (FIRST, SECOND, FIRST + rand.randbytes(5_000)):
        for at in range(9):
            messages = [rand.randbytes(rand.choice((0, 70, 500, 3_000))) for _ in range(9)]
            messages[at] = attack
            attacks: list[int] = []
            assert message_digests(messages, lanes, attacks, plain) == digests(messages)
            assert attacks == [at]


@pytest.mark.parametrize("lanes", LANES)
def test_all_of_several_are_told_once(lanes: int) -> None:
    messages = [FIRST, b"", SECOND, FIRST + b"more", b"x" * 1_000, SECOND + FIRST]
    attacks: list[int] = []
    assert message_digests(messages, lanes, attacks) == digests(messages)
    assert attacks == [0, 2, 3, 5]


@pytest.mark.parametrize("plain", WIDTHS)
def test_more_attacks_than_are_told(plain: bool) -> None:
    attacks: list[int] = []
    message_digests([FIRST] * 100, 0, attacks, plain)
    assert len(attacks) == 64
    assert set(attacks) <= set(range(100))


def test_one_bit_makes_another_message_of_it() -> None:
    rand = random.Random(1)
    messages = []
    for _ in range(200):
        bit = rand.randrange(8 * len(FIRST))
        changed = bytearray(FIRST)
        changed[bit // 8] ^= 1 << bit % 8
        messages.append(bytes(changed))
    for plain in WIDTHS:
        attacks: list[int] = []
        message_digests(messages, 0, attacks, plain)
        assert attacks == []


def test_the_same_blocks_elsewhere_are_none() -> None:
    """An attack is one only behind its prefix: what Git puts before a blob breaks it."""
    attacks: list[int] = []
    message_digests([b"x" * 64 + FIRST, FIRST[64:], FIRST[:256]], 0, attacks)
    assert attacks == []
    object_ids(1, [3, 3], [FIRST, SECOND], 0, attacks)
    assert attacks == []


def test_a_million_random_blocks_are_none() -> None:
    message = random.Random(2).randbytes(64_000_000)
    attacks: list[int] = []
    assert message_digests([message, b""], 0, attacks)[0] == hashlib.sha1(message).digest()
    assert attacks == []


@given(st.lists(st.integers(0, 400), max_size=6))
def test_a_collision_is_found_in_pieces(cuts: list[int]) -> None:
    bounds = sorted({0, *cuts, 1_000})
    message = FIRST + bytes(680)
    pieces = [message[low:high] for low, high in itertools.pairwise(bounds)]
    assert watched_id(0, pieces, len(message)) == (hashlib.sha1(message).digest(), True)


@given(st.binary(max_size=300), st.integers(1, 200))
def test_pieces_of_a_blob_give_its_id(data: bytes, size: int) -> None:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    wanted = hashlib.sha1(b"blob %d\0" % len(data) + data).digest()
    assert watched_id(3, pieces, len(data)) == (wanted, False)


def test_the_twin_finds_what_the_kernel_finds() -> None:
    for message in (FIRST, SECOND):
        found = [attacked(before, block) for before, block in blocks_of(message)]
        assert found == [[], [], [], [], ["II(52,0)"], []]


@pytest.mark.parametrize("plain", WIDTHS)
def test_the_first_look_is_the_twins(plain: bool) -> None:
    rand = random.Random(3)
    blocks = [rand.randbytes(64) for _ in range(600)]
    blocks += [block for message in (FIRST, SECOND) for _, block in blocks_of(message)]
    blocks += [
        bytes(64),
        b"\xff" * 64,
        *(struct.pack(">16I", *([1 << bit] * 16)) for bit in range(32)),
    ]
    seen = 0
    at = 0
    while at < len(blocks):
        some = blocks[at : at + rand.randint(1, 32)]
        masks = attack_vectors(b"".join(some), plain)
        assert masks == [possible(block) for block in some]
        seen |= sum(
            {bit: 1 << bit for mask in masks for bit in range(32) if mask >> bit & 1}.values()
        )
        at += len(some)
    assert seen.bit_count() >= 8  # vectors that some block met


def test_every_vector_has_its_conditions() -> None:
    vectors = ubc.vectors()
    assert len(set(vectors)) == 32
    assert [vector.middle for vector in vectors] == sorted(vector.middle for vector in vectors)
    for vector in vectors:
        change = ubc.differences(ubc.disturbances(vector.type, vector.k, vector.b))
        found = ubc.conditions(vector.type, vector.k, vector.b)
        assert len(found) >= 7
        for t in range(16, 80):
            assert change[t] == ubc.rol(
                change[t - 3] ^ change[t - 8] ^ change[t - 14] ^ change[t - 16], 1
            )
        for one in found:  # both bits differ between the messages, so that either message meets it
            assert change[one.first[0]] >> one.first[1] & 1
            assert change[one.second[0]] >> one.second[1] & 1


def test_the_status_is_one_typed_error() -> None:
    error = error_of(ATTACK, oid="11" * 20)
    assert isinstance(error, CollisionAttack)
    assert isinstance(error, InvalidArgument)
    assert error.reason == "COLLISION_ATTACK"
    assert str(error) == f"object looks like a SHA-1 collision attack (oid={'11' * 20})"


# ---- where they are looked for ----


def packed() -> bytes:
    """Return a pack with entries of every kind; its large blob is streamed where memory_max is small."""
    rand = random.Random(5)
    maker = PackMaker()
    text = rand.randbytes(2_000)
    at = maker.add(3, text)
    for number in range(40):
        new = b"%d" % number + text[: rand.randint(100, 2_000)]
        at = maker.ofs(at, delta(text, new))
        text = new
    maker.ref(object_id(3, text), delta(text, text + b"more"))
    maker.add(3, rand.randbytes(300_000))
    maker.add(2, b"100644 file\0" + object_id(3, text))
    return maker.pack()


@pytest.mark.parametrize("refs", [True, False])
def test_ids_of_a_pack_are_the_same_with_detection(refs: bool) -> None:
    pack = packed()
    if not refs:
        maker = PackMaker()
        for number in range(200):
            maker.add(3, random.Random(number).randbytes(number * 37))
        pack = maker.pack()
    made = []
    for detect in (False, True):
        ingest = Ingest(
            1,
            size_max=1 << 30,
            memory_max=1 << 16,
            cache_max=1 << 20,
            objects_max=1_000,
            depth_max=100,
            detect=detect,
        )
        assert ingest.detect is detect
        ingest.scan(pack)
        ingest.resolve()
        ingest.finish()
        made.append(ingest.sorted_ids())
    assert made[0] == made[1]


def test_with_sha256_nothing_is_looked_for() -> None:
    ingest = Ingest(
        2,
        size_max=1,
        memory_max=1,
        cache_max=1,
        objects_max=1,
        depth_max=1,
        detect=True,
    )
    assert not ingest.detect
    attacks: list[int] = []
    made = object_ids(2, [3], [b"data"], 0, attacks)
    assert made == [hashlib.sha256(b"blob 4\0data").digest()]
    assert attacks == []


@pytest.mark.parametrize(("word", "pushed"), [("push", True), ("always", True), ("never", False)])
def test_the_store_says_where(tmp_path: Path, word: str, pushed: bool) -> None:
    create_store(tmp_path / "store")
    with open_store(tmp_path / "store", detect_collisions=word) as store:
        store.create_repository("demo", HashKind.SHA1)
        made = commit()
        request = PushRequest((Command(MAIN, None, made.id),))
        push = Push(store, "demo", request, principal=ME)
        push.take(made.pack)
        assert push.ingest is not None
        assert push.ingest.detect is pushed
        push.check()
        assert push.commit().results[0].error is None
        assert verify_repository(store, "demo").clean
        found = verify_store(
            tmp_path / "store", control=silent_control(), objects=True, detect=True
        )
        assert found.clean
        assert found.objects == 3


def test_a_client_is_told_which_object(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        store.create_repository("demo", HashKind.SHA1)
        oid = commit().id
        request = PushRequest((Command(MAIN, None, oid),), report=1)
        push = Push(store, "demo", request, principal=ME)
        error = error_of(ATTACK, oid=oid.hex())
        assert isinstance(error, CollisionAttack)
        push.unpack_failed(error)
        said = report(request, push.unpack_error, push.commit().results)
        assert (
            b"unpack object looks like a SHA-1 collision attack (oid=" + oid.hex().encode() in said
        )
        assert b"ng refs/heads/main unpacker error" in said


def test_an_import_can_be_looked_at(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        store.create_repository("demo", HashKind.SHA1)
        made = commit()
        push = Push(store, "demo", PushRequest((Command(MAIN, None, made.id),)), principal=ME)
        push.take(made.pack)
        push.check()
        push.commit()
        export_repository(store, "demo", tmp_path / "out.git")
        done = import_repository(store, "again", str(tmp_path / "out.git"), detect=True)
        assert done.objects_in_source == 3


@pytest.mark.parametrize("word", ["", "Push", "sometimes"])
def test_a_word_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(InvalidArgument):
        load_config(None, environment={"SHARDGIT_DETECT_COLLISIONS": word})
    assert load_config(None, environment={}).detect_collisions == "push"
