"""serve: ports, workers that die, signals, health and metrics."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from served import Server, git, serving, shardgit, small_repository
from waiting import until

from shardgit.counts import MEMORY
from shardgit.errors import Refused
from shardgit.node import check_readers, open_store
from shardgit.operate.operation import running
from shardgit.ports import Address
from shardgit.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


PORTS = ("http", "ssh", "grpc", "admin")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    small_repository(folder / "source")
    for words in (["init", "data", "--shards", "2"], ["repo", "import", "demo", "source"]):
        done = shardgit(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "data"


def alive(process: int) -> bool:
    """Say whether a process runs; one that waits to be reaped does not."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_serves_clones_health_and_metrics_and_stops(data: Path, tmp_path: Path) -> None:
    with serving(data, "--workers", "2") as server:
        assert len(server.workers()) == 2
        assert server.ask("/livez") == (200, "ok\n")
        assert server.ask("/readyz") == (200, "2 of 2 workers serve\n")
        clone = tmp_path / "clone"
        git(tmp_path, "clone", "--quiet", server.url("demo"), str(clone))
        git(clone, "fsck", "--strict")
        source = data.parent / "source"
        assert git(clone, "rev-list", "--objects", "--all") == git(
            source, "rev-list", "--objects", "--all"
        )
        # A request is counted after its last byte, which may be just behind the clone's end.
        name = 'shardgit_requests_total{{code="OK",edge="http",method="{}"}}'
        until(lambda: samples(server).get(name.format("upload_pack"), 0) >= 2)
        assert samples(server)[name.format("info_refs")] == 1
        timed = 'shardgit_request_seconds_count{edge="http",method="upload_pack"}'
        until(lambda: samples(server)[timed] == samples(server)[name.format("upload_pack")])
        assert samples(server)[timed.replace("_count", "_sum")] > 0
        spent = 'shardgit_request_spent_seconds_total{edge="http",into="work"}'
        until(lambda: samples(server)[spent] > 0)
        until(lambda: samples(server)["shardgit_event_loop_lag_seconds_count"] > 0)
        now = samples(server)
        assert (now["shardgit_workers"], now["shardgit_worker_restarts_total"]) == (2, 0)
        assert now[f'shardgit_build_info{{version="{VERSION}"}}'] == 1
        assert server.ask("/metrics")[1].count("# TYPE shardgit_workers ") == 1
        workers = server.workers()
        assert server.stop() == 0
        assert not [worker for worker in workers if alive(worker)]
        assert server.events().count("worker_draining") == 2


def test_metrics_tell_of_commits_fsyncs_caches_and_queues(data: Path, tmp_path: Path) -> None:
    with serving(data, "--workers", "1") as server:
        clone = tmp_path / "clone"
        git(tmp_path, "clone", "--quiet", server.url("demo"), str(clone))
        git(tmp_path, "clone", "--quiet", server.url("demo"), str(tmp_path / "again"))
        git(clone, "commit", "--quiet", "--allow-empty", "-m", "one more")
        git(clone, "push", "--quiet", "origin", "HEAD")
        looked = 'shardgit_cache_reads_total{{cache="{}",outcome="{}"}}'
        until(lambda: samples(server).get(looked.format("views", "hit"), 0) > 0)
        now = samples(server)
        assert now['shardgit_journal_commits_total{outcome="committed"}'] >= 1
        assert now["shardgit_journal_commit_seconds_count"] >= 1
        assert now["shardgit_journal_group_commits_count"] >= 1
        assert now['shardgit_fsync_seconds_count{part="journal"}'] >= 1
        assert now[looked.format("answers", "miss")] >= 1  # of the first clone
        assert now['shardgit_threads{state="idle"}'] >= 1
        assert now['shardgit_queue_jobs{queue="threads"}'] >= 0
        assert now["shardgit_queue_wait_seconds"] >= 0
        # Of the store as a worker sees it.
        told = shardgit("shard", "stats", "--data", str(data), "--json", cwd=tmp_path).stdout
        stats = json.loads(told)["shards"]
        assert now['shardgit_shards{state="active"}'] == len(stats)
        for one in stats:
            name = f'{{shard="shard {one["id"]}"}}'
            assert now[f"shardgit_shard_blocks{name}"] == one["blocks"]
            assert now[f"shardgit_shard_live_bytes{name}"] == one["bytes"]
            assert now[f"shardgit_shard_file_bytes{name}"] == one["file_bytes"]
            assert now[f"shardgit_shard_free_bytes{name}"] > 0
        assert (
            sum(now[f'shardgit_shard_partitions{{shard="shard {n["id"]}"}}'] for n in stats)
            == 65_536
        )
        assert now["shardgit_ring_epoch"] >= 1
        assert now["shardgit_ring_moving_partitions"] == 0
        assert (
            0
            < now['shardgit_journal_bytes{kind="live"}']
            <= now['shardgit_journal_bytes{kind="file"}']
        )
        # Another process's operation, too.
        runs = 'shardgit_operations_active{kind="gc"}'
        assert runs not in now
        with open_store(data) as store, running(store, "gc"):
            until(lambda: samples(server).get(runs) == 1)
        until(lambda: runs not in samples(server))


