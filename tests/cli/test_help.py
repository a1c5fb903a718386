"""--help of every command: readable, whole, each argument explained."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from shardgit.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Iterator


def commands(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *words, name)


ALL = list(commands(typer.main.get_command(app)))


def help_of(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="shardgit", terminal_width=80)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_is_readable(words: tuple[str, ...]) -> None:
    text = help_of(*words)
    assert text.startswith(f"Usage: {' '.join(('shardgit', *words))} [OPTIONS]")
    assert not re.search(
        r"(?<![@^])[{]|<(str|int|path|float|list)|\.\.\.\s*$|\[required\]|x[<>]=", text
    )
    for section in ("Arguments", "Options"):
        found = re.search(rf"^{section}:\n((?:  .*\n)+)", text, re.M)
        rows = re.findall(r"^  (\S+(?: \S+)*)(?:  +(\S.*))?$", found[1], re.M) if found else []
        for name, told in rows:
            assert told, (words, name)
    assert max(map(len, text.splitlines())) <= 90  # examples are not wrapped


def test_what_goes_only_with_another_stands_inside_it() -> None:
    assert help_of("repo", "config").startswith(
        "Usage: shardgit repo config [OPTIONS] NAME [KEY [VALUE]]\n"
    )
    assert "OPTIONS] REPO [FILE...]\n" in help_of("object", "put")
    assert "--shards N         Number of shards.  [default: 1]\n" in help_of("init")


def test_help_loads_no_engine() -> None:
    code = "import sys, shardgit.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"grpc", "aiohttp", "lmdb", "shardgit.service.store", "shardgit.telemetry"}
