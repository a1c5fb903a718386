"""Hooks before a push: programs, HTTP and gRPC callbacks, what they may see and how long they may run."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from aiohttp import web
from hooking import (
    SHARDGIT,
    Client,
    configure,
    equip,
    move,
    program,
    push,
    small_history,
)
from moved import Moved

import shardgit.aio
from shardgit.errors import HookRefused, InvalidArgument, ObjectMissing, ShardgitError
from shardgit.limits import Limits
from shardgit.node import create_store, open_store
from shardgit.oid import ObjectId
from shardgit.protocol.receive_pack import Command
from shardgit.service.hooks import HookPolicy, shown_target
from shardgit.service.importing import import_repository
from shardgit.service.push_nonce import NonceStatus
from shardgit.service.quarantine import QuarantinedReading
from shardgit.service.reading import Reading
from shardgit.service.settings import Hook
from shardgit.service.signed_push import CertificateFacts
from shardgit.service.store import Reach
from shardgit.v1 import hook_pb2, hook_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from shardgit.service.hooks import Hooks, PushHookCall
    from shardgit.service.store import Store

pytestmark = pytest.mark.interop
LIMITS = Limits(hook_output_max_bytes=1_000, hook_answer_max_bytes=2_000)
OLD, NEW = ObjectId(b"\x01" * 20), ObjectId(b"\x02" * 20)
MOVED = Command(b"refs/heads/main", OLD, NEW)
MADE = Command(b"refs/heads/n\xff", None, NEW)
GONE = Command(b"refs/heads/gone", OLD, None)
ZEROS = "0" * 40


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("hooks")
    create_store(folder / "data")
    with open_store(folder / "data", limits=LIMITS, threads=2) as store:
        import_repository(store, "demo", str(small_history(folder / "origin")))
        store.create_repository("other")
        yield store


@pytest.fixture
def store(opened: Store) -> Iterator[Store]:
    yield opened
    configure(opened)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "hooks"
    folder.mkdir()
    return folder


@pytest.fixture
def hooks(store: Store, programs: Path) -> Hooks:
    return equip(store, HookPolicy(programs=programs))


async def ask(hooks: Hooks, call: PushHookCall) -> str | None:
    """Run pre-receive hooks; returns why they refuse."""
    async with hooks.asking(call) as session:
        try:
            await session.pre_receive()
        except HookRefused as error:
            return error.message
    return None


def hook(target: str, event: str = "pre_receive", **more: Any) -> dict[str, Any]:
    return {"kind": "program", "event": event, "target": target, **more}


# ---- programs ----


async def test_a_program_reads_the_commands_and_its_output_is_shown(
    store: Store, hooks: Hooks, programs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = f"cat >{out}; env >{out}.env; echo seen; echo trouble >&2; pwd"
    configure(store, hook(program(programs, "a", text)))
    client = Client()
    facts = CertificateFacts(
        certificate=b"the certificate",
        id=ObjectId(b"\x03" * 20),
        status="G",
        signer="Alice",
        key="K",
        fingerprint="F",
        nonce="n",
        nonce_status=NonceStatus.SLOP,
        slop_s=4,
        pusher="",
        pushee="",
        output="",
    )
    os.environ["A_SECRET_OF_THE_SERVER"] = "x"
    call = push(
        store,
        MOVED,
        MADE,
        GONE,
        client=client,
        options=(b"ci.skip", b"with\nlines \xff"),
        certificate=facts,
    )
    assert await ask(hooks, call) is None
    assert out.read_bytes() == (
        b"%s %s refs/heads/main\n" % (OLD.hex().encode(), NEW.hex().encode())
        + b"%s %s refs/heads/n\xff\n" % (ZEROS.encode(), NEW.hex().encode())
        + b"%s %s refs/heads/gone\n" % (OLD.hex().encode(), ZEROS.encode())
    )
    seen = Path(f"{out}.env").read_bytes()
    for line in (
        b"GIT_PUSH_OPTION_COUNT=2",
        b"GIT_PUSH_OPTION_0=ci.skip",
        b"GIT_PUSH_OPTION_1=with\nlines \xff",
        b"GIT_PUSH_CERT_STATUS=G",
        b"GIT_PUSH_CERT_SIGNER=Alice",
        b"GIT_PUSH_CERT_NONCE_STATUS=SLOP",
        b"GIT_PUSH_CERT_NONCE_SLOP=4",
        b"GIT_PUSH_CERT=" + b"03" * 20,
        b"SHARDGIT_REPOSITORY=demo",
        b"SHARDGIT_ACTOR=alice",
        b"SHARDGIT_ADDRESS=192.0.2.7",
        b"SHARDGIT_EVENT=pre_receive",
    ):
        assert line + b"\n" in seen
    assert b"SECRET" not in seen
    lines = client.text.splitlines()
    assert sorted(lines[:2]) == ["seen", "trouble"]
    assert not Path(lines[2]).exists()  # the folder is gone with the push
    assert list(store.scratch.glob("push-*")) == []


async def test_a_program_that_fails_refuses_with_its_output_shown(
    store: Store, hooks: Hooks, programs: Path
) -> None:
    first = hook(program(programs, "a", "echo no trailing whitespace, please; exit 3"))
    second = hook(program(programs, "b", "echo never asked"))
    configure(store, first, second)
    client = Client()
    assert await ask(hooks, push(store, MOVED, client=client)) == "pre-receive hook declined"
    assert client.text == "no trailing whitespace, please\n"


async def test_the_update_program_gets_one_ref_and_speaks_for_it_alone(
    store: Store, hooks: Hooks, programs: Path
) -> None:
    text = 'echo "$# $1 $2 $3"; read x && exit 9; test "$1" != refs/heads/main'
    configure(store, hook(program(programs, "u", text), "update"))
    client = Client()
    moved = Moved()
    async with hooks.asking(push(store, MOVED, GONE, client=client)) as session:
        await session.pre_receive()
        assert await session.update(MOVED) == "hook declined"
        assert await session.update(GONE) is None
    assert moved("shardgit_hooks_total") == {"update refused": 1, "update accepted": 1}
    assert moved("shardgit_hook_seconds_count") == {"update": 2}
    assert client.text == (
        f"3 refs/heads/main {OLD.hex()} {NEW.hex()}\n3 refs/heads/gone {OLD.hex()} {ZEROS}\n"
    )


async def test_a_program_that_does_not_end_is_killed_with_all_that_it_began(
    store: Store, hooks: Hooks, programs: Path, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    text = f"sleep 300 & echo $! $$ >{pids}; trap '' TERM; sleep 300"
    configure(store, hook(program(programs, "a", text), timeout_s=1.0))
    begun = time.monotonic()
    reason = await ask(hooks, push(store, MOVED))
    assert reason == "pre-receive hook failed: hook did not end in time (limit_s=1.0)"
    assert time.monotonic() - begun < 10
    async with asyncio.timeout(10):
        for pid in pids.read_text().split():
            while runs(pid):
                await asyncio.sleep(0.02)


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_what_a_program_leaves_behind_does_not_hold_up_the_push(
    store: Store, hooks: Hooks, programs: Path
) -> None:
    configure(store, hook(program(programs, "a", "sleep 300 & echo done")))
    client = Client()
    begun = time.monotonic()
    assert await ask(hooks, push(store, MOVED, client=client)) is None
    assert time.monotonic() - begun < 10
    assert client.text == "done\n"


async def test_output_is_shown_up_to_a_limit(store: Store, hooks: Hooks, programs: Path) -> None:
    one = hook(program(programs, "a", "yes | head -c 5000000"))
    configure(store, one, hook(program(programs, "b", "echo more")))
    client = Client()
    assert await ask(hooks, push(store, MOVED, client=client)) is None
    assert len(client.shown) < 1_100
    assert client.text.endswith("(the rest of the output was cut)\n")


async def test_a_client_that_is_gone_ends_the_program(
    store: Store, hooks: Hooks, programs: Path
) -> None:
    configure(store, hook(program(programs, "a", "echo hello; sleep 300")))

    async def gone(_: bytes) -> None:
        raise ConnectionResetError

    begun = time.monotonic()
    with pytest.raises(ConnectionResetError):
        await ask(
            hooks, push(store, MOVED, client=type("Gone", (), {"tell": staticmethod(gone)})())
        )
    assert time.monotonic() - begun < 10


async def test_a_cancelled_push_ends_its_program(
    store: Store, hooks: Hooks, programs: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    configure(
        store, hook(program(programs, "a", f"echo $$ >{pid}.new; mv {pid}.new {pid}; sleep 300"))
    )
    task = asyncio.create_task(ask(hooks, push(store, MOVED)))
    while not pid.exists():
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert list(store.scratch.glob("push-*")) == []


async def test_only_programs_in_the_configured_folder_run(
    store: Store, programs: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    good = program(programs, "good", f"touch {ran}")
    outside = program(tmp_path / "elsewhere", "bad", f"touch {ran}")
    (programs / "link").symlink_to(outside)
    plain = programs / "plain"
    plain.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hooks = equip(store, HookPolicy(programs=programs))
    for target, words in (
        (outside, "does not lie in the configured folder"),
        (str(programs / "link"), "does not lie in the configured folder"),
        (f"{programs}/../elsewhere/bad", "does not lie in the configured folder"),
        (str(programs), "does not lie in the configured folder"),
        (str(programs / "missing"), "does not exist"),
        (str(plain), "cannot be started"),
    ):
        configure(store, hook(target))
        assert words in str(await ask(hooks, push(store, MOVED))), target
    configure(store, hook(good))
    closed = equip(store, HookPolicy())
    assert "not allowed by the server" in str(await ask(closed, push(store, MOVED)))
    assert not ran.exists()
    assert await ask(hooks, push(store, MOVED)) is None
    assert ran.exists()
    for bad in ({"target": "relative"}, {"kind": "perl"}, {"timeout_s": 0}):
        with pytest.raises((InvalidArgument, ShardgitError)):
            configure(store, {**hook(good), **bad})


# ---- the pushed objects ----


def quarantined(store: Store) -> tuple[Reading, ObjectId]:
    """Return a reading in which a branch that no ref names is as good as pushed, and its tip."""
    with store.journal.snapshot() as snapshot:
        state = store.state(snapshot, "demo")
        side = store.refs.get(snapshot, state.record, b"refs/heads/side")
    assert side is not None
    assert side.target is not None
    move(store, "refs/heads/side", None)
    with store.journal.snapshot() as snapshot:
        state = store.state(snapshot, "demo")
        main = store.refs.get(snapshot, state.record, b"refs/heads/main")
    view = store.view(state.pool)
    assert view is not None
    assert main is not None
    assert main.target is not None
    tips = view.positions([main.target, side.target])
    reach = Reach(walk=lambda: store.closure_of(view, tips))
    return QuarantinedReading(store, state, view, reach), side.target


async def test_a_hook_reads_what_was_pushed_and_nothing_else(
    store: Store, hooks: Hooks, programs: Path, tmp_path: Path
) -> None:
    read, tip = await store.workers.run(quarantined, store)
    try:
        with pytest.raises(ObjectMissing):  # nobody else can read it
            await store.workers.run(lambda: Reading(store, "demo").resolve(tip.hex()))
        target = tmp_path / "target"
        text = f"""read old new ref
            echo $SHARDGIT_SERVER >{target}
            {SHARDGIT} object get $SHARDGIT_REPOSITORY $new:secret || exit 1
            {SHARDGIT} object get other HEAD 2>&1 && exit 1
            {SHARDGIT} repo create stolen 2>&1 && exit 1
            {SHARDGIT} ref list $SHARDGIT_REPOSITORY 2>&1 && exit 1
            exit 0"""
        configure(store, hook(program(programs, "a", text)))
        client = Client()
        call = push(store, Command(b"refs/heads/side", None, tip), client=client, read=read)
        assert await ask(hooks, call) is None, client.text
        assert client.text.startswith("only on the side\n")
        socket = target.read_text().strip()
        assert socket.startswith("unix:")
        assert not Path(socket.removeprefix("unix:")).exists()
        async with hooks.asking(call) as session:
            folder = session.folder
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            async with shardgit.aio.connect(session.server) as client_of_hook:
                repo = client_of_hook.repo("demo")
                assert await repo.read(tip.hex(), "secret") == b"only on the side\n"
                assert await repo.read("main", "f0") == b"0\n"
                with pytest.raises(ShardgitError):
                    await client_of_hook.repo("other").read("HEAD", "x")
        assert not folder.exists()
    finally:
        move(store, "refs/heads/side", tip)


async def test_without_hooks_nothing_is_made(store: Store, hooks: Hooks) -> None:
    read, tip = await store.workers.run(quarantined, store)
    try:
        async with hooks.asking(push(store, MOVED, read=read)) as session:
            assert session.server == ""
            assert list(store.scratch.glob("push-*")) == []
            await session.pre_receive()
            assert await session.update(MOVED) is None
    finally:
        move(store, "refs/heads/side", tip)


async def test_a_store_in_a_deep_folder_still_has_its_socket(
    store: Store, programs: Path, tmp_path: Path
) -> None:
    hooks = equip(store, HookPolicy(programs=programs))
    assert hooks.endpoint is not None
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    read = await store.workers.run(Reading, store, "demo")
    async with hooks.endpoint(read, deep) as server:
        async with shardgit.aio.connect(server) as client:
            assert await client.repo("demo").read("main", "f0") == b"0\n"
        socket = Path(server.removeprefix("unix:"))
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert not socket.parent.exists()


# ---- HTTP ----


@asynccontextmanager
async def listener(answer: web.StreamResponse | float, seen: list[Any]) -> AsyncIterator[str]:
    """Answer every POST the same way, after a while when it is a number."""

    async def take(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, await request.json(), dict(request.headers)))
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return web.Response()
        return answer

    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/{any:.*}", take)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "reason", "shown"),
    [
        (web.Response(), None, ""),
        (web.Response(text="welcome"), None, "welcome\n"),
        (web.json_response({"message": "fine"}), None, "fine\n"),
        (web.json_response([1]), None, "[1]\n"),
        (
            web.json_response({"accepted": False, "message": "freeze"}),
            "pre-receive hook declined",
            "freeze\n",
        ),
        (web.Response(status=403, text="no\n"), "pre-receive hook declined", "no\n"),
        (
            web.Response(status=503),
            "pre-receive hook failed: hook answered with an error (status=503)",
            "",
        ),
        (
            web.Response(status=307, headers={"Location": "/elsewhere"}),
            "pre-receive hook failed: hook answered with an error (status=307)",
            "",
        ),
        (
            web.Response(text="x" * 2_001),
            "pre-receive hook failed: hook's answer is too large (limit_bytes=2000)",
            "",
        ),
        (20.0, "pre-receive hook failed: hook did not end in time (limit_s=0.5)", ""),
    ],
)
async def test_http_answers(
    store: Store, answer: web.StreamResponse | float, reason: str | None, shown: str
) -> None:
    seen: list[Any] = []
    client = Client()
    limit = 0.5 if isinstance(answer, float) else 30.0
    moved = Moved()
    async with listener(answer, seen) as url:
        hooks = equip(store, HookPolicy(targets=(url,)))
        configure(
            store,
            {"kind": "http", "event": "pre_receive", "target": f"{url}hook", "timeout_s": limit},
        )
        call = push(store, MOVED, MADE, GONE, client=client, options=(b"a=b",))
        got = await ask(hooks, call)
    assert got == reason
    assert client.text == shown
    outcome = "accepted" if reason is None else "failed" if "failed" in reason else "refused"
    assert moved("shardgit_hooks_total") == {f"pre_receive {outcome}": 1}
    assert moved("shardgit_hook_seconds_count") == {"pre_receive": 1}
    assert (moved("shardgit_hook_seconds_sum")["pre_receive"] > 0.4) == isinstance(answer, float)
    ((path, body, headers),) = seen
    assert path == "/hook"
    assert headers["X-Shardgit-Event"] == "pre_receive"
    assert "Authorization" not in headers
    assert (body["repository"], body["actor"], body["address"]) == ("demo", "alice", "192.0.2.7")
    assert body["commands"] == [
        {"ref": "refs/heads/main", "old": OLD.hex(), "new": NEW.hex()},
        {"ref": "refs/heads/n\ufffd", "ref_hex": MADE.name.hex(), "old": None, "new": NEW.hex()},
        {"ref": "refs/heads/gone", "old": OLD.hex(), "new": None},
    ]
    assert (body["commands_total"], body["options"]) == (3, ["a=b"])


async def test_http_hooks_go_only_where_the_configuration_says(store: Store) -> None:
    seen: list[Any] = []
    async with listener(0.0, seen) as url:
        base = url.rstrip("/")
        for targets, target, allowed in (
            ((), url, False),
            ((f"{base}/a",), f"{base}/a", True),
            ((f"{base}/a",), f"{base}/ab", False),
            ((f"{base}/a/",), f"{base}/a/b", True),
            ((f"{base}/a/",), f"{base}/b", False),
            ((f"{base}/a/",), f"{base}/a/../b", False),
            ((f"{base}/a/",), f"{base}/a/%2e%2E/b", False),
            ((f"{base}/a/",), f"{base}/a/..%2fb", False),
            ((f"{base}/a/",), f"{base}/a/b?c=/../d", True),
            ((base,), f"{base}@evil.example/", False),
        ):
            hooks = equip(store, HookPolicy(targets=targets))
            configure(store, {"kind": "http", "event": "pre_receive", "target": target})
            before = len(seen)
            reason = await ask(hooks, push(store, MOVED))
            assert (reason is None) == allowed, target
            assert len(seen) - before == allowed
    configure(store, {"kind": "http", "event": "pre_receive", "target": url})
    hooks = equip(store, HookPolicy(targets=(url,)))
    assert "cannot be reached" in str(await ask(hooks, push(store, MOVED)))


def test_logs_show_no_secrets_of_urls() -> None:
    for target, shown in (
        ("https://me:pass@host:1/a/b?token=x@y", "https://host:1/a/b"),
        ("https://host", "https://host"),
    ):
        assert shown_target(Hook(kind="http", event="update", target=target)) == shown
    one = Hook(kind="program", event="update", target="/etc/a@b")
    assert shown_target(one) == "/etc/a@b"


async def test_a_call_carries_a_bounded_number_of_commands(store: Store) -> None:
    seen: list[Any] = []
    many = [Command(b"refs/heads/%d" % number, None, NEW) for number in range(10_005)]
    async with listener(web.Response(), seen) as url:
        hooks = equip(store, HookPolicy(targets=(url,)))
        configure(store, {"kind": "http", "event": "pre_receive", "target": url})
        assert await ask(hooks, push(store, *many)) is None
    ((_, body, _),) = seen
    assert (len(body["commands"]), body["commands_total"]) == (10_000, 10_005)


# ---- gRPC ----


class Judge(hook_pb2_grpc.HookServiceServicer):
    """Writes down what it is asked, and says what it was told to say."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.accepts = True
        self.waits = 0.0

    async def PreReceive(self, request: Any, context: Any) -> Any:
        self.seen.append(request)
        await asyncio.sleep(self.waits)
        return hook_pb2.PreReceiveResponse(accepted=self.accepts, message="judged")

    async def Update(self, request: Any, context: Any) -> Any:
        self.seen.append(request)
        if request.command.ref == b"refs/heads/gone":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        return hook_pb2.UpdateResponse(accepted=self.accepts)


