"""Names that mean something else somewhere: in paths, in refs, in arguments, in logs, on terminals."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import unicodedata
from typing import TYPE_CHECKING

import pytest
from attacking import Target, target
from served import clean_environment, git, shardgit

from shardgit.client import connect
from shardgit.errors import InvalidRepositoryName, RepositoryMissing, ShardgitError
from shardgit.protocol.pktline import Mark, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop
MARKER = "forged-by-a-client"
ESCAPES = f"\x1b[2J\x9b31m\r\n{MARKER}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("names")
    with target(folder, SHARDGIT_AUDIT_LOG=str(folder / "audit.log")) as made:
        yield made


def proof(token: str, user: str = "x") -> bytes:
    return b"Authorization: Basic " + base64.b64encode(f"{user}:{token}".encode()) + b"\r\n"


def ask(served: Target, path: bytes, *lines: bytes, token: str = "") -> bytes:
    head = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + proof(token or served.reader)
    more = b"".join(line + b"\r\n" for line in lines)
    return served.raw(head + more + b"Connection: close\r\n\r\n")


# ---- repositories

PATHS = [
    b"/team/../secret/vault.git",
    b"/team/%2e%2e/secret/vault.git",
    b"/team/%2e%2e%2fsecret%2fvault.git",
    b"/team/%252e%252e/secret/vault.git",
    b"/team/..%5csecret%5cvault.git",
    b"/team\\..\\secret\\vault.git",
    b"/team/%c0%ae%c0%ae/secret/vault.git",
    b"/team/%e0%80%ae./secret/vault.git",
    b"/team/%ef%bc%8e%ef%bc%8e/secret/vault.git",
    b"/team/app.git%00/../../secret/vault.git",
    b"/secret/vault.git%00.git",
    b"/secret/vault%20.git",
    b"/secret/vault..git",
    b"/secret/vault/.git",
    b"/secret/vault.git.git",
    b"/./secret/vault.git",
    b"/team/app.git/../../secret/vault.git",
    b"/team/app.git;/secret/vault.git",
    b"/team/app.git%3f/../secret/vault.git",
    b"/Secret/Vault.git",
    b"/secret//vault.git",
    b"//secret/vault.git",
    b"/~/secret/vault.git",
    b"/secret/vault",
    b"/secret/vault%0d%0aX-Injected:%20yes.git",
    b"/" + b"a/" * 2_000 + b"x.git",
    b"/%ff%fe.git",
    b"/data/journal/data.mdb",
    b"/../../../../etc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_what_a_token_may(served: Target, path: bytes) -> None:
    absent = ask(served, b"/team/nobody-has-it.git/info/refs?service=git-upload-pack")
    for rest in (b"/info/refs?service=git-upload-pack", b"/clone.bundle", b"/archive/main.tar"):
        answer = ask(served, path + rest)
        assert answer[9:12] in (b"400", b"403", b"404"), answer[:200]
        assert b"refs/" not in answer
        assert b"x-injected" not in answer.partition(b"\r\n\r\n")[0].lower()
        assert len(answer) < len(absent) + len(path) + 1_000


NAMES = [
    "",
    ".",
    "..",
    "/",
    "/x",
    "x/",
    "a//b",
    "a/../b",
    "a/./b",
    ".git",
    "x.git",
    "x.GIT",
    "x.git/y",
    "x.lock",
    "x.",
    "-x",
    "--upload-pack=touch",
    "x y",
    "x\ny",
    "x\0y",
    "x\\y",
    "x:y",
    "x*",
    "x%2fy",
    "CON ",
    "\u0430pp",  # Cyrillic
    "caf\u00e9",
    unicodedata.normalize("NFD", "caf\u00e9"),
    "a\u202eb",
    "a\u200bb",
    "\uff0e\uff0e/x",
    "x" * 201,
    "a/" * 101 + "b",
    "\x1b[31mred",
]


def test_names_that_are_none_are_refused_whoever_asks(served: Target) -> None:
    with connect(served.server.grpc, served.admin) as client:
        before = [each.name for each in client.repositories()]
        for name in NAMES:
            with pytest.raises(InvalidRepositoryName):
                client.create(name)
            for copy in (client.fork, client.rename):
                with pytest.raises(InvalidRepositoryName):
                    copy("team/app", name)
            with pytest.raises((RepositoryMissing, InvalidRepositoryName)):
                client.repository(name)
        assert [each.name for each in client.repositories()] == before


@pytest.mark.parametrize("name", ["../x", "x.git", "a//b", "x\ny", "\u0430pp", "x" * 201])
def test_the_command_line_refuses_them_as_well(served: Target, name: str) -> None:
    done = shardgit("repo", "create", name, "--data", "data", cwd=served.folder)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "\x1b" not in done.stderr


# ---- refs

REFS = [
    b"refs/heads/../../x",
    b"refs/heads/..",
    b"refs/heads/.x",
    b"refs/heads/x.lock",
    b"refs/heads/x/",
    b"refs/heads//x",
    b"refs/heads/x.",
    b"refs/heads/@{0}",
    b"refs/heads/x~1",
    b"refs/heads/x^",
    b"refs/heads/x:y",
    b"refs/heads/x?",
    b"refs/heads/x*",
    b"refs/heads/x[y",
    b"refs/heads/x\\y",
    b"refs/heads/x y",
    b"refs/heads/x\x1b[31m",
    b"refs/heads/x\x7f",
    b"refs/heads/x\ny",
    b"refs/heads/" + b"x" * 1_000,
    b"HEAD",
    b"--upload-pack=touch",
    b"-oProxyCommand=touch",
    b"config",
    b"../../../etc/passwd",
    b"objects/info/alternates",
    b"refs",
    b"refs/",
    b"@",
]


def test_refs_that_are_none_are_refused_and_the_push_is_told(served: Target) -> None:
    tip = git(served.source, "rev-parse", "main~1").encode()
    with connect(served.server.grpc, served.writer) as client:
        before = [ref.name for ref in client.repo("team/app").refs()]
    for name in REFS:
        line = b"0" * 40 + b" " + tip + b" " + name + b"\0report-status object-format=sha1"
        body = encode([line, Mark.FLUSH]) + b"PACK\0\0\0\2\0\0\0\0"
        body += bytes.fromhex("029d08823bd8a8eab510ad6ac75c823cfd3ed31e")
        head = b"POST /team/app.git/git-receive-pack HTTP/1.1\r\nHost: x\r\n" + proof(served.writer)
        head += b"Content-Type: application/x-git-receive-pack-request\r\nConnection: close\r\n"
        answer = served.raw(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert b"ng " in answer or b"ERR " in answer or b"unpack " in answer, (name, answer)
        assert b"\nok " not in answer and b"000eok" not in answer, (name, answer)
    with connect(served.server.grpc, served.writer) as client:
        assert [ref.name for ref in client.repo("team/app").refs()] == before
        for name in set(REFS) - {b"HEAD"}:  # which there is, and which nobody pushes to
            with pytest.raises(ShardgitError):
                client.repo("team/app").ref(name.decode("latin-1"))


def test_a_ref_that_looks_like_an_option_is_a_name_and_no_option(served: Target) -> None:
    """git allows it behind refs/heads/: what reads it as an argument must not take it for one."""
    options = ("--output=x", "-x", "--upload-pack=touch x".replace(" ", "_"))
    work = served.folder / "options"
    assert served.clone("options").returncode == 0
    for name in options:
        git(work, "push", "-q", "origin", f"HEAD:refs/heads/{name}")
        done = shardgit(
            "ref", "log", "team/app", f"refs/heads/{name}", "--data", "data", cwd=served.folder
        )
        assert done.returncode == 0, done.stderr
        assert f"refs/heads/{name}" in done.stdout
        answer = ask(
            served, b"/team/app.git/archive/" + name.replace("=", "%3d").encode() + b".tar"
        )
        assert answer[9:12] in (b"200", b"400", b"404")
    assert not list(served.folder.glob("x"))
    git(work, "push", "-q", "origin", *(f":refs/heads/{name}" for name in options))


# ---- logs and terminals


def test_what_clients_say_makes_no_lines_of_logs(served: Target) -> None:
    quoted = "%1b%5b2J%0d%0a" + MARKER + "%22,%22x%22:%22"
    breakout = f'"}}\n{{"event":"{MARKER}"'
    for line in (
        f"User-Agent: {MARKER}\x1b[2J",
        f"X-Request-Id: {MARKER}{'x' * 300}",
        f'X-Request-Id: "}},{{"event":"{MARKER}',
        f"X-Shardgit-Actor: {MARKER}\t{'y' * 3_000}",
        f"X-Shardgit-Address: {MARKER}",
        f"X-Forwarded-For: {MARKER}",
        f"Referer: {MARKER}",
        f"Git-Protocol: version=2:{MARKER}",
    ):
        ask(
            served,
            b"/team/" + quoted.encode() + b".git/info/refs?service=git-" + quoted.encode(),
            line.encode(),
        )
    ask(served, b"/secret/vault.git/info/refs", token=breakout)
    with connect(served.server.grpc, served.writer) as client:
        for name in (breakout, ESCAPES, "team/" + breakout):
            with pytest.raises(ShardgitError):
                client.create(name)
    environment = {
        "GIT_COMMITTER_NAME": ESCAPES.replace("\r\n", " "),
        "GIT_AUTHOR_NAME": "\x1b[31m",
    }
    work = served.folder / "logs"
    assert served.clone("logs").returncode == 0
    done = served.git(
        "-C", "logs", "commit", "-q", "--allow-empty", "-m", ESCAPES, environment=environment
    )
    assert done.returncode == 0, done.stderr
    git(work, "push", "-q", "origin", "HEAD:refs/heads/\u009b31m")
    for file in (served.server.errors, served.folder / "audit.log"):
        text = file.read_text()
        for row in text.splitlines():
            entry = json.loads(row)
            assert MARKER not in entry
            assert not str(entry.get("event", "")).startswith(MARKER)
            assert len(row) < 8_000
        assert not any(unicodedata.category(c) == "Cc" and c != "\n" for c in text)
    git(work, "push", "-q", "origin", ":refs/heads/\u009b31m")


def test_a_terminal_is_shown_no_controls(served: Target, tmp_path: Path) -> None:
    assert served.clone("terminal").returncode == 0
    name = "refs/heads/\u009b31m\u202eb"
    git(served.folder / "terminal", "push", "-q", "origin", f"HEAD:{name}")
    for words in ("ref list team/app", "ref log team/app"):
        command = f"{sys.executable} -m shardgit {words} --data data"
        done = subprocess.run(
            ["script", "-qec", command, str(tmp_path / "typescript")],
            cwd=served.folder,
            env={**clean_environment(), "PYTHONWARNINGS": "ignore", "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        text = done.stdout.decode("utf-8", "replace")
        assert "refs/heads/" in text, text
        assert not {c for c in text if unicodedata.category(c) in ("Cc", "Cf")} - {"\r", "\n"}, text
        plain = shardgit(*words.split(), "--data", "data", cwd=served.folder)
        assert name in plain.stdout  # programs get what stands there
    git(served.folder / "terminal", "push", "-q", "origin", f":{name}")
