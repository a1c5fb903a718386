"""Servers that want to know who asks: git over HTTP and SSH, gRPC, tokens, keys, certificates."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from certificates import certificates
from google.protobuf import message_factory
from served import Server, clean_environment, serving, shardgit, small_repository
from waiting import until

from shardgit.calling import Calling
from shardgit.client import connect
from shardgit.errors import (
    Conflict,
    PermissionRefused,
    RateLimited,
    RepositoryMissing,
    Unauthenticated,
    Unavailable,
)
from shardgit.node import create_store, open_store
from shardgit.service.access import Rights
from shardgit.service.importing import import_repository
from shardgit.service.repositories import Repositories
from shardgit.v1 import (
    commit_pb2,
    object_pb2,
    pack_pb2,
    ref_pb2,
    repository_pb2,
    shard_pb2,
    transport_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.interop
SECRET = "a secret that front ends share"
NAMES = ("other", "team/app", "team/lib")


class Home:
    """A store with three repositories, and tokens for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        create_store(self.data)
        self.source = small_repository(folder / "source")
        with open_store(self.data) as store:
            for name in NAMES:
                import_repository(store, name, str(self.source))
        (folder / "secret").write_text(SECRET + "\n")
        self.reader = self.token("--read", "team/**", "--name", "reader")
        self.writer = self.token("--write", "team/app", "--expires", "1h", "--name", "writer")
        self.admin = self.token("--admin", "--name", "boss")
        self._number = 0

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return shardgit(*words, cwd=self.folder, environment=environment)

    def token(self, *words: str) -> str:
        made = self.command("token", "create", *words, "--data", str(self.data))
        assert made.returncode == 0, made.stderr
        return made.stdout.splitlines()[-1]

    def git(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(self.folder), *words],
            env={
                **clean_environment(),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # our helpers
                "GIT_TERMINAL_PROMPT": "0",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def fresh(self, name: str) -> str:
        self._number += 1
        return f"{name}-{self._number}"

    def clone(self, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.git("clone", "-q", url, self.fresh("clone"), **environment)

    def push(self, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
        branch = self.fresh("branch")
        return self.git("-C", "source", "push", "-q", url, f"main:{branch}", **environment)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("auth"))


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[Server]:
    wants = {"SHARDGIT_AUTH": "required", "SHARDGIT_AUTH_SECRET_FILE": str(home.folder / "secret")}
    with serving(home.data, "--workers", "1", environment=wants) as running:
        yield running


def url(server: Server, name: str, token: str = "", scheme: str = "http") -> str:
    return f"{scheme}://{f'x:{token}@' if token else ''}{server.http}/{name}.git"


def ask(
    address: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(address, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, dict(refused.headers), refused.read()


# ---- tokens over HTTP


def test_git_is_asked_for_a_token_and_comes_in_with_it(home: Home, server: Server) -> None:
    without = home.clone(url(server, "team/app"))
    assert without.returncode != 0
    assert "could not read Username" in without.stderr
    for token in (home.reader, home.writer, home.admin):
        assert home.clone(url(server, "team/app", token)).returncode == 0
    wrong = home.clone(
        url(server, "team/app", home.reader[:-1] + ("a" if home.reader[-1] != "a" else "b"))
    )
    assert "Authentication failed" in wrong.stderr


def test_a_credential_helper_does_as_well(home: Home, server: Server) -> None:
    helper = f"!f() {{ echo username=x; echo password={home.reader}; }}; f"
    done = home.git(
        "-c",
        f"credential.helper={helper}",
        "clone",
        "-q",
        url(server, "team/lib"),
        home.fresh("clone"),
    )
    assert done.returncode == 0, done.stderr


def test_what_may_be_read_may_not_be_written_and_the_rest_is_not_there(
    home: Home, server: Server
) -> None:
    refused = home.push(url(server, "team/app", home.reader))
    assert refused.returncode != 0
    assert "error: 403" in refused.stderr
    assert home.push(url(server, "team/app", home.writer)).returncode == 0
    assert "not found" in home.push(url(server, "team/lib", home.writer)).stderr
    for token in (home.reader, home.writer):
        for name in ("other", "nowhere"):
            gone = home.clone(url(server, name, token))
            assert f"repository '{url(server, name)}/' not found" in gone.stderr
            assert home.push(url(server, name, token)).returncode != 0
    assert home.push(url(server, "other", home.admin)).returncode == 0


@pytest.mark.parametrize(
    "path",
    [
        "info/refs?service=git-upload-pack",
        "info/refs?service=git-receive-pack",
        "info/refs",
        "clone.bundle",
        "info/lfs/locks",
        "info/lfs/objects/" + "0" * 64,
    ],
)
def test_no_way_over_http_leads_past_the_door(home: Home, server: Server, path: str) -> None:
    for name in ("other", "nowhere"):
        status, headers, _ = ask(f"http://{server.http}/{name}.git/{path}")
        assert status == 401 or (path == "info/refs" and status == 403), status
        if status == 401:
            assert headers["WWW-Authenticate"].startswith("Basic ")
        bearer = {"Authorization": f"Bearer {home.reader}"}
        assert ask(f"http://{server.http}/{name}.git/{path}", bearer)[0] in (403, 404)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("git-upload-pack", "application/x-git-upload-pack-request"),
        ("git-receive-pack", "application/x-git-receive-pack-request"),
        ("git-upload-archive", "application/x-git-upload-archive-request"),
        ("info/lfs/objects/batch", "application/vnd.git-lfs+json"),
        ("info/lfs/locks", "application/vnd.git-lfs+json"),
        ("info/lfs/locks/verify", "application/vnd.git-lfs+json"),
    ],
)
def test_no_post_leads_past_it_either(home: Home, server: Server, path: str, kind: str) -> None:
    body = b'{"operation": "upload", "objects": [], "path": "x"}' if "lfs" in path else b"0000"
    headers = {"Content-Type": kind, "Accept": "application/vnd.git-lfs+json"}
    address = f"http://{server.http}/other.git/{path}"
    assert ask(address, headers, body)[0] == 401
    headers["Authorization"] = f"Bearer {home.writer}"
    assert ask(address, headers, body)[0] == 404
    headers["Authorization"] = f"Bearer {home.reader}"
    status = ask(f"http://{server.http}/team/app.git/{path}", headers, body)[0]
    reads = path in ("git-upload-pack", "git-upload-archive")
    assert status == (200 if reads else 403)


def test_a_token_that_is_revoked_or_ended_lets_nobody_in(home: Home, server: Server) -> None:
    token = home.token("--read", "**", "--name", "short")
    assert home.clone(url(server, "other", token)).returncode == 0
    gone = home.command("token", "revoke", "short", "--data", str(home.data))
    assert "lets nobody in any more" in gone.stdout
    assert "Authentication failed" in home.clone(url(server, "other", token)).stderr
    ends = home.token("--read", "**", "--expires", "1s")
    time.sleep(1.1)
    assert "Authentication failed" in home.clone(url(server, "other", ends)).stderr
    listed = home.command("token", "list", "--data", str(home.data), "--json")
    assert ends.split("_", 2)[2] not in listed.stdout
    assert {"reader", "writer", "boss"} <= {
        one["name"] for one in json.loads(listed.stdout)["tokens"]
    }


def test_front_ends_sign(home: Home, server: Server) -> None:
    def signed(at: float) -> str:
        text = str(int(at))
        return f"v2.{hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()}.{text}"

    now = time.time()
    assert home.push(url(server, "other", signed(now))).returncode == 0
    assert "Authentication failed" in home.clone(url(server, "other", signed(now - 60))).stderr
    header = "http.extraHeader=X-Shardgit-Actor: ada"
    branch = home.fresh("branch")
    pushed = home.git(
        "-c",
        header,
        "-C",
        "source",
        "push",
        "-q",
        url(server, "other", signed(time.time())),
        f"main:{branch}",
    )
    assert pushed.returncode == 0, pushed.stderr
    with connect(server.grpc, home.admin) as client:
        newest = next(iter(client.repo("other").ref_log(limit=1)))
    assert newest.actor == "ada"


def test_guesses_are_told_to_wait(home: Home) -> None:
    seen, headers = [], dict[str, str]()
    wants = {"SHARDGIT_AUTH": "required"}
    with serving(home.data, "--workers", "1", environment=wants) as server:
        wrong = {"Authorization": f"Bearer sgt_{'0' * 16}_{'a' * 43}"}
        address = f"http://{server.http}/other.git/info/refs?service=git-upload-pack"
        for _ in range(25):
            status, headers, _ = ask(address, wrong)
            seen.append(status)
        assert seen == [401] * 20 + [429] * 5
        assert int(headers["Retry-After"]) > 0
        with connect(server.grpc, "sgt_wrong") as client, pytest.raises(RateLimited):
            client.repository("other")
        assert home.clone(url(server, "team/app", home.reader)).returncode == 0


# ---- gRPC


def test_grpc_takes_tokens_and_shows_each_what_it_may_see(home: Home, server: Server) -> None:
    with connect(server.grpc) as nobody:
        for call in (
            lambda: list(nobody.repositories()),
            lambda: nobody.repository("other"),
            lambda: nobody.repository("nowhere"),
            nobody.shards,
        ):
            with pytest.raises(Unauthenticated):
                call()
    with connect(server.grpc, "sgt_wrong") as wrong, pytest.raises(Unauthenticated):
        wrong.repository("other")
    with connect(server.grpc, home.reader) as reader:
        assert [one.name for one in reader.repositories()] == ["team/app", "team/lib"]
        assert reader.repo("team/app").read("main", "README.md")
        for name in ("other", "nowhere"):
            with pytest.raises(RepositoryMissing):
                reader.repository(name)
            with pytest.raises(RepositoryMissing):
                reader.repo(name).read("main", "README.md")
        for refused in (
            lambda: reader.create("team/new"),
            lambda: reader.delete("team/app"),
            lambda: reader.rename("team/app", "mine"),
            lambda: reader.fork("team/app", "team/fork"),
            lambda: reader.repo("team/app").update_ref("refs/heads/x", bytes(20)),
            reader.shards,
        ):
            with pytest.raises(PermissionRefused):
                refused()
    with connect(server.grpc, home.admin) as boss:
        assert {one.name for one in boss.repositories()} >= set(NAMES)
        assert boss.shards()
    every = home.token("--write", "**")
    with connect(server.grpc, every) as writer:
        writer.create("mine")
        writer.rename("mine", "mine-2")
        writer.fork("team/app", "mine-3")
        writer.delete("mine-3")
        writer.delete("mine-2")
        with pytest.raises(PermissionRefused):
            writer.shards()


def every_method() -> list[tuple[str, Any]]:
    """Return all methods of our services but those between nodes and to hooks."""
    modules = (object_pb2, repository_pb2, ref_pb2, commit_pb2, pack_pb2, shard_pb2, transport_pb2)
    return [
        (f"/{service.full_name}/{method.name}", method)
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def code_of(server: Server, path: str, method: Any, token: str, repository: str) -> str:
    """Call a method with nothing but a repository in its request; return how it ended."""
    request: Any = message_factory.GetMessageClass(method.input_type)()
    inner = request.header if "header" in method.input_type.fields_by_name else request
    for field in ("repository", "name", "source"):
        found = inner.DESCRIPTOR.fields_by_name.get(field)
        if found is not None and found.type == found.TYPE_STRING:
            setattr(inner, field, repository)
    if "header" in method.input_type.fields_by_name:
        request.header.SetInParent()
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(server.grpc) as channel:
        kinds = {
            (0, 0): "unary_unary",
            (0, 1): "unary_stream",
            (1, 0): "stream_unary",
            (1, 1): "stream_stream",
        }
        kind = kinds[int(method.client_streaming), int(method.server_streaming)]
        call = getattr(channel, kind)(path, request_serializer=lambda one: one.SerializeToString())
        given = iter([request]) if method.client_streaming else request
        try:
            answer = call(given, metadata=metadata, timeout=20)
            if method.server_streaming:
                for _ in answer:
                    pass
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_no_method_of_grpc_leads_past_the_door(home: Home, server: Server) -> None:
    methods = every_method()
    assert len(methods) > 40
    for path, method in methods:
        assert code_of(server, path, method, "", "other") == "UNAUTHENTICATED", path
    for path, method in methods:
        code = code_of(server, path, method, home.reader, "other")
        hidden = code_of(server, path, method, home.reader, "nowhere")
        assert code == hidden, path  # nothing tells a repository from none
        if path.endswith(("/ListRepositories", "/GetMode")):  # which have no repository
            assert code == "OK"
        else:
            assert code in {"NOT_FOUND", "PERMISSION_DENIED"}, (path, code)


def test_a_watch_ends_with_the_right_to_read(home: Home, server: Server) -> None:
    with connect(server.grpc, home.admin) as boss:
        boss.fork("team/app", "team/watched")
        for way in ("revoked", "renamed"):
            token = home.token("--read", "team/**", "--name", way)
            with connect(server.grpc, token) as client:
                watch = client.repo("team/watched").watch_refs(heartbeats=True)
                next(watch)
                if way == "revoked":
                    home.command("token", "revoke", way, "--data", str(home.data))
                else:
                    boss.rename("team/watched", "secret")
                name = "team/watched" if way == "revoked" else "secret"
                repo = boss.repo(name)
                repo.update_ref(f"refs/heads/{way}", repo.ref("refs/heads/main").target)
                wanted = Unauthenticated if way == "revoked" else RepositoryMissing
                with pytest.raises(wanted):
                    for seen in watch:
                        assert not seen.sequence, "it saw what it may not"
        boss.delete("secret")


def test_pages_of_a_list_have_no_names_but_those_that_may_be_read(home: Home) -> None:
    with open_store(home.data) as store:
        repositories = Repositories(store)
        for number in range(30):
            for owner in ("a", "b", "c"):
                repositories.create(f"pages/{owner}/{number:02}")
        rights = Rights(read=("pages/b/**", "pages/[c]/2*", "pages/b/01"), write=("pages/b/0?",))
        wanted = [f"pages/b/{n:02}" for n in range(30)] + [f"pages/c/{n}" for n in range(20, 30)]
        for limit in (1, 7, 100):
            found, after = [], ""
            while True:
                some, after = repositories.page(rights, prefix="", after=after, limit=limit)
                found += [one.name for one in some]
                assert not after or after == found[-1]
                if not after:
                    break
            assert found == wanted
        some, _ = repositories.page(rights, prefix="pages/c/2", after="pages/c/25", limit=100)
        assert [one.name for one in some] == [f"pages/c/{n}" for n in range(26, 30)]
        for owner in ("a", "b", "c"):
            for number in range(30):
                repositories.delete(f"pages/{owner}/{number:02}")


def test_who_writes_is_named_in_the_log(home: Home, server: Server) -> None:
    with connect(server.grpc, home.writer) as client:
        repo = client.repo("team/app")
        repo.update_ref("refs/heads/named", repo.ref("refs/heads/main").target)
        newest = next(iter(repo.ref_log(limit=1)))
    assert (newest.actor, newest.address) == ("writer", "127.0.0.1")


def test_the_command_line_takes_a_token_from_the_environment(home: Home, server: Server) -> None:
    words = ("repo", "list", "--server", server.grpc)
    refused = home.command(*words)
    assert refused.returncode == 1
    assert refused.stderr == "shardgit: authentication is required\n"
    assert "team/app" in home.command(*words, SHARDGIT_TOKEN=home.reader).stdout
    assert "other" not in home.command(*words, SHARDGIT_TOKEN=home.reader).stdout


def test_git_comes_in_over_grpc(home: Home, server: Server) -> None:
    remote = f"shardgit://{server.grpc}/team/app"
    refused = home.clone(
        remote, SHARDGIT_TOKEN=home.reader
    )  # which is for another server, for all one knows
    assert refused.returncode != 0
    assert "authentication is required" in refused.stderr
    ours = {"SHARDGIT_SERVER": server.grpc}
    assert home.clone(remote, SHARDGIT_TOKEN=home.reader, **ours).returncode == 0
    assert home.push(remote, SHARDGIT_TOKEN=home.reader, **ours).returncode != 0
    assert home.push(remote, SHARDGIT_TOKEN=home.writer, **ours).returncode == 0
    assert home.clone(remote, SHARDGIT_TOKEN="sgt_wrong", **ours).returncode != 0
    inside = remote.replace("://", f"://x:{home.reader}@")
    assert home.clone(inside).returncode == 0
    assert home.clone(inside, SHARDGIT_TOKEN="sgt_wrong").returncode == 0


def test_reflection_and_health_need_no_token(server: Server) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(server.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


# ---- SSH


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")
def test_keys_may_what_their_rows_say_and_go_on_over_http(home: Home, server: Server) -> None:
    for name in ("stranger", "ada"):
        keygen = [
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            name,
            "-f",
            str(home.folder / name),
        ]
        subprocess.run(keygen, check=True)

    def words(key: str) -> str:
        options = (
            "StrictHostKeyChecking=no",
            f"UserKnownHostsFile={home.folder}/hosts",
            "BatchMode=yes",
        )
        chosen = " ".join(f"-o {one}" for one in (*options, "IdentitiesOnly=yes", "LogLevel=ERROR"))
        return f"ssh -F /dev/null {chosen} -i {home.folder / key}"

    def remote(name: str) -> str:
        return f"ssh://git@{server.ssh}/{name}.git"

    assert home.clone(remote("other"), GIT_SSH_COMMAND=words("stranger")).returncode != 0
    added = home.command(
        "key",
        "add",
        "ada.pub",
        "--read",
        "team/**",
        "--write",
        "team/app",
        "--data",
        str(home.data),
    )
    assert added.returncode == 0, added.stderr
    ada = {"GIT_SSH_COMMAND": words("ada")}
    assert home.clone(remote("team/lib"), **ada).returncode == 0
    assert home.push(remote("team/app"), **ada).returncode == 0
    refused = home.push(remote("team/lib"), **ada)
    assert "not allowed" in refused.stderr
    assert "does not exist" in home.clone(remote("other"), **ada).stderr
    master = (
        words("ada") + f" -o ControlMaster=auto -o ControlPersist=30 -o ControlPath={home.folder}/c"
    )
    kept = {"GIT_SSH_COMMAND": master}
    assert home.clone(remote("team/lib"), **kept).returncode == 0
    host, port = server.ssh.split(":")
    told = subprocess.run(
        [
            *words("ada").split(),
            "-p",
            port,
            f"git@{host}",
            "git-lfs-authenticate team/app.git upload",
        ],
        capture_output=True,
        check=True,
    ).stdout
    answer = json.loads(told)
    assert answer["expires_in"] > 60
    body = json.dumps({"operation": "upload", "objects": [{"oid": "0" * 64, "size": 3}]}).encode()
    headers = {
        **answer["header"],
        "Content-Type": "application/vnd.git-lfs+json",
        "Accept": "application/vnd.git-lfs+json",
    }
    assert ask(answer["href"] + "/objects/batch", headers, body)[0] == 200
    elsewhere = answer["href"].replace("team/app", "team/lib")
    assert ask(elsewhere + "/objects/batch", headers, body)[0] == 404
    user = base64.b64decode(answer["header"]["Authorization"].split()[1]).decode()
    assert user.startswith("ticket:sgk_")
    assert home.command("key", "remove", "ada", "--data", str(home.data)).returncode == 0
    gone = home.clone(remote("team/lib"), **kept)  # over the connection that is open
    assert "key is not let in any more" in gone.stderr
    subprocess.run(
        [*master.split(), "-O", "exit", "-p", port, f"git@{host}"], check=False, capture_output=True
    )


# ---- TLS


@pytest.fixture(scope="module")
def files(home: Home) -> dict[str, Path]:
    folder = home.folder / "tls"
    folder.mkdir()
    made = certificates(folder, ["127.0.0.1"])
    return {key.removeprefix("peer_"): path for key, path in made.items()}


@pytest.fixture(scope="module")
def secure(home: Home, files: dict[str, Path]) -> Iterator[Server]:
    wants = {
        "SHARDGIT_AUTH": "required",
        "SHARDGIT_TLS_CERTIFICATE": str(files["certificate"]),
        "SHARDGIT_TLS_KEY": str(files["key"]),
    }
    with serving(home.data, "--workers", "1", environment=wants) as running:
        yield running


def shown_by(server: Server, address: str = "") -> bytes:
    host, port = (address or server.http).split(":")
    text = ssl.get_server_certificate((host, int(port)), timeout=10)
    return ssl.PEM_cert_to_DER_cert(text)


def test_git_and_grpc_speak_tls(home: Home, secure: Server, files: dict[str, Path]) -> None:
    trusting = {"GIT_SSL_CAINFO": str(files["ca"])}
    assert home.clone(url(secure, "team/app", home.reader, "https"), **trusting).returncode == 0
    assert home.push(url(secure, "team/app", home.writer, "https"), **trusting).returncode == 0
    assert home.clone(url(secure, "team/app", home.reader, "https")).returncode != 0
    assert home.clone(url(secure, "team/app", home.reader)).returncode != 0  # without TLS
    calling = Calling(ca=files["ca"].read_bytes())
    with connect(f"grpcs://{secure.grpc}", home.reader, calling=calling) as client:
        assert client.repository("team/app").name == "team/app"
    with connect(secure.grpc, home.reader) as client, pytest.raises(Unavailable):
        client.repository("team/app")
    environment = {
        "SHARDGIT_TOKEN": home.reader,
        "SHARDGIT_CLIENT_CA": str(files["ca"]),
        "SHARDGIT_SERVER": f"grpcs://{secure.grpc}",
    }
    assert home.clone(f"shardgits://{secure.grpc}/team/app", **environment).returncode == 0
    listed = home.command("repo", "list", **environment)
    assert "team/app" in listed.stdout


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")
def test_ssh_sends_git_lfs_to_where_tls_is_spoken(home: Home, secure: Server) -> None:
    keygen = [
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "a:b",
        "-f",
        str(home.folder / "lfs"),
    ]
    subprocess.run(keygen, check=True)
    assert home.command("key", "add", "lfs.pub", "--data", str(home.data)).returncode == 0
    host, port = secure.ssh.split(":")
    options = (
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "BatchMode=yes",
        "LogLevel=ERROR",
    )
    chosen = [word for one in options for word in ("-o", one)]
    told = subprocess.run(
        [
            "ssh",
            "-F",
            "/dev/null",
            *chosen,
            "-i",
            str(home.folder / "lfs"),
            "-p",
            port,
            f"git@{host}",
            "git-lfs-authenticate team/app.git download",
        ],
        capture_output=True,
        check=True,
    ).stdout
    answer = json.loads(told)
    assert answer["href"].startswith("https://")
    user = base64.b64decode(answer["header"]["Authorization"].split()[1]).decode()
    assert user.count(":") == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1])
def test_old_tls_is_refused(secure: Server, version: ssl.TLSVersion) -> None:
    for address in (secure.http, secure.grpc):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = context.maximum_version = version
        host, port = address.split(":")
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            pytest.raises((ssl.SSLError, OSError)),
        ):
            context.wrap_socket(plain)


def test_half_a_handshake_and_plain_http_harm_nobody(
    home: Home, secure: Server, files: dict[str, Path]
) -> None:
    host, port = secure.http.split(":")
    with contextlib.ExitStack() as held:
        for _ in range(20):
            held.enter_context(socket.create_connection((host, int(port)), timeout=10))
        loud = held.enter_context(socket.create_connection((host, int(port)), timeout=10))
        loud.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        remote = url(secure, "team/app", home.reader, "https")
        assert home.clone(remote, GIT_SSL_CAINFO=str(files["ca"])).returncode == 0
        loud.settimeout(20)
        assert not loud.recv(1_000).startswith(b"HTTP")


def test_a_new_certificate_is_taken_without_a_restart(
    home: Home, secure: Server, files: dict[str, Path], tmp_path: Path
) -> None:
    before = shown_by(secure)
    with connect(
        f"grpcs://{secure.grpc}", home.reader, calling=Calling(ca=files["ca"].read_bytes())
    ) as client:
        for _ in range(4):  # over each of its connections
            assert client.repository("team/app").name
        fresh = certificates(tmp_path, ["127.0.0.1"])
        (files["key"]).write_bytes(b"half of a key")
        time.sleep(1.2)
        assert shown_by(secure) == before  # what does not fit together is not taken
        os.replace(fresh["peer_key"], files["key"])
        os.replace(fresh["peer_certificate"], files["certificate"])
        os.replace(fresh["peer_ca"], files["ca"])
        until(lambda: before not in (shown_by(secure), shown_by(secure, secure.grpc)))
        assert client.repository("team/app").name  # on its old connection
    calling = Calling(ca=files["ca"].read_bytes())
    with connect(f"grpcs://{secure.grpc}", home.reader, calling=calling) as client:
        assert client.repository("team/app").name
    remote = url(secure, "team/app", home.reader, "https")
    assert home.clone(remote, GIT_SSL_CAINFO=str(files["ca"])).returncode == 0
    assert "tls_files_taken" in secure.events()


def test_certificates_of_clients_let_them_in(home: Home, tmp_path: Path) -> None:
    made = certificates(tmp_path, ["127.0.0.1"])

    def signed(name: str) -> tuple[Path, Path]:
        request = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
        subprocess.run(
            [*request, "-keyout", f"{name}.key", "-out", f"{name}.csr"],
            check=True,
            cwd=tmp_path,
            capture_output=True,
        )
        sign = [
            "openssl",
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
        ]
        subprocess.run(
            [*sign, "-out", f"{name}.pem"], check=True, cwd=tmp_path, capture_output=True
        )
        return tmp_path / f"{name}.pem", tmp_path / f"{name}.key"

    wants = {
        "SHARDGIT_AUTH": "required",
        "SHARDGIT_TLS_CERTIFICATE": str(made["peer_certificate"]),
        "SHARDGIT_TLS_KEY": str(made["peer_key"]),
        "SHARDGIT_TLS_CLIENT_CA": str(made["peer_ca"]),
        "SHARDGIT_TLS_CLIENTS": "ops admin, ci-* read=team/**",
    }
    ca = made["peer_ca"].read_bytes()
    with serving(home.data, "--workers", "1", environment=wants) as server:
        trusting = {"GIT_SSL_CAINFO": str(made["peer_ca"])}

        def over_http(name: str) -> dict[str, str]:
            certificate, key = signed(name)
            return {**trusting, "GIT_SSL_CERT": str(certificate), "GIT_SSL_KEY": str(key)}

        def over_grpc(name: str) -> Calling:
            certificate, key = signed(name)
            return Calling("", ca, certificate.read_bytes(), key.read_bytes())

        robot = over_http("ci-1")
        assert home.clone(url(server, "team/app", scheme="https"), **robot).returncode == 0
        assert "not found" in home.clone(url(server, "other", scheme="https"), **robot).stderr
        assert "error: 403" in home.push(url(server, "team/app", scheme="https"), **robot).stderr
        assert home.push(url(server, "other", scheme="https"), **over_http("ops")).returncode == 0
        assert (
            "not found"
            in home.clone(url(server, "other", scheme="https"), **over_http("you")).stderr
        )
        assert home.clone(url(server, "other", scheme="https"), **trusting).returncode != 0
        assert home.clone(url(server, "team/app", home.reader, "https"), **trusting).returncode == 0
        with connect(f"grpcs://{server.grpc}", calling=over_grpc("ops")) as client:
            assert client.shards()
        with connect(f"grpcs://{server.grpc}", calling=over_grpc("ci-2")) as client:
            assert [one.name for one in client.repositories()] == ["team/app", "team/lib"]
        with (
            connect(f"grpcs://{server.grpc}", home.admin, calling=Calling(ca=ca)) as client,
            pytest.raises(Unavailable),
        ):
            client.shards()


# ---- the audit log


def test_every_change_stands_in_the_audit_log_and_every_refusal(home: Home, tmp_path: Path) -> None:
    log = tmp_path / "audit"
    wants = {"SHARDGIT_AUTH": "required", "SHARDGIT_AUDIT_LOG": str(log)}

    def lines() -> list[dict[str, Any]]:
        whole = log.read_text().split("\n")[:-1] if log.exists() else []  # one may be in writing
        return [json.loads(line) for line in whole]

    def last(**wanted: object) -> dict[str, Any]:
        seen = list[dict[str, Any]]()

        def came() -> bool:
            seen[:] = lines()[-1:]
            return bool(seen) and wanted.items() <= seen[0].items()

        until(came)  # the client may have its answer a moment before
        (found,) = seen
        assert datetime.fromisoformat(found["time"]).tzinfo is not None
        return found

    with serving(home.data, "--workers", "1", environment=wants) as server:
        assert home.clone(url(server, "team/app", home.reader)).returncode == 0
        assert lines() == []  # who reads changes nothing
        assert home.push(url(server, "team/app", home.writer)).returncode == 0
        pushed = last(
            what="push",
            actor="writer",
            address="127.0.0.1",
            proved=True,
            repository="team/app",
            outcome="OK",
        )
        head = home.git("-C", "source", "rev-parse", "main").stdout.strip()
        (moved,) = pushed["refs"]
        assert moved == {"ref": f"refs/heads/branch-{home._number}", "old": None, "new": head}
        assert len(lines()) == 1
        assert home.push(url(server, "team/app", home.reader)).returncode != 0
        refused = last(actor="reader", outcome="PERMISSION_DENIED", action="write", edge="http")
        assert refused["request_id"]
        refusing = home.git(
            "-C", "source", "push", "-q", url(server, "team/app", home.writer), "main:refs/x"
        )
        assert refusing.returncode != 0
        assert (
            last(what="push", outcome="FAILED_PRECONDITION")["refs"][0]["refused"]
            == "funny refname"
        )
        with connect(server.grpc, home.admin) as client:
            client.create("audited")
            last(
                what="CreateRepository",
                actor="boss",
                repository="audited",
                outcome="OK",
                edge="grpc",
            )
            repo = client.repo("team/app")
            repo.update_ref("refs/heads/audited", repo.ref("refs/heads/main").target)
            assert last(what="UpdateRefs", count=1)["refs"][0]["ref"] == "refs/heads/audited"
            before = len(lines())
            with pytest.raises(Conflict):
                repo.update_ref("refs/heads/audited", bytes.fromhex(head), old=bytes(19) + b"x")
            last(what="UpdateRefs", outcome="ABORTED")
            client.shards()
            list(client.repositories())
            assert len(lines()) == before + 1
            log.rename(tmp_path / "audit.1")
            client.delete("audited")
            last(what="DeleteRepository", repository="audited")
            assert len(lines()) == 1
        evil = f"http://{server.http}/x%22%7d%0d%20%7b%22forged%22%3a1%7d.git/git-receive-pack"
        headers = {"Content-Type": "application/x-git-receive-pack-request"}
        before = len(lines())
        assert ask(evil, headers, b"0000")[0] == 401
        assert len(lines()) == before  # who is not let in at all is in the server's log
        headers["Authorization"] = f"Bearer {home.reader}"
        assert ask(evil, headers, b"0000")[0] == 404
        assert len(lines()) == before + 1  # what a client says is never a line of its own
        assert log.stat().st_mode & 0o777 == 0o600


def test_commands_on_the_folder_stand_in_it_too(home: Home, tmp_path: Path) -> None:
    log = tmp_path / "audit"
    data = ("--data", str(home.data))
    environment = {"SHARDGIT_AUDIT_LOG": str(log)}
    assert home.command("repo", "list", *data, **environment).returncode == 0
    assert not log.exists()
    assert home.command("repo", "create", "local", *data, **environment).returncode == 0
    assert home.command("repo", "create", "local", *data, **environment).returncode == 1
    assert home.command("token", "create", "--read", "x", *data, **environment).returncode == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["what"], one["repository"], one["outcome"]) for one in lines] == [
        ("repo create", "local", "OK"),
        ("repo create", "local", "ALREADY_EXISTS"),
        ("token create", None, "OK"),
    ]
    assert {one["edge"] for one in lines} == {"cli"}


