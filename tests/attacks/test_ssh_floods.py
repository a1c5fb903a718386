"""Clients of the SSH port that say nothing, too much, or open all there is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from typing import TYPE_CHECKING

import asyncssh
import pytest
from attacking import Target, target
from served import shardgit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("ssh")
    with target(folder) as made:
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(folder / "key"))
        key.write_public_key(str(folder / "key.pub"))
        words = ("key", "add", "key.pub", "--name", "ci", "--read", "team/**", "--data", "data")
        done = shardgit(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
        yield made


@contextlib.asynccontextmanager
async def logged_in(served: Target) -> AsyncIterator[asyncssh.SSHClientConnection]:
    host, port = served.address("ssh")
    keys = [str(served.folder / "key")]
    async with asyncssh.connect(
        host, port, known_hosts=None, client_keys=keys, username="git", agent_path=None, config=None
    ) as connection:
        yield connection


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"x" * (1 << 20),
        b"banner\r\n" * 100_000,
        b"SSH-2.0-" + b"x" * (1 << 20) + b"\r\n",
        b"SSH-1.5-x\r\n",
        b"SSH-2.0-x\r\n" + struct.pack(">IB", 0xFFFFFFFF, 4) + bytes(1 << 20),
        b"SSH-2.0-x\r\n" + struct.pack(">IB", 0, 0) + bytes(1 << 16),
        b"SSH-2.0-x\r\n" + (struct.pack(">IB", 12, 4) + b"\x02" + bytes(10)) * 50_000,
        b"SSH-2.0-x\r\n" + struct.pack(">IBB", 30_000, 4, 20) + os.urandom(29_998),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_comes_before_a_login_is_bounded(served: Target, said: bytes) -> None:
    with served.unharmed(), contextlib.ExitStack() as held:
        for _ in range(30):
            client = held.enter_context(served.connect("ssh"))
            client.settimeout(2)
            with contextlib.suppress(OSError):
                client.sendall(said)
    assert not {"request_failed"} & set(served.server.events())


async def test_what_a_client_says_of_its_environment_is_not_kept(served: Target) -> None:
    """64 MiB of it in one session, which then asks what it came for."""
    before = served.memory()
    async with logged_in(served) as connection:
        environment = {f"V{number}": "x" * 30_000 for number in range(2_200)}
        environment["GIT_PROTOCOL"] = "version=2"
        command = "git-upload-pack '/team/app.git'"
        async with connection.create_process(command, env=environment, encoding=None) as process:
            assert b"version 2" in await process.stdout.readline()
            assert served.memory() - before < 48 << 20
            process.stdin.write(b"0000")
            process.stdin.write_eof()
            assert (await process.wait()).exit_status == 0


async def test_a_connection_has_so_many_sessions_and_no_more(served: Target) -> None:
    async with logged_in(served) as connection, contextlib.AsyncExitStack() as held:
        opened = 0
        with pytest.raises(asyncssh.ChannelOpenError):
            for _ in range(100):
                command = "git-upload-pack '/team/app.git'"
                process = await connection.create_process(command, encoding=None)
                held.callback(process.close)
                opened += 1
        assert 10 <= opened <= 32


@pytest.mark.parametrize(
    "command",
    [
        "git-upload-pack '/team/app.git' --upload-pack=touch",
        "git-upload-pack --strict '/team/app.git'",
        "git-upload-pack '--upload-pack=touch'",
        "git-upload-pack '/team/app.git'; touch x",
        "git-upload-pack '/team/app.git' && touch x",
        "git-upload-pack '$(touch x)'",
        "git-upload-pack '`touch x`'",
        'git-upload-pack "/team/app.git\nsecret/vault.git"',
        "git-upload-pack '/team/../secret/vault.git'",
        "git-upload-pack '../secret/vault.git'",
        "git-upload-pack '/secret/vault.git'",
        "git-upload-pack '-oProxyCommand=touch x'",
        "git-receive-pack '/team/app.git'",
        "git-shell -c \"git-upload-pack '/team/app.git'\"",
        "sh -c 'git-upload-pack /team/app.git'",
        "/bin/sh",
        "scp -f /etc/passwd",
        "git-lfs-authenticate secret/vault.git download",
        "git-lfs-authenticate team/app.git upload",
        "git-upload-pack '" + "x" * 9_000 + "'",
        "git-upload-pack '/team/app.git",
        "",
        "\udcff\udcfe",
    ],
)
async def test_commands_run_nothing_but_what_the_key_may(served: Target, command: str) -> None:
    raw = command.encode("utf-8", "surrogateescape")
    async with logged_in(served) as connection:
        try:
            done = await connection.run(raw, encoding=None, stdin=asyncssh.DEVNULL)
        except asyncssh.ChannelOpenError:  # no command at all
            return
    said = b"".join(each for each in (done.stdout, done.stderr) if isinstance(each, bytes))
    assert done.exit_status != 0, said
    assert b"Traceback" not in said
    assert b"refs/" not in said
    assert len(said) < 2_000
    assert not (served.folder / "x").exists()


@pytest.mark.parametrize("kind", ["direct", "remote", "subsystem", "agent"])
async def test_nothing_else_is_opened(served: Target, kind: str) -> None:
    async with logged_in(served) as connection:
        with pytest.raises((asyncssh.Error, asyncssh.ChannelListenError, OSError)):
            if kind == "direct":
                await connection.open_connection("169.254.169.254", 80)
            elif kind == "remote":
                await connection.forward_remote_port("", 0, "127.0.0.1", 1)
            elif kind == "subsystem":
                await connection.create_process(subsystem="sftp")
            else:
                await connection.open_unix_connection("/etc/passwd")


async def test_a_client_that_leaves_its_answer_is_cut_off_from_nothing_else(served: Target) -> None:
    with served.unharmed():
        async with contextlib.AsyncExitStack() as held:
            for _ in range(10):
                connection = await held.enter_async_context(logged_in(served))
                command = "git-upload-pack '/team/app.git'"
                for _ in range(3):
                    process = await connection.create_process(command, encoding=None)
                    held.callback(process.close)
            await asyncio.sleep(0)