def test_a_worker_that_is_killed_is_started_again(data: Path, tmp_path: Path) -> None:
    with serving(data, "--workers", "2") as server:
        before = set(server.workers())
        os.kill(min(before), signal.SIGKILL)
        until(lambda: server.ask("/readyz")[1].startswith("1 of"))
        git(tmp_path, "ls-remote", server.url("demo"))
        until(lambda: server.ask("/readyz")[1].startswith("2 of"))
        now = set(server.workers())
        assert len(now) == 2
        assert max(before) in now
        assert "shardgit_worker_restarts_total 1.0" in server.ask("/metrics")[1]
        assert {"worker_died", "readers_freed"} <= set(server.events())
        git(tmp_path, "clone", "--quiet", server.url("demo"), str(tmp_path / "clone"))


def test_a_connection_waits_while_no_worker_runs(data: Path, tmp_path: Path) -> None:
    with serving(data, "--workers", "1") as server:
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        host, _, port = server.http.rpartition(":")
        with socket.create_connection((host, int(port))) as early:
            early.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            os.kill(worker, signal.SIGKILL)
            early.settimeout(20)
            assert early.recv(100).startswith(b"HTTP/1.1 200")


def test_workers_share_connections_that_stay(data: Path) -> None:
    with serving(data, "--workers", "2") as server:
        host, _, port = server.http.rpartition(":")
        here = f":{int(port):04X}"

        def counts() -> list[int]:
            return sorted(len(sockets_of(worker, here)) for worker in server.workers())

        fewest = 0
        for _ in range(5):  # a busy machine keeps a worker from its turn now and then
            with ExitStack() as held:
                for _ in range(12):
                    held.enter_context(socket.create_connection((host, int(port))))
                until(lambda: sum(counts()) == 12)
                fewest = max(fewest, counts()[0])
            until(lambda: sum(counts()) == 0)
        assert fewest >= 5


