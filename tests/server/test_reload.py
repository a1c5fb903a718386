"""serve, told by SIGHUP: the configuration is read again, and workers are replaced while they serve."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loading import Load, run
from served import Server, clean_environment, git, serving, shardgit, small_repository
from waiting import until

from shardgit.client import connect

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT_CONNECTIONS = {"SHARDGIT_GRPC_CONNECTION_S": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reload")
    small_repository(folder / "source")
    for words in (["init", "data", "--shards", "2"], ["repo", "import", "demo", "source"]):
        done = shardgit(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "data"


def lines(server: Server, event: str) -> list[dict[str, object]]:
    return [line for line in server.lines() if line["event"] == event]


def reload(server: Server, event: str = "reloaded") -> dict[str, object]:
    """Have the server reload; returns the line that it ends with."""
    before = len(lines(server, event))
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(lines(server, event)) > before)
    return lines(server, event)[-1]


def test_not_one_request_fails_while_workers_are_replaced_twice(data: Path, tmp_path: Path) -> None:
    ids = git(data.parent / "source", "rev-list", "--objects", "--all").splitlines()
    wanted = [bytes.fromhex(line.split()[0]) for line in ids]
    git(tmp_path, "clone", "-q", str(data.parent / "source"), "work")
    with serving(data, "--workers", "2", environment=SHORT_CONNECTIONS) as server:
        with connect(server.grpc) as client:
            client.create("pushed")
            demo = client.repo("demo")

            def fresh(_: int) -> None:
                with connect(server.grpc) as other:
                    other.repository("demo")

            def read(_: int) -> None:
                found = [one for one in demo.objects(wanted) if one is not None]
                assert len(found) == len(wanted)

            def push(number: int) -> None:
                branch = f"HEAD:refs/heads/b{number}"
                run("-C", str(tmp_path / "work"), "push", "-q", server.url("pushed"), branch)

            ssh = f"ssh://git@{server.ssh}/demo.git"
            load = Load()
            jobs: dict[str, Callable[[int], object]] = {
                "clone": lambda n: run(
                    "clone", "-q", "--bare", server.url("demo"), str(tmp_path / f"c{n}")
                ),
                "ssh": lambda n: run("clone", "-q", "--bare", ssh, str(tmp_path / f"s{n}")),
                "push": push,
                "read": read,
                "call": lambda _: client.repository("demo"),
                "fresh": fresh,
            }
            first = set(server.workers())
            with load.running(jobs):
                load.await_more()
                for _ in range(2):
                    line = reload(server)
                    assert line["workers"] == 2
                    load.await_more()
            assert load.errors == []
        until(lambda: server.events().count("worker_replaced") == 4)
        assert not first & set(server.workers())
        assert server.ask("/readyz") == (200, "2 of 2 workers serve\n")
        heads = git(tmp_path, "ls-remote", "--heads", server.url("pushed")).splitlines()
        assert len(heads) == load.done["push"]
        assert server.stop() == 0


def test_new_clients_are_served_while_the_old_worker_still_ends_its_calls(data: Path) -> None:
    with serving(data, "--workers", "1") as server, connect(server.grpc) as stays:
        stays.repository("demo")
        (old,) = server.workers()
        reload(server)
        until(lambda: server.events().count("worker_draining") == 1)
        time.sleep(1)  # the queue is empty by then
        for _ in range(20):  # whichever socket the kernel would choose
            with connect(server.grpc) as client:
                begun = time.monotonic()
                client.repository("demo")
                assert time.monotonic() - begun < 10  # a client gives up after 20 s
        assert old in server.workers()
        stays.repository("demo")


BODY = b"0014command=ls-refs\n0000"
LS_REFS = (
    b"POST /demo.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
    b"Content-Type: application/x-git-upload-pack-request\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


def active(server: Server) -> float:
    """Return how many requests are under way over HTTP."""
    found = re.search(
        r'^shardgit_requests_active\{edge="http"\} (.*)', server.ask("/metrics")[1], re.M
    )
    return float(found[1]) if found else 0.0


def test_a_request_under_way_outlasts_the_time_that_a_stop_would_give_it(data: Path) -> None:
    with serving(data, "--workers", "1", environment={"SHARDGIT_DRAIN_S": "0"}) as server:
        (old,) = server.workers()
        host, port = server.http.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(LS_REFS[:-10])
            until(lambda: active(server) == 1)
            reload(server)
            time.sleep(0.5)
            assert old in server.workers()
            client.sendall(LS_REFS[-10:])
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"refs/heads/main" in answer
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert b"\r\nconnection: close" in head  # the next one is for the worker that serves now
        until(lambda: old not in server.workers())


def test_a_connection_that_stays_has_its_next_request_answered_by_the_old_worker(
    data: Path,
) -> None:
    with serving(data, "--workers", "1") as server:
        host, port = server.http.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(LS_REFS)
            answer = b""
            while b"refs/heads/main" not in answer or not answer.endswith(
                (b"0000", b"\r\n0\r\n\r\n")
            ):
                answer += client.recv(65_536)
            server.process.send_signal(signal.SIGHUP)
            until(lambda: "worker_draining" in server.events())
            client.sendall(LS_REFS)
            last = b"".join(iter(lambda: client.recv(65_536), b""))
            assert last.startswith(b"HTTP/1.1 200 OK")
            assert b"refs/heads/main" in last


def test_what_can_change_is_taken_over_and_what_cannot_is_named(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "shardgit.toml"
    file.write_text("workers = 1\n")
    with serving(data, "--config", str(file)) as server:
        file.write_text('workers = 2\nauth = "required"\nlog_level = "warning"\n')
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.ask("/readyz")[1].startswith("2 of 2"))
        refused = subprocess.run(
            ["git", "ls-remote", server.url("demo")],
            env={**clean_environment(), "GIT_TERMINAL_PROMPT": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode != 0
        assert "could not read Username" in refused.stderr
        file.write_text(f'workers = 1\n[cluster]\nlisten = "127.0.0.1:1"\nname = "{"x" * 5}"\n')
        line = reload(server)
        assert line["workers"] == 1
        told = [named["keys"] for named in lines(server, "reload_needs_restart")]
        assert told == [["admin: auth"], ["cluster.name", "cluster.listen", "admin: auth"]]
        git(tmp_path, "ls-remote", server.url("demo"))
        until(lambda: len(server.workers()) == 1)


UNSOUND = (
    ("workers = 1\nwrokers = 2\n", "unknown configuration key"),
    ('workers = "two"\n', "wrong type"),
    ('workers = 1\nauth_secret_file = "/nowhere/at/all"\n', "auth_secret_file|secret"),
)


def test_a_configuration_that_is_not_sound_changes_nothing(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "shardgit.toml"
    file.write_text("workers = 1\n")
    with serving(data, "--config", str(file)) as server:
        before = server.workers()
        for text, words in UNSOUND:
            file.write_text(text)
            line = reload(server, "reload_refused")
            assert re.search(words, str(line["error"]))
            assert server.workers() == before
        assert "worker_draining" not in server.events()
        git(tmp_path, "ls-remote", server.url("demo"))


def test_workers_serve_on_where_those_to_follow_do_not_start(data: Path, tmp_path: Path) -> None:
    with serving(data, "--workers", "2") as server:
        before = server.workers()
        # A folder in the place of a file that workers open as they start, and that a check does not look at.
        leases, aside = data / "tmp" / "leases", data / "leases.aside"
        leases.rename(aside)
        leases.mkdir()
        try:
            reload(server, "reload_failed")
        finally:
            leases.rmdir()
            aside.rename(leases)
        assert lines(server, "worker_not_replaced")
        assert server.workers() == before
        assert server.ask("/readyz")[0] == 200
        git(tmp_path, "ls-remote", server.url("demo"))
        reload(server)


def test_what_workers_counted_outlives_them_in_as_many_files(data: Path, tmp_path: Path) -> None:
    with serving(data, "--workers", "1") as server:

        def pushed() -> float:
            found = re.search(
                r'^shardgit_requests_total\{code="OK",edge="http",method="upload_pack"\} (.*)',
                server.ask("/metrics")[1],
                re.M,
            )
            return float(found[1]) if found else 0.0

        (folder,) = {
            Path(entry.partition(b"=")[2].decode())
            for entry in Path(f"/proc/{server.workers()[0]}/environ").read_bytes().split(b"\0")
            if entry.startswith(b"PROMETHEUS_MULTIPROC_DIR=")
        }
        git(tmp_path, "ls-remote", server.url("demo"))
        until(lambda: pushed() == 1)
        files = 0
        for count in (2, 3):
            reload(server)
            until(lambda count=count: server.events().count("worker_replaced") == count - 1)  # type: ignore[misc]
            git(tmp_path, "ls-remote", server.url("demo"))
            until(lambda count=count: pushed() == count)  # type: ignore[misc]
            assert files in {0, len(os.listdir(folder))}
            files = len(os.listdir(folder))


def test_the_service_manager_hears_of_start_reload_and_stop(data: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        where = tmp_path / "notify"
        manager.bind(str(where))
        told: list[str] = []

        def listen() -> None:
            while text := manager.recv(4_096).decode():
                told.append(text)

        listening = threading.Thread(target=listen)
        listening.start()

        def hear(*texts: str) -> None:
            """Wait until the lines that tell more than of life are these."""
            until(lambda: len([one for one in told if one != "WATCHDOG=1"]) == len(texts))
            others = [one for one in told if one != "WATCHDOG=1"]
            assert all(map(str.startswith, others, texts)), others

        environment = {"NOTIFY_SOCKET": str(where), "WATCHDOG_USEC": "400000"}
        with serving(data, "--workers", "1", environment=environment) as server:
            hear("READY=1")
            until(lambda: told.count("WATCHDOG=1") > 2)
            reload(server)
            lines_so_far = ("READY=1", "RELOADING=1\nMONOTONIC_USEC=", "READY=1")
            hear(*lines_so_far)
            (worker, *_) = server.workers()
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{worker}/environ").read_bytes()
            assert server.stop() == 0
            hear(*lines_so_far, "STOPPING=1")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"", str(where))
            listening.join()


def test_a_server_that_leaves_says_so_before_it_takes_no_more_connections(
    data: Path, tmp_path: Path
) -> None:
    with serving(data, "--workers", "1", environment={"SHARDGIT_LEAVE_S": "4"}) as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask("/readyz") == (503, "draining\n"))
        git(tmp_path, "ls-remote", server.url("demo"))
        assert "worker_draining" not in server.events()
        assert server.process.wait(timeout=60) == 0
