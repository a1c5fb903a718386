"""docs/tutorial.md works as written: its blocks are run, what it shows is compared with what is printed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from served import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
PORTS = {"grpc": 7420, "http": 7421, "ssh": 7422, "admin": 7423}
SERVER, INSTALL = "second terminal", "install"
_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.M | re.S)
# What differs from run to run, and what it is compared as.
_VOLATILE = (
    (r"\d{8}T\d{9}Z-[0-9a-f]{8}", "BACKUP"),
    (r"\d{4}-\d\d-\d\d(?: \d\d:\d\d(?::\d\d)?(?:Z|\+00:00| UTC)?)?", "TIME"),
    (r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", "UUID"),
    (r"\b[0-9a-f]{40}\b|\b[0-9a-f]{16}\b", "ID"),
    (r"(?<= in )/\S*/tutorial(?=/)", "FOLDER"),
    (r"\b[\d.,]+ (?:[KMG]i)?B(?:/s)?", "SIZE"),
    (r"\b[\d.]+ s\b", "TIME-TAKEN"),
    (r"(?<=TIME {2})\w+(?= +until)", "WHO"),
    (r"\b[\d.]+%", "SHARE"),
    (r"\b\d+(?= (?:of|blocks|partitions|copies|rows)\b)", "COUNT"),
)


@dataclass(frozen=True)
class Block:
    """A block of the page; ``shown`` is what stands behind it as its output, None for nothing."""

    kind: str
    title: str
    text: str
    shown: str | None


def blocks(text: str) -> list[Block]:
    found = list(_BLOCK.finditer(text))
    assert text.count("```") == 2 * len(found), "a block is not closed, or has other words"
    out = []
    for here, after in zip(found, [*found[1:], None], strict=True):
        if here[1] == "text":
            continue
        output = after[3] if after is not None and after[1] == "text" else None
        out.append(Block(here[1], here[2] or "", here[3], output))
    return out


def steady(text: str) -> str:
    """Return output without what differs from run to run, nor how columns are aligned."""
    for pattern, word in _VOLATILE:
        text = re.sub(pattern, word, text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def free_ports() -> dict[str, int]:
    """Return the ports of the page, others where somebody has one of them."""
    with ExitStack() as held:
        try:
            for port in PORTS.values():
                held.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            held.close()
            taken = {
                key: held.enter_context(socket.create_server(("127.0.0.1", 0))) for key in PORTS
            }
            return {key: one.getsockname()[1] for key, one in taken.items()}
        return dict(PORTS)


class Shell:
    """A terminal: one bash that keeps its folder and variables from block to block."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-e"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, text: str) -> str:
        """Run a block; return what it prints."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{text}\necho ':done:'\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line == ":done:\n":
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"{text}\nfailed:\n{''.join(lines)}")

    def close(self) -> None:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.wait(timeout=60)
        self._bash.stdout.close()


@contextmanager
def second_terminal(text: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run what serves until the block is left, then press Ctrl-C; gives the line that says where it serves."""
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-c", text],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder / "server.log").read_text()
        yield line
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    text, ports = PAGE.read_text(), free_ports()
    environment = {
        **clean_environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "GIT_TERMINAL_PROMPT": "0",
        "SHARDGIT_WORKERS": "1",  # as quick as may be, beside other tests
    }
    for key, port in ports.items():
        if port != PORTS[key]:
            text = text.replace(f"127.0.0.1:{PORTS[key]}", f"127.0.0.1:{port}")
            environment[f"SHARDGIT_{key.upper()}"] = f"127.0.0.1:{port}"
    found = blocks(text)
    assert [one.title for one in found].count(INSTALL) == 1  # tried by make wheel
    with ExitStack() as stack, ExitStack() as server:
        shell = Shell(tmp_path, environment)
        stack.callback(shell.close)
        for block in found:
            if block.title == INSTALL:
                continue
            if block.kind == "python":
                (tmp_path / "tutorial" / block.title).write_text(block.text)
                continue
            assert block.kind == "sh"
            if block.title == SERVER:
                server.close()
                told = server.enter_context(
                    second_terminal(block.text, tmp_path / "tutorial", environment)
                )
            else:
                told = shell.run(block.text)
            assert steady(told) == steady(block.shown or ""), block.text


def test_output_that_differs_is_told_from_output_that_does_not() -> None:
    same = "made store 62b28e40-83e2-4d45-9ba0-2a65888b2a1b with 2 shards in data"
    other = "made store 00000000-83e2-4d45-9ba0-2a65888b2a1b with 2  shards in data\n"
    assert steady(same) == steady(other)
    assert steady(same) != steady(other.replace("2  shards", "3 shards"))
    assert steady("Hello.\n") != steady("Hello\n")


def test_a_block_that_fails_fails_the_tutorial(tmp_path: Path) -> None:
    shell = Shell(tmp_path, clean_environment())
    assert shell.run("cd / && A=1") == ""
    assert shell.run("pwd; echo $A") == "/\n1\n"
    with pytest.raises(AssertionError, match="failed:\nls: "):
        shell.run("ls /no-such-folder\necho never")
    shell.close()
