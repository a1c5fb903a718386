"""Words that real shells complete: commands, options, repositories, refs, shards and settings."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from served import clean_environment, git, serving, shardgit, small_repository

if TYPE_CHECKING:
    from pathlib import Path

# What stands before the cursor, and what is offered for its last word.
LINES: tuple[tuple[str, set[str]], ...] = (
    ("shardgit re", {"ref", "repo"}),
    ("shardgit repo im", {"import", "import-tree"}),
    ("shardgit repo show --j", {"--json"}),
    ("shardgit repo show te", {"team/one", "team/two"}),
    ("shardgit repo fork team/o", {"team/one"}),
    ("shardgit ref get team/one refs/", {"refs/heads/main", "refs/tags/v1"}),
    ("shardgit object get al", {"alone"}),
    ("shardgit shard drain ", {"0", "1", "2"}),
    ("shardgit shard plan --drain ", {"0", "1", "2"}),
    ("shardgit repo config alone receive.max_push_b", {"receive.max_push_bytes"}),
    ("shardgit repo create --object-format ", {"sha1", "sha256"}),
    ("shardgit completion z", {"zsh"}),
    ("shardgit ref get alone refs/other/", {"refs/other/café"}),  # others would be run
    ("shardgit repo show nothing-like-it", set()),
)

IN_SHELLS = [LINES[n] for n in (0, 2, 3, 7)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three repositories in ./data, and the command on the path."""
    folder = tmp_path_factory.mktemp("completing")
    small_repository(folder / "source")
    for words in (
        ("init", "data", "--shards", "3"),
        ("repo", "import", "team/one", "source"),
        ("repo", "create", "team/two"),
        ("repo", "create", "alone"),
    ):
        done = shardgit(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    for name in ("$(touch${IFS}made)", "`touch${IFS}made`", "a;b", "a'b", "café"):
        git(folder / "source", "update-ref", f"refs/other/{name}", "HEAD")
    assert shardgit("repo", "import", "alone", "source", cwd=folder).returncode == 0
    (folder / "bin").mkdir()
    (folder / "bin" / "shardgit").write_text(f'#!/bin/sh\nexec {sys.executable} -m shardgit "$@"\n')
    (folder / "bin" / "shardgit").chmod(0o755)
    return folder


def environment(place: Path) -> dict[str, str]:
    return {**clean_environment(), "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "TERM": "dumb"}


def offered(place: Path, line: str, **variables: str) -> set[str]:
    """Return what the command offers at the end of a line, as bash asks it."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = shardgit(
        cwd=place, environment={"_SHARDGIT_COMPLETE": "complete_bash", **asked, **variables}
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(("line", "words"), LINES, ids=[line for line, _ in LINES])
def test_a_word_is_completed(place: Path, line: str, words: set[str]) -> None:
    assert offered(place, line) == words


def test_lines_are_completed_by_bash(place: Path) -> None:
    script = ['eval "$(shardgit completion bash)"']
    for line, _ in IN_SHELLS:
        words = " ".join(f"'{word}'" for word in line.split(" "))
        script.append(f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))")
        script.append('_shardgit_completion shardgit; echo "${COMPREPLY[*]}"')
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", "\n".join(script)],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert [set(line.split()) for line in done.stdout.splitlines()] == [
        words for _, words in IN_SHELLS
    ]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_lines_are_completed_by_fish(place: Path) -> None:
    asks = [f"complete -C '{line}' | string split -f1 \\t; echo ===" for line, _ in IN_SHELLS]
    done = subprocess.run(
        ["fish", "--no-config", "-c", "shardgit completion fish | source\n" + "\n".join(asks)],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = [set(answer.split()) for answer in re.split(r"^===$", done.stdout, flags=re.M)[:-1]]
    assert found == [words for _, words in IN_SHELLS]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_lines_are_completed_by_zsh(place: Path) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(place)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**environment(place), "HOME": str(place)})
    try:
        setup = (
            "autoload -Uz compinit; compinit -u -D; unsetopt zle_bracketed_paste prompt_sp;"
            ' PROMPT="> "; eval "$(shardgit completion zsh)"; echo REA""DY\n'
        )
        os.write(terminal, setup.encode())
        read_until(terminal, r"READY\r?\n")
        os.write(terminal, b"shardgit repo show al\t")
        read_until(terminal, r"show alone ")
        os.write(terminal, b"\x15shardgit shard dr\t")
        read_until(terminal, r"shard drain ")
        os.write(terminal, b"\t")
        read_until(terminal, r"0 +1 +2")
    finally:
        os.close(terminal)  # hangs up
        os.waitpid(process, 0)


def read_until(terminal: int, pattern: str) -> None:
    """Read what a terminal shows until it has that; fails after a minute."""
    shown, end = "", time.monotonic() + 60
    while re.search(pattern, shown) is None:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65_536).decode(errors="replace")


def test_a_line_with_another_store_completes_from_there(place: Path, tmp_path: Path) -> None:
    for words in (("init", "other"), ("repo", "create", "elsewhere")):
        told = {"SHARDGIT_DATA": "other"} if words[0] == "repo" else {}
        assert shardgit(*words, cwd=tmp_path, environment=told).returncode == 0
    assert offered(place, f"shardgit repo show --data {tmp_path}/other el") == {"elsewhere"}
    assert offered(tmp_path, "shardgit repo show el", SHARDGIT_DATA="other") == {"elsewhere"}
    assert offered(tmp_path, "shardgit repo show --data ~/other el", HOME=str(tmp_path)) == {
        "elsewhere"
    }
    assert offered(tmp_path, "shardgit repo show el") == set()


def test_a_line_with_a_server_completes_from_it(place: Path, tmp_path: Path) -> None:
    with serving(place / "data", "--workers", "1") as server:
        line = f"shardgit repo show --server {server.grpc} "
        assert offered(tmp_path, f"{line}team/") == {"team/one", "team/two"}
        assert offered(tmp_path, "shardgit shard drain ", SHARDGIT_SERVER=server.grpc) == set("012")
    assert offered(tmp_path, f"{line}team/") == set()


def test_a_server_that_does_not_answer_is_not_waited_for(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert offered(place, f"shardgit repo show --server {address} te") == set()
