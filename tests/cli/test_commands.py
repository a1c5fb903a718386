"""The commands, in a process of their own: what they print, how they fail, and --json of each."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import typer
from served import clean_environment, git, serving, shardgit, small_repository
from typer.testing import CliRunner

from shardgit.cli import main
from shardgit.cli.context import failing
from shardgit.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Place:
    """A source repository, and a store in ./data that holds it as demo."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = small_repository(folder / "source")
        self.data = folder / "data"
        self.ok("init", "data", "--shards", "3")
        self.ok("repo", "import", "demo", "source")

    def ok(self, *words: str) -> str:
        """Run a command that must go well; return what it prints."""
        done = shardgit(*words, cwd=self.folder)
        assert (done.returncode, done.stderr) == (0, ""), words
        return done.stdout

    def json(self, *words: str) -> Any:
        """Run a command with --json; return its document."""
        return json.loads(self.ok(*words, "--json"))

    def fails(self, *words: str, code: int = 1) -> str:
        """Run a command that must fail with one line; return the line."""
        done = shardgit(*words, cwd=self.folder)
        assert done.returncode == code, (words, done)
        assert done.stdout == ""
        assert done.stderr.startswith("shardgit: ")
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module", params=["data", "server"])
def target(place: Place, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Flags that reach the store, directly and through a server."""
    if request.param == "data":
        yield ["--data", str(place.data)]
        return
    with serving(place.data, "--workers", "1") as server:
        yield ["--server", server.grpc]


def test_read_commands_say_what_git_says(place: Place, target: list[str]) -> None:
    head = git(place.source, "rev-parse", "HEAD")
    tag = git(place.source, "rev-parse", "v1")
    readme = git(place.source, "rev-parse", "HEAD:README.md")
    refs = f"{head} refs/heads/main\n{tag} refs/tags/v1\n"
    assert place.ok("ref", "list", "demo", *target) == refs
    assert (
        place.ok("ref", "list", "demo", "--prefix", "refs/tags/", *target) == refs[-len(tag) - 14 :]
    )
    assert place.json("ref", "list", "demo", *target) == {
        "refs": [
            {"name": "refs/heads/main", "target": head, "peeled": None, "symbolic": None},
            {"name": "refs/tags/v1", "target": tag, "peeled": head, "symbolic": None},
        ]
    }
    assert place.ok("ref", "get", "demo", "refs/heads/main", *target) == head + "\n"
    assert place.json("ref", "get", "demo", "HEAD", *target)["symbolic"] == "refs/heads/main"
    size = len((place.source / "README.md").read_bytes())
    assert (
        place.ok("object", "info", "demo", "main:README.md", *target) == f"{readme} blob {size}\n"
    )
    assert place.ok("object", "info", "demo", readme[:9], *target) == f"{readme} blob {size}\n"
    assert place.json("object", "info", "demo", "v1", *target)["type"] == "tag"
    document = place.json("object", "get", "demo", "HEAD:README.md", *target)
    assert base64.b64decode(document["data"]) == (place.source / "README.md").read_bytes()
    objects = place.ok("object", "list", "demo", *target)
    git_objects = git(place.source, "cat-file", "--batch-all-objects", "--batch-check")
    assert sorted(objects.split("\n")[:-1]) == sorted(git_objects.split("\n"))
    rows = place.json("object", "list", "demo", *target)["objects"]
    assert [f"{row['id']} {row['type']} {row['size']}" for row in rows] == objects.split("\n")[:-1]


def test_every_object_comes_out_raw(place: Place, target: list[str]) -> None:
    for revision in ("HEAD", "HEAD^{tree}", "HEAD~1:sub", "v1", "main:README.md"):
        kind = git(place.source, "cat-file", "-t", revision)
        expected = subprocess.run(
            ["git", "-C", str(place.source), "cat-file", kind, revision],
            capture_output=True,
            check=True,
        ).stdout
        done = subprocess.run(
            [sys.executable, "-m", "shardgit", "object", "get", "demo", revision, *target],
            cwd=place.folder,
            env=clean_environment(),
            capture_output=True,
            check=True,
        )
        assert done.stdout == expected, revision


def test_repositories_are_made_listed_renamed_and_deleted(place: Place, target: list[str]) -> None:
    made = place.json("repo", "create", "team/new", *target)
    assert (made["name"], made["object_format"], made["head"]) == (
        "team/new",
        "sha1",
        "refs/heads/main",
    )
    assert "exists already" in place.fails("repo", "create", "team/new", *target)
    place.ok("repo", "rename", "team/new", "team/other", *target)
    names = [row["name"] for row in place.json("repo", "list", *target)["repositories"]]
    assert names == ["demo", "team/other"]
    assert "team/other" in place.ok("repo", "list", "--prefix", "team/", *target)
    assert "unborn" in place.ok("ref", "get", "team/other", "HEAD", *target)
    assert place.json("object", "list", "team/other", *target) == {"objects": []}
    assert "--yes" in place.fails("repo", "delete", "team/other", *target, code=2)
    assert place.json("repo", "delete", "team/other", "--yes", *target) == {"deleted": "team/other"}
    assert "does not exist" in place.fails("repo", "show", "team/other", *target)


def test_show_and_shards_count_the_same(place: Place, target: list[str]) -> None:
    shown = place.json("repo", "show", "demo", *target)
    count = len(git(place.source, "rev-list", "--objects", "--all").splitlines())
    assert (shown["objects"], shown["reachable_objects"], shown["refs"]) == (count, count, 2)
    assert f"{count:,} reachable" in place.ok("repo", "show", "demo", *target)
    shards = place.json("shard", "list", *target)["shards"]
    assert [shard["id"] for shard in shards] == [0, 1, 2]
    assert sum(shard["partitions"] for shard in shards) == 65_536
    stats = place.json("shard", "stats", *target)
    assert stats["bytes"] == sum(shard["bytes"] for shard in stats["shards"]) > 0
    assert sum(shard["share"] for shard in stats["shards"]) == pytest.approx(1)
    for words in (("shard", "list"), ("shard", "stats")):
        assert len(place.ok(*words, *target).splitlines()) == 4


def test_a_clone_is_explained(place: Place, target: list[str]) -> None:
    told = place.ok("repo", "explain-clone", "demo", *target)
    assert "as stored" in told
    for stage in ("refs", "reach", "negotiate", "plan", "send"):
        assert re.search(rf"^{stage} +[0-9.]+ ms +[0-9.]+ ms$", told, re.M), told
    made = place.json("repo", "explain-clone", "demo", "--filter", "blob:none", *target)
    listed = git(place.source, "rev-list", "--objects", "--filter=blob:none", "--all").split("\n")
    assert made["objects"] == len(listed)
    assert made["seconds"] > 0
    assert "filter" in place.fails("repo", "explain-clone", "demo", "--filter", "x", *target)


def test_import_export_and_verify_go_round(place: Place, tmp_path: Path) -> None:
    done = place.json("repo", "import", "again", "source")
    assert (done["created"], done["refs"]) == (True, 2)
    assert place.json("repo", "import", "again", "source")["objects"] == 0
    verified = place.json("repo", "verify", "again")
    assert (verified["objects"], verified["findings"]) == (done["objects"], [])
    assert "are whole" in place.ok("repo", "verify", "again")
    bare = tmp_path / "again.git"
    assert place.json("repo", "export", "again", str(bare))["objects"] == done["objects"]
    git(bare, "fsck", "--strict")
    assert git(bare, "rev-list", "--objects", "--all") == git(
        place.source, "rev-list", "--objects", "--all"
    )
    assert "exists already" in place.fails("repo", "export", "again", str(bare))


@pytest.mark.parametrize("words", [["import", "x", "source"], ["export", "demo", "x"]])
def test_import_and_export_refuse_a_server(place: Place, words: list[str]) -> None:
    line = place.fails("repo", *words, "--server", "127.0.0.1:1")
    assert "use --data DIR" in line


def test_usage_errors_take_one_line_and_exit_with_2(place: Place) -> None:
    both = ["--server", "127.0.0.1:1", "--data", "data"]
    assert "not both" in place.fails("repo", "list", *both, code=2)
    assert "nope" in place.fails("nope", code=2)
    assert "--bad" in place.fails("repo", "list", "--bad", code=2)
    assert "repo show --help" in place.fails("repo", "show", code=2)
    assert "--shards" in place.fails("init", "x", "--shards", "0", code=2)
    assert "disagree" in place.fails("init", "x", "--shards", "3", "--shard-path", "y", code=2)
    assert "fish" in place.fails("completion", "tcsh", code=2)
    assert "HOST:PORT" in place.fails("serve", "--grpc", "here", code=2)


def test_failures_take_one_line_and_exit_with_1(place: Place) -> None:
    assert "does not exist" in place.fails("repo", "show", "none")
    assert "exists there already" in place.fails("init", "data")
    assert "no Git repository" in place.fails("repo", "import", "x", "nowhere")
    assert "no shardgit store" in place.fails("repo", "list", "--data", "source")
    assert "path does not exist" in place.fails("object", "get", "demo", "main:none")
    assert "does not exist" in place.fails("ref", "get", "demo", "refs/heads/none")
    assert "not a repository name" in place.fails("repo", "create", "../x")
    assert "127.0.0.1:1" in place.fails("repo", "list", "--server", "127.0.0.1:1")


def test_with_json_a_failure_is_an_object_on_standard_error(place: Place) -> None:
    done = shardgit("repo", "show", "none", "--json", cwd=place.folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr) == {
        "error": {
            "reason": "REPOSITORY_MISSING",
            "code": "NOT_FOUND",
            "message": "repository does not exist",
            "facts": {"repository": "none"},
        }
    }


def test_the_store_is_found_by_flag_then_variable_then_folder(place: Place, tmp_path: Path) -> None:
    assert shardgit("init", "other", cwd=tmp_path).returncode == 0
    none = shardgit("repo", "list", cwd=tmp_path)
    assert none.returncode == 1
    assert "--data DIR or --server" in none.stderr
    by_variable = {"SHARDGIT_DATA": str(place.data)}
    assert "demo" in shardgit("repo", "list", cwd=tmp_path, environment=by_variable).stdout
    by_flag = shardgit("repo", "list", "--data", "other", cwd=tmp_path, environment=by_variable)
    assert "demo" not in by_flag.stdout
    both = {**by_variable, "SHARDGIT_SERVER": "127.0.0.1:1"}
    assert shardgit("repo", "list", cwd=tmp_path, environment=both).returncode == 2
    flagged = shardgit("repo", "list", "--data", "other", cwd=tmp_path, environment=both)
    assert flagged.returncode == 0


def test_serve_check_starts_nothing_and_names_what_is_off(place: Place, tmp_path: Path) -> None:
    config = tmp_path / "shardgit.toml"
    config.write_text(f'data = "{place.data}"\nworkers = 3\n')
    document = place.json("serve", "--check", "--config", str(config))
    assert (document["workers"], document["http"]) == (3, "127.0.0.1:7421")
    config.write_text("colour = 1\n")
    assert "key=colour" in place.fails("serve", "--check", "--config", str(config), code=2)
    assert "no shardgit store" in place.fails("serve", "--check", "--data", "source")


def test_a_reader_that_leaves_early_is_no_error(place: Place) -> None:
    for words in ("object list demo", "ref list demo", "object list demo --json"):
        command = f"{sys.executable} -m shardgit {words} | true"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=place.folder,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""


def test_an_interrupt_is_one_line_and_a_second_one_ends_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(typer.Exit) as caught, failing():
            raise KeyboardInterrupt
        assert caught.value.exit_code == 1
        assert capsys.readouterr().err == "shardgit: interrupted\n"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_mistake_of_ours_is_one_line_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(main, "command", lambda: broken)
    monkeypatch.delenv("SHARDGIT_DEBUG", raising=False)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("shardgit: internal error (cause=ZeroDivisionError: oh;")
    assert line.count("\n") == 1


def test_version_tells_kernel_facts_quickly(place: Place) -> None:
    facts = place.json("version")
    assert re.match(r"(libdeflate|zlib) ", facts["inflate"])
    assert facts["hash"].startswith("OpenSSL")
    assert f"inflate: {facts['inflate']}" in place.ok("version")
    loaded = "import sys, shardgit.cli.main, shardgit._fastpack; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    heavy = {"grpc", "aiohttp", "lmdb", "rich.progress", "structlog", "asyncio", "uvloop"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(place: Place, shell: str) -> None:
    assert "_SHARDGIT_COMPLETE" in place.ok("completion", shell)


def test_completion_completes(place: Place) -> None:
    words = {
        "_SHARDGIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "shardgit repo im",
        "COMP_CWORD": "2",
    }
    assert shardgit(cwd=place.folder, environment=words).stdout.split() == [
        "import-tree",
        "import",
    ]


def test_every_command_explains_itself_and_takes_json() -> None:
    runner = CliRunner()
    groups = {
        "": ["init", "serve", "version", "completion"],
        "repo": [
            "create",
            "list",
            "show",
            "delete",
            "rename",
            "fork",
            "import",
            "export",
            "verify",
        ],
        "ref": ["list", "get", "update", "log", "restore"],
        "object": ["get", "info", "list"],
        "shard": ["list", "stats"],
        "key": ["add", "list", "remove"],
        "backup": ["create", "list", "verify", "restore", "prune"],
    }
    of_a_target = {"list", "verify", "prune"}  # of backups, which need no store here
    for group, commands in groups.items():
        for command in commands:
            words = [*([group] if group else []), command, "--help"]
            result = runner.invoke(app, words, prog_name="shardgit")
            assert result.exit_code == 0
            if command != "completion":
                assert "--json" in result.output
            if group:
                assert "--server HOST:PORT" in result.output
                assert "--data DIR" in result.output or (
                    group == "backup" and command in of_a_target
                )


def test_an_import_over_a_second_shows_progress_on_a_terminal_only(place: Place) -> None:
    # A terminal is there, but the import is quick: no bar, only the result.
    controller, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "shardgit", "repo", "import", "bar", "source"],
            cwd=place.folder,
            env={**clean_environment(), "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
        ) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out.startswith("imported")
        shown = os.read(controller, 65_536) if select.select([controller], [], [], 0)[0] else b""
        assert b"Traceback" not in shown
    finally:
        os.close(terminal)
        os.close(controller)


def test_progress_shows_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    from shardgit.cli import output
    from shardgit.progress import Progress

    controller, terminal = pty.openpty()
    try:
        with os.fdopen(os.dup(terminal), "w") as screen:
            monkeypatch.setattr(sys, "stderr", screen)
            monkeypatch.setattr(output, "BAR_AFTER_S", 0.0)
            with output.progress_bar(quiet=False) as report:
                time.sleep(0.01)
                report(Progress("scanning packs", 1 << 20, 3 << 20, "bytes"))
                report(Progress("resolving deltas", 5, None, "objects"))
            screen.flush()
        shown = ""
        while "5 objects" not in shown and select.select([controller], [], [], 5)[0]:
            shown += os.read(controller, 65_536).decode("utf-8", "replace")
        assert "scanning packs" in shown
        assert "1.0 MiB of 3.0 MiB" in shown
        assert "5 objects" in shown
    finally:
        os.close(terminal)
        os.close(controller)