# ---- configuration


def test_what_more_than_this_machine_reaches_wants_a_token(home: Home, tmp_path: Path) -> None:
    store = tmp_path / "data"
    create_store(store)
    with serving(store, "--workers", "1", "--http", "0.0.0.0:0") as server:
        port = server.http.rpartition(":")[2]
        assert ask(f"http://127.0.0.1:{port}/x.git/info/refs?service=git-upload-pack")[0] == 401
    open_door = {"SHARDGIT_AUTH": "off"}
    with serving(store, "--workers", "1", "--http", "0.0.0.0:0", environment=open_door) as server:
        port = server.http.rpartition(":")[2]
        assert ask(f"http://127.0.0.1:{port}/x.git/info/refs?service=git-upload-pack")[0] == 404


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"SHARDGIT_AUTH": "maybe"}, "auth is off or required"),
        ({"SHARDGIT_AUTH_SECRET_FILE": "/nowhere"}, "file of secrets cannot be read"),
        ({"SHARDGIT_TLS_KEY": "/x"}, "belong together"),
        ({"SHARDGIT_TLS_KEY": "/x", "SHARDGIT_TLS_CERTIFICATE": "/y"}, "TLS file cannot be read"),
        ({"SHARDGIT_TLS_CLIENT_CA": "/x"}, "tls_client_ca needs"),
        ({"SHARDGIT_TLS_CLIENTS": "a"}, "tls_clients needs"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_start(
    home: Home, environment: dict[str, str], word: str
) -> None:
    done = home.command("serve", "--check", "--data", str(home.data), **environment)
    assert done.returncode in (1, 2)
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1