async def test_grpc_hooks(store: Store) -> None:
    judge = Judge()
    server = grpc.aio.server()
    hook_pb2_grpc.add_HookServiceServicer_to_server(judge, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = f"127.0.0.1:{port}"
    try:
        hooks = equip(store, HookPolicy(targets=(f"grpc://{target}",)))
        asked = {"kind": "grpc", "target": target, "timeout_s": 1.0}
        configure(store, {**asked, "event": "pre_receive"}, {**asked, "event": "update"})
        client = Client()
        call = push(store, MOVED, MADE, client=client, options=(b"\xff",))
        async with hooks.asking(call) as session:
            await session.pre_receive()
            assert await session.update(MOVED) is None
            judge.accepts = False
            assert await session.update(MOVED) == "hook declined"
            assert "update hook failed: hook did not answer" in str(await session.update(GONE))
        assert await ask(hooks, call) == "pre-receive hook declined"
        judge.waits = 20.0
        assert "pre-receive hook failed" in str(await ask(hooks, call))
        first, second = judge.seen[:2]
        assert first.push.repository == "demo"
        assert (first.push.actor, first.push.address) == ("alice", "192.0.2.7")
        assert list(first.push.options) == [b"\xff"]
        assert first.commands_total == 2
        assert [each.ref for each in first.commands] == [MOVED.name, MADE.name]
        assert (first.commands[1].old_id, first.commands[1].new_id) == (b"", NEW)
        assert second.command.ref == MOVED.name
        refused = equip(store, HookPolicy(targets=(f"http://{target}",)))
        assert "not allowed" in str(await ask(refused, call))
    finally:
        await server.stop(None)