def sockets_of(process: int, port: str, state: str = "01") -> list[int]:
    """Return the file descriptors of a process's sockets of a port that are connected, or in another state."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        words = line.split()
        if words[1].endswith(port) and words[3] == state:
            inodes.add(f"socket:[{words[9]}]")
    found = []
    for file in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            if os.readlink(file) in inodes:
                found.append(int(file.name))
    return found


def test_workers_do_not_outlive_a_supervisor_that_is_killed(data: Path) -> None:
    with serving(data, "--workers", "2") as server:
        workers = server.workers()
        server.process.kill()
        server.process.wait()
        until(lambda: not any(alive(worker) for worker in workers))


def test_what_a_killed_supervisor_leaves_goes_with_the_next_start_and_no_other(
    data: Path, tmp_path: Path
) -> None:
    places = (MEMORY, Path(tempfile.gettempdir()))

    def folders_of(server: Server) -> list[Path]:
        name = f"shardgit-metrics-*-{server.process.pid}-*"
        return [found for place in places for found in place.glob(name)]

    with serving(data, "--workers", "1") as killed:
        (left,) = folders_of(killed)
        workers = killed.workers()
        killed.process.kill()
        killed.process.wait()
        until(lambda: not any(alive(worker) for worker in workers))
    assert left.is_dir()
    other = tmp_path / "other"
    assert shardgit("init", str(other), cwd=tmp_path).returncode == 0
    with serving(other, "--workers", "1") as first:
        assert not left.exists()
        (mine,) = folders_of(first)
        with serving(data, "--workers", "1") as second:
            assert mine.is_dir()
            assert samples(first)["shardgit_workers"] == 1
            assert len(folders_of(second)) == 1
    assert not mine.exists()


@pytest.mark.parametrize("key", ["http", "ssh", "grpc", "admin"])
def test_a_port_that_is_taken_is_refused_before_anything_starts(data: Path, key: str) -> None:
    with serving(data, "--workers", "1") as server:
        free = [word for name in PORTS for word in (f"--{name}", "127.0.0.1:0")]
        taken = [f"--{key}", getattr(server, key)]
        begun = time.monotonic()
        done = shardgit("serve", "--data", str(data), *free, *taken, cwd=data.parent)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("shardgit: address is in use; is another server running?")
        assert f"key={key}" in done.stderr
        assert time.monotonic() - begun < 10
        assert server.ask("/readyz")[0] == 200


def test_a_port_is_held_from_the_probe_on() -> None:
    first = Address("127.0.0.1:0", "http")
    try:
        with pytest.raises(Refused, match="in use"):
            Address(first.text, "http")
        # A worker shares it.
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", int(first.text.rpartition(":")[2])))
            worker.listen()
    finally:
        first.close()
    Address(first.text, "http").close()


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(Refused, match="cannot be bound"):
        Address("192.0.2.1:7421", "http")
    with pytest.raises(Refused, match="does not resolve"):
        Address("no-such-host.invalid:7421", "http")


def has_ipv6() -> bool:
    """Say whether any of this host's addresses is of IPv6."""
    addresses = Path("/proc/net/if_inet6")
    return addresses.exists() and bool(addresses.read_text(encoding="ascii"))


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
def test_the_addresses_of_ipv6_leave_those_of_ipv4_alone() -> None:
    with closing(Address("[::]:0", "http", listens=True)) as address:
        port = int(address.text.rpartition(":")[2])
        socket.create_connection(("::1", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        Address(f"0.0.0.0:{port}", "http", listens=True).close()


def test_a_name_of_several_addresses_is_listened_to_on_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One that this host does not have, and the same twice, as hosts files have it.
    hosts = ["192.0.2.1", "127.0.0.1", "127.0.0.2", "127.0.0.1"]

    def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*stream, (host, 0)) for host in hosts]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", found)
        address = Address("several.example:0", "http", listens=True)
    with closing(address):
        port = int(address.text.removeprefix("several.example:"))
        for host in ("127.0.0.1", "127.0.0.2"):
            socket.create_connection((host, port)).close()
        assert len(address.sockets) == 2
    del hosts[1:]
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", found)
        with pytest.raises(Refused, match="cannot be bound"):
            Address("several.example:0", "http", listens=True)


def test_programs_that_a_worker_starts_do_not_inherit_the_socket_it_listens_on(data: Path) -> None:
    with serving(data, "--workers", "1") as server:
        (worker,) = server.workers()
        port = f":{int(server.http.rpartition(':')[2]):04X}"
        (listener,) = sockets_of(worker, port, "0A")
        told = Path(f"/proc/{worker}/fdinfo/{listener}").read_text(encoding="ascii")
        (flags,) = re.findall(r"flags:\t(\d+)", told)
        assert int(flags, 8) & os.O_CLOEXEC


BODY = b"0014command=ls-refs\n0000"
LS_REFS = (
    b"POST /demo.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
    b"Content-Type: application/x-git-upload-pack-request\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY)
)


@contextmanager
def half_asked(server: Server) -> Iterator[Callable[[], bytes]]:
    """Ask for half of a listing of refs; what is given asks for the rest and returns the answer."""
    host, port = server.http.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as client:

        def rest() -> bytes:
            client.sendall(LS_REFS[-10:])
            return b"".join(iter(lambda: client.recv(65_536), b""))

        client.sendall(LS_REFS[:-10])
        until(lambda: 'edge="http"} 1.0' in active(server))
        yield rest


def test_a_request_that_runs_ends_before_the_worker_does(data: Path) -> None:
    with serving(data, "--workers", "1") as server:
        with half_asked(server) as rest:
            server.process.send_signal(signal.SIGTERM)
            until(lambda: "worker_draining" in server.events())
            answer = rest()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"refs/heads/main" in answer
        assert server.process.wait(timeout=30) == 0


