"""How --help looks: arguments in capitals, whole sentences, the same with every typer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    import typer

_KINDS = {"int": "N", "int range": "N", "float": "N", "float range": "N", "path": "PATH"}
_KIND = re.compile(r" <([a-z ]+)>|(?<=[a-z]) (TEXT|INTEGER|FLOAT|INTEGER RANGE)$")
_RANGE = re.compile(r" *\[[0-9.<>=]*x[0-9.<>=]*\]|; [0-9.<>=]*x[0-9.<>=]*(?=\])")


def dress(app: typer.Typer) -> None:
    """Have an application and all that is in it print help our way."""
    app.info.cls = Group
    for command in app.registered_commands:
        command.cls = Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            dress(group.typer_instance)


class Command(TyperCommand):
    """A command."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line: [KEY [VALUE]] where one goes only with the other."""
        pieces = [self.options_metavar or ""]
        last = ""
        for one in reversed([each for each in self.get_params(ctx) if _is_argument(each)]):
            word = _name(one) + ("..." if one.nargs == -1 else "")
            last = f"{word} {last}".rstrip()
            if not one.required:
                last = f"[{last}]"
        return [*pieces, last] if last else pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write_parameters(self, ctx, formatter)


class Group(TyperGroup):
    """A command that has commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then each command with the first sentence of its help."""
        _write_parameters(self, ctx, formatter)
        rows = [
            (name, summary(found.help or ""))
            for name in self.list_commands(ctx)
            if (found := self.get_command(ctx, name)) is not None and not found.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def summary(text: str) -> str:
    """Return the first sentence of a help text, without its full stop."""
    text = " ".join(text.partition("\n\n")[0].split())
    end = re.search(r"(?<=\w)\.(?= [A-Z])", text)
    return text[: end.start()] if end else text.rstrip(".")


def parameter_rows(command: Any, ctx: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return arguments and options: how each is typed, and what it means."""
    arguments, options = [], []
    for one in command.get_params(ctx):
        record = one.get_help_record(ctx)
        if record is None:
            continue
        if _is_argument(one):
            arguments.append((_name(one), one.help or ""))
        else:
            options.append((_KIND.sub(_kind, record[0]), _RANGE.sub("", record[1])))
    return arguments, options


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    for title, rows in zip(("Arguments", "Options"), parameter_rows(command, ctx), strict=True):
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _kind(found: re.Match[str]) -> str:
    word = found[1] or found[2].lower().replace("integer", "int")
    return " " + _KINDS.get(word, "TEXT")
