"""The manual: every command with its arguments and options, as roff for man or as values for other pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardgit.cli.help import parameter_rows, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = (
    ("SHARDGIT_DATA", "Folder of the store, where no --data is given."),
    ("SHARDGIT_SERVER", "gRPC address of a server, where no --server is given."),
    ("SHARDGIT_TOKEN", "Token that is shown to that server."),
    (
        "SHARDGIT_CLIENT_CA",
        "PEM file of the authorities that a server's certificate is held against.",
    ),
    ("SHARDGIT_CLIENT_CERTIFICATE, SHARDGIT_CLIENT_KEY", "PEM files that are shown to a server."),
    ("SHARDGIT_DEBUG", "1: internal errors come with a traceback."),
)
FILES = (
    ("./data", "The store, where nothing else is said."),
    ("DIR/format", "What makes a folder a store."),
)
EXIT = (
    ("0", "Done."),
    ("1", "Refused or failed; one line on standard error says why."),
    ("2", "Usage."),
)
# The backslash first; a line that begins with a dot gets its own mark.
_ROFF = (
    ("\\", "\\e"),
    ("-", "\\-"),
    ("'", "\\(aq"),
    ("`", "\\(ga"),
    ('"', "\\(dq"),
    ("~", "\\(ti"),
    ("^", "\\(ha"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A command as it explains itself; rows are (what is typed, what it means)."""

    words: tuple[str, ...]
    usage: str
    summary: str
    blocks: tuple[tuple[str, bool], ...]  # paragraphs; True: as it stands, line by line
    arguments: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    is_group: bool


def entries(command: Any) -> Iterator[Entry]:
    """Return the command and all that are in it, each before its own."""
    yield from _entries(command, (), None)


def _entries(command: Any, words: tuple[str, ...], parent: Any) -> Iterator[Entry]:
    name = words[-1] if words else "shardgit"
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, help_option_names=["-h", "--help"]
    )
    arguments, options = parameter_rows(command, context)
    inner = getattr(command, "commands", None)
    yield Entry(
        words=words,
        usage=" ".join(["shardgit", *words, *command.collect_usage_pieces(context)]),
        summary=summary(command.help or ""),
        blocks=tuple(_blocks(command.help or "")),
        arguments=tuple(arguments),
        options=tuple(row for row in options if not row[0].startswith("-h,")),
        is_group=bool(inner),
    )
    for each in command.list_commands(context) if inner else ():
        found = command.get_command(context, each)
        if not found.hidden:
            yield from _entries(found, (*words, each), context)


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if lines[0].strip() == "\b":
            yield "\n".join(lines[1:]), True
        elif lines:
            yield " ".join(block.split()), False


def roff(command: Any, version: str) -> str:
    """Return the manual page shardgit(1)."""
    whole, *rest = entries(command)
    out = [f'.TH SHARDGIT 1 "" "shardgit {_escaped(version)}" "User Commands"', ".SH NAME"]
    out.append(f"shardgit \\- {_escaped(whole.summary[0].lower() + whole.summary[1:])}")
    out += [".SH SYNOPSIS", f".B {_escaped(whole.usage)}", ".SH DESCRIPTION"]
    out += _paragraphs(whole)
    out.append(".SH COMMANDS")
    for entry in rest:
        out.append(f".SS {_escaped(' '.join(('shardgit', *entry.words)))}")
        if not entry.is_group:
            out += [".nf", f".B {_escaped(entry.usage)}", ".fi", ".PP"]
        out += _paragraphs(entry)
        for row in (*entry.arguments, *entry.options):
            out += _tagged(*row)
    for title, rows in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("EXIT STATUS", EXIT)):
        out.append(f".SH {title}")
        for row in rows:
            out += _tagged(*row)
    out += [".SH SEE ALSO", ".BR git (1)"]
    return "\n".join(out) + "\n"


def _paragraphs(entry: Entry) -> list[str]:
    out: list[str] = []
    for text, verbatim in entry.blocks:
        if verbatim:
            out += [".PP", ".nf", *(_escaped(line) for line in text.splitlines()), ".fi"]
        else:
            out += [".PP", _escaped(text)]
    return out


def _tagged(word: str, meaning: str) -> list[str]:
    return [".TP", f".B {_escaped(word)}", _escaped(meaning)]


def _escaped(text: str) -> str:
    """Return text that roff prints as it is: no backslash, hyphen, dot or quote means anything."""
    for plain, written in _ROFF:
        text = text.replace(plain, written)
    return f"\\&{text}" if text.startswith(".") else text