def is_free(address: str) -> bool:
    """Say whether another server could listen there."""
    try:
        Address(address, "http", listens=True).close()
    except Refused:
        return False
    return True


def test_the_port_of_a_worker_without_supervisor_is_free_while_it_drains(data: Path) -> None:
    with serving(data, "--workers", "2") as server:
        workers = server.workers()
        with half_asked(server) as rest:
            assert not is_free(server.http)
            server.process.kill()
            server.process.wait()
            until(lambda: is_free(server.http), seconds=10)
            assert any(alive(worker) for worker in workers)
            assert rest().startswith(b"HTTP/1.1 200 OK")
        until(lambda: not any(alive(worker) for worker in workers))


def samples(server: Server) -> dict[str, float]:
    """Return what the admin port counts."""
    status, text = server.ask("/metrics")
    assert status == 200
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows}


def active(server: Server) -> str:
    """Return the sample of requests under way."""
    lines = server.ask("/metrics")[1].splitlines()
    return "".join(line for line in lines if line.startswith("shardgit_requests_active"))


def test_a_second_signal_does_not_wait_for_a_request(data: Path) -> None:
    with serving(data, "--workers", "1") as server:
        host, port = server.http.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(
                b"POST /demo.git/git-upload-pack HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/x-git-upload-pack-request\r\nContent-Length: 9\r\n\r\n"
            )
            until(lambda: 'edge="http"} 1.0' in active(server))
            server.process.send_signal(signal.SIGINT)
            until(lambda: "worker_draining" in server.events())
            time.sleep(0.2)
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(timeout=60) == 0


def test_what_another_process_imports_is_served_at_once(data: Path, tmp_path: Path) -> None:
    source = small_repository(tmp_path / "source")
    with serving(data, "--workers", "2") as server:
        name = tmp_path.name
        for commit in range(3):
            (source / "new.txt").write_text(str(commit))
            git(source, "add", ".")
            git(source, "commit", "--quiet", "-m", "more")
            done = shardgit("repo", "import", name, str(source), cwd=data.parent)
            assert done.returncode == 0, done.stderr
            for _ in range(4):  # whichever worker answers
                found = git(tmp_path, "ls-remote", server.url(name), "HEAD").split()[0]
                assert found == git(source, "rev-parse", "HEAD")


