"""What a token is not for, asked for in every way that there is: by name, id, want, path, file, range and ticket.

Forks of one pool, whose objects lie together, are tested in tests/interop/test_fork_leaks.py and
test_fork_leak_files.py; every route and method without a token in tests/interop/test_auth.py.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import inspect
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attacking import Target, target
from served import git

import shardgit
from shardgit.client import connect
from shardgit.errors import RepositoryMissing, ShardgitError
from shardgit.oid import ObjectId
from shardgit.protocol.pktline import Mark, encode
from shardgit.service import doorkeeper, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.interop
SECRET = "a secret of sixteen bytes"
LFS = "application/vnd.git-lfs+json"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("boundaries")
    (folder / "secret").write_text(SECRET + "\n")
    with target(folder, SHARDGIT_AUTH_SECRET_FILE=str(folder / "secret")) as made:
        with connect(made.server.grpc, made.admin) as client:
            for name in ("team/app", "secret/vault"):
                client.repo(name).update_settings({"fetch.packfile_uris": True})
        yield made


def ask(
    served: Target, path: str, token: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    proof = base64.b64encode(f"x:{token}".encode()).decode()
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    request = urllib.request.Request(
        f"http://{served.server.http}{path}", body, {"Authorization": f"Basic {proof}", **named}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


def secrets(served: Target) -> dict[str, str]:
    """Return the ids of what only the vault has."""
    words = {"commit": "main", "tree": "main^{tree}", "blob": "main:secret.txt"}
    return {kind: git(served.source, "rev-parse", word) for kind, word in words.items()}


def test_its_objects_are_not_in_another_repository_either(served: Target) -> None:
    kind = "application/x-git-upload-pack-request"
    for name, oid in secrets(served).items():
        for version, body in (
            (
                "2",
                encode(
                    [b"command=fetch", Mark.DELIM, b"want " + oid.encode(), b"done", Mark.FLUSH]
                ),
            ),
            (
                "2",
                encode(
                    [
                        b"command=object-info",
                        Mark.DELIM,
                        b"size",
                        b"oid " + oid.encode(),
                        Mark.FLUSH,
                    ]
                ),
            ),
            ("0", encode([b"want " + oid.encode() + b" ofs-delta", Mark.FLUSH, b"done"])),
        ):
            absent = body.replace(oid.encode(), b"1" * 40)
            given = {"Content_Type": kind, "Git_Protocol": f"version={version}"}
            status, answer = ask(
                served, "/team/app.git/git-upload-pack", served.reader, body, **given
            )
            assert b"PACK" not in answer
            status_2, answer_2 = ask(
                served, "/team/app.git/git-upload-pack", served.reader, absent, **given
            )
            assert (status, answer.replace(oid.encode(), b"1" * 40)) == (status_2, answer_2), name
        with connect(served.server.grpc, served.reader) as client:
            repo = client.repo("team/app")
            raw = ObjectId(bytes.fromhex(oid))
            assert list(repo.objects([raw])) == [None]
            for revision in (oid, oid[:8], f"{oid}:secret.txt"):
                with pytest.raises(ShardgitError):
                    repo.read(revision, "secret.txt")


def test_whoever_may_not_read_it_is_told_that_nobody_has_it(served: Target) -> None:
    lfs = json.dumps({"operation": "download", "objects": [{"oid": "a" * 64, "size": 1}]}).encode()
    tip = secrets(served)["commit"]
    ways: list[tuple[str, bytes | None, dict[str, str]]] = [
        ("/info/refs?service=git-upload-pack", None, {}),
        ("/info/refs?service=git-receive-pack", None, {}),
        ("/clone.bundle", None, {"Range": "bytes=0-3"}),
        (f"/packs/{'a' * 48}-{'b' * 40}.pack", None, {}),
        ("/archive/main.tar.gz", None, {}),
        (f"/archive/{tip}.zip", None, {}),
        ("/info/lfs/objects/batch", lfs, {"Content_Type": LFS, "Accept": LFS}),
        (f"/info/lfs/objects/{'a' * 64}", None, {}),
        ("/info/lfs/locks", None, {"Accept": LFS}),
    ]
    for path, body, headers in ways:
        status, answer = ask(served, f"/secret/vault.git{path}", served.writer, body, **headers)
        plain, nobody = ask(served, f"/secret/nobody.git{path}", served.writer, body, **headers)
        told, expected = (re.sub(rb'"request_id":"[^"]*"', b"", each) for each in (answer, nobody))
        assert (status, told.replace(b"vault", b"nobody")) == (plain, expected), path
        assert status in (403, 404), (path, status)
    with connect(served.server.grpc, served.writer) as client:
        for call in (
            lambda: client.repository("secret/vault"),
            lambda: client.fork("secret/vault", "team/stolen"),
            lambda: client.rename("secret/vault", "team/stolen"),
            lambda: client.delete("secret/vault"),
            lambda: list(client.repo("secret/vault").refs()),
        ):
            with pytest.raises(RepositoryMissing):
                call()
        assert [each.name for each in client.repositories()] == ["team/app"]


def signature(at: float, secret: str = SECRET, over: str | None = None) -> str:
    text = str(int(at))
    digest = hmac.new(secret.encode(), (over or text).encode(), hashlib.sha256).hexdigest()
    return f"v2.{digest}.{text}"


def test_signatures_of_another_time_secret_or_form_are_worth_nothing(served: Target) -> None:
    path = "/secret/vault.git/info/refs?service=git-upload-pack"
    now = time.time()
    assert ask(served, path, signature(now))[0] == 200
    digest, stamp = signature(now).split(".")[1:]
    wrong = [
        signature(now - 120),
        signature(now + 120),
        signature(now - 120, over=str(int(now))),  # the time altered, the rest replayed
        f"v2.{digest}.{int(stamp) + 1}",
        f"v2.{digest}.+{stamp}",
        f"v2.{digest}.0{stamp}",
        f"v2.{digest}. {stamp}",
        f"v2.{digest}.{stamp}.0",
        f"v2.{digest}.{int(stamp):x}",
        f"v2.{digest.upper()}.{stamp}",
        f"v2.{digest[:-1]}.{stamp}",
        f"v2..{stamp}",
        f"v1.{digest}.{stamp}",
        f"v2.{digest}.{'9' * 400}",
        signature(now, secret=""),
        signature(now, secret=SECRET + "\n"),
    ]
    for each in wrong[:18]:
        assert ask(served, path, each)[0] in (401, 429), each


def test_no_secret_is_compared_byte_by_byte() -> None:
    """Time tells how far two texts agree: what is shown is hashed and looked up, or compared in a time of its own."""
    for module, known in ((doorkeeper, "compare_digest"), (tokens, "compare_digest")):
        source = inspect.getsource(module)
        assert known in source or "sha256" in source
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Compare):
                continue
            text = ast.unparse(node)
            equal = any(isinstance(each, ast.Eq | ast.NotEq) for each in node.ops)
            secret = any(word in text for word in ("digest", "signature", "secret", "hmac", "hash"))
            assert not (equal and secret), text
    folder = Path(shardgit.__file__).parent
    kept = (folder / "service" / "tokens.py").read_text()
    assert "sha256" in kept


def test_guesses_cost_their_address_and_nobody_who_knows(served: Target) -> None:
    path = "/team/app.git/info/refs?service=git-upload-pack"
    with served.unharmed():
        seen = {ask(served, path, f"sgt_{number:016x}_{'a' * 43}")[0] for number in range(60)}
    assert seen <= {401, 429}
    assert 429 in seen
    assert ask(served, path, served.reader)[0] == 200