def test_many_clones_at_once_are_all_whole(data: Path, tmp_path: Path) -> None:
    with serving(data, "--workers", "2") as server:

        def clone(number: int) -> None:
            git(tmp_path, "clone", "--quiet", "--bare", server.url("demo"), f"{number}.git")

        threads = [threading.Thread(target=clone, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(8):
            git(tmp_path / f"{number}.git", "fsck", "--strict")


def test_a_store_that_a_worker_cannot_open_is_one_clear_error(tmp_path: Path) -> None:
    assert shardgit("init", "data", cwd=tmp_path).returncode == 0
    (tmp_path / "data" / "shards" / "000" / "data.mdb").write_bytes(b"")
    free = [word for name in PORTS for word in (f"--{name}", "127.0.0.1:0")]
    done = shardgit("serve", "--workers", "1", *free, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "worker_refused" in done.stderr
    assert "DATA_LOSS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_journal_that_cannot_be_opened_is_told_before_workers_start(tmp_path: Path) -> None:
    assert shardgit("init", "data", cwd=tmp_path).returncode == 0
    (tmp_path / "data" / "journal" / "data.mdb").write_bytes(b"")
    done = shardgit("serve", "--check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    said = "shardgit: database file is missing or empty (path=data/journal/data.mdb)\n"
    assert done.stderr == said


def test_readers_of_a_killed_process_are_freed(data: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from shardgit.node import open_store\n"
        "with open_store(Path(sys.argv[1])) as store, store.journal.snapshot():\n"
        "    print('open', flush=True); sys.stdin.read()\n"
    )

    def reader() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    # A second process keeps the environments open; with none LMDB begins its table anew.
    with reader() as stays, reader() as dies:
        for process in (stays, dies):
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
        dies.kill()
        dies.wait()
        assert check_readers(data) >= 1
        assert check_readers(data) == 0
        stays.kill()


def test_a_journal_of_another_store_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert shardgit("init", name, cwd=tmp_path).returncode == 0
    (tmp_path / "one" / "journal").rename(tmp_path / "kept")
    (tmp_path / "two" / "journal").rename(tmp_path / "one" / "journal")
    with pytest.raises(Refused, match="another store"), open_store(tmp_path / "one"):
        pass


def test_the_http_edge_says_what_it_is(data: Path) -> None:
    with (
        serving(data, "--workers", "1") as server,
        urllib.request.urlopen(f"http://{server.http}/", timeout=10) as answer,
    ):
        assert "shardgit" in answer.read().decode()


def test_a_shard_that_goes_away_is_told_and_one_that_comes_back_too(
    data: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(data, store)
    with serving(store, "--workers", "1") as server, grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def grpc_says(service: str = "") -> int:
            return int(health.Check(health_pb2.HealthCheckRequest(service=service)).status)

        assert server.ask("/readyz") == (200, "1 of 1 workers serve\n")
        assert grpc_says() == health_pb2.HealthCheckResponse.SERVING
        shard = store / "shards" / "001"
        shard.rename(tmp_path / "away")
        until(lambda: server.ask("/readyz")[0] == 503)
        assert "problem: shard 1: its folder is not there\n" in server.ask("/readyz")[1]
        until(
            lambda: grpc_says("shardgit.v1.ObjectService") != health_pb2.HealthCheckResponse.SERVING
        )
        assert server.ask("/livez")[0] == 200
        (tmp_path / "away").rename(shard)
        until(lambda: server.ask("/readyz")[0] == 200)
        until(lambda: grpc_says() == health_pb2.HealthCheckResponse.SERVING)
        assert server.events().count("health_changed") == 2


def test_hot_repositories_and_slow_requests_are_told(data: Path, tmp_path: Path) -> None:
    environment = {"SHARDGIT_SLOW_REQUEST_S": "0.000001"}
    with serving(data, "--workers", "1", environment=environment) as server:
        git(tmp_path, "clone", "--quiet", server.url("demo"), str(tmp_path / "clone"))
        name = 'shardgit_hot_repository_requests{repository="demo"}'
        until(lambda: samples(server).get(name, 0) > 0)
        assert samples(server)['shardgit_hot_repository_work_seconds{repository="demo"}'] > 0
        assert "slow_request" in server.events()


def test_memory_of_large_pushes_is_given_back(data: Path, tmp_path: Path) -> None:
    """glibc kept 12 MiB more behind each of these pushes."""
    work = tmp_path / "work"
    rand = random.Random(1)
    held = []
    with serving(data, "--workers", "1") as server:
        (worker,) = server.workers()
        git(tmp_path, "clone", "--quiet", server.url("demo"), str(work))
        for number in range(6):
            (work / "large").write_bytes(rand.randbytes(12 << 20))
            git(work, "add", "-A")
            git(work, "commit", "--quiet", "-m", f"{number}")
            git(work, "push", "--quiet", "origin", "HEAD")
            status = Path(f"/proc/{worker}/status").read_text()
            held.append(int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) >> 10)
    assert held[-1] < held[0] + 64, held


ON_SMALL_DISKS = """
set -e
mount -t tmpfs -o size=64k none /dev/shm
mount -t tmpfs -o size=8m none "$TMPDIR"
exec "$@"
"""


def test_clones_are_served_when_the_disk_of_temporary_files_is_full(
    data: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ON_SMALL_DISKS, "sh"]
    environment = {"TMPDIR": str(temporary)}
    tried = subprocess.run(
        [*inside, "true"],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
    )
    if tried.returncode:
        pytest.skip("nothing can be mounted here")
    with serving(data, "--workers", "2", environment=environment, inside=inside) as server:
        disk = Path(f"/proc/{server.process.pid}/root{temporary}")
        with (disk / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(bytes(4_096))
        before = server.workers()
        os.kill(min(before), signal.SIGKILL)
        until(lambda: "counts_not_kept" in server.events())
        until(lambda: server.ask("/readyz")[1].startswith("2 of 2"))
        now = server.workers()
        for name in ("one", "two", "three"):
            git(tmp_path, "clone", "--quiet", server.url("demo"), str(tmp_path / name))
        git(tmp_path / "three", "fsck", "--strict")
        assert server.workers() == now
        assert server.events().count("worker_died") == 1
        assert samples(server)["shardgit_worker_restarts_total"] == 1
        (disk / "full").unlink()
        until(lambda: "counts_kept" in server.events())
