"""The shardgit command."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli import (
    backups,
    bench,
    cluster,
    collecting,
    keys,
    mirrors,
    objects,
    quotas,
    refs,
    repos,
    shards,
    store,
    tokens,
    undeleting,
)
from shardgit.cli import verifying as _verifying  # noqa: F401 - adds commands to shards
from shardgit.cli.completing import one_of
from shardgit.cli.context import (
    FAILED,
    USAGE,
    DataOption,
    JsonOption,
    UsageRefused,
    failing,
)
from shardgit.cli.help import dress
from shardgit.cli.output import plural, print_json

if TYPE_CHECKING:
    from shardgit.config import ServeConfig

HELP = """The storage tier of a Git host: objects in shards, cloned by stock git.

\b
Start here:
  shardgit init ./data
  shardgit repo import demo ~/src/project
  shardgit serve
  git clone http://127.0.0.1:7421/demo.git

Commands work on the store in --data DIR (SHARDGIT_DATA, else ./data), also while it is served, or
through --server HOST:PORT (SHARDGIT_SERVER). Exit codes: 0 done, 1 refused or failed, 2 usage.
"""
COMPLETE_VARIABLE = "_SHARDGIT_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
app = typer.Typer(
    name="shardgit",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(repos.app, name="repo")
app.add_typer(refs.app, name="ref")
app.add_typer(objects.app, name="object")
app.add_typer(shards.app, name="shard")
app.add_typer(cluster.app, name="cluster")
shards.app.command("gc")(collecting.gc)
repos.app.command("deleted")(undeleting.deleted)
repos.app.command("undelete")(undeleting.undelete)
app.add_typer(backups.app, name="backup")
app.add_typer(keys.app, name="key")
app.add_typer(tokens.app, name="token")
app.add_typer(quotas.app, name="quota")
app.add_typer(mirrors.app, name="mirror")
app.add_typer(store.app, name="store")
app.command("bench")(bench.bench)


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the new store; empty or missing.")
    ],
    shards: Annotated[int, typer.Option(min=1, max=100, help="Number of shards.")] = 1,
    shard_path: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Folder of a shard, once for each; sets their number."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make an empty store.

    \b
    Examples:
      shardgit init ./data --shards 4
      shardgit init ./data --shard-path /disk1/shard --shard-path /disk2/shard
    """
    with failing(json=json):
        from shardgit.node import create_store

        if shard_path and shards not in (1, len(shard_path)):
            raise UsageRefused("--shards and --shard-path disagree", shards=shards)
        layout = create_store(folder, shards=shards, shard_paths=shard_path or None)
        if json:
            paths = [str(place.path) for place in layout.shards]
            print_json({"store": layout.store_id, "path": str(folder), "shards": paths})
        else:
            count = len(layout.shards)
            typer.echo(f"made store {layout.store_id} with {plural(count, 'shard')} in {folder}")


@app.command()
def serve(  # noqa: PLR0913, PLR0917
    data: DataOption = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file; SHARDGIT_* and flags win.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Worker processes; one a core by default.")
    ] = None,
    grpc: Annotated[
        str | None, typer.Option(metavar="ADDR", help="gRPC; default 127.0.0.1:7420.")
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Git over HTTP; default 127.0.0.1:7421.")
    ] = None,
    ssh: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help='Git over SSH; default 127.0.0.1:7422; "off" for none.'),
    ] = None,
    admin: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Metrics, health; default 127.0.0.1:7423.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check configuration and store, start nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Serve a store: git over HTTP and SSH, and gRPC. SIGTERM and ctrl-C drain; a second one kills.

    SIGHUP reads the configuration again and replaces the workers one by one; no request is cut.

    \b
    Examples:
      shardgit serve --data ./data
      shardgit serve --config /etc/shardgit.toml --check
    """
    with failing(json=json):
        from shardgit import opening
        from shardgit.config import load_config
        from shardgit.errors import InvalidArgument
        from shardgit.extras import has_extra

        flags: dict[str, object] = {"workers": workers, "grpc": grpc, "http": http, "ssh": ssh}
        flags["admin"] = admin
        flags["data"] = str(data) if data else None

        def read() -> ServeConfig:
            return load_config(config, flags=flags)

        try:
            settled = read()
        except InvalidArgument as error:
            raise UsageRefused(error.message, **error.facts) from error
        what = opening.check(settled)
        if check:
            if json:
                kind, name = what.split(" ", 1)
                print_json({kind: name, **_plain(settled)})
            else:
                typer.echo(f"configuration is sound; {what} in {settled.data}")
            return
        from shardgit.supervisor import serve as supervise

        def ready(now: ServeConfig) -> None:
            if json:
                print_json(_plain(now))
            else:
                ssh = f" and ssh://git@{now.ssh}/NAME.git" if "ssh" in now.listens else ""
                node = (
                    f"; node {now.cluster.node_name} of cluster {now.cluster.name},"
                    f" peers {now.cluster.listen}"
                    if now.in_cluster
                    else ""
                )
                http = "https" if now.tls_certificate else "http"
                who = "; a token or key is required" if now.needs_auth else ""
                typer.echo(
                    f"serving on {http}://{now.http}/NAME.git{ssh}, gRPC {now.grpc},"
                    f" admin http://{now.admin}/{who}{node}"
                )
                if now.needs_auth and not now.tls_certificate and not now.on_loopback:
                    words = "tokens come in clear beyond this machine; see tls_certificate"
                    typer.echo(f"shardgit: {words}", err=True)
                if not now.needs_auth and not now.on_loopback:
                    words = "auth is off, and not only this machine can connect: anybody may do anything"
                    typer.echo(f"shardgit: {words}", err=True)
                if not now.ssh and not has_extra("ssh"):
                    typer.echo("shardgit: no SSH: pip install 'shardgit[ssh]'", err=True)

        raise typer.Exit(supervise(settled, ready=ready, read_again=read))


@app.command()
def version(json: JsonOption = False) -> None:
    """Print the version and what the kernels are built with."""
    with failing(json=json):
        from shardgit._fastpack import features
        from shardgit.version import VERSION

        facts = features()
        if json:
            print_json({"version": VERSION, **facts})
            return
        typer.echo(f"shardgit {VERSION}")
        for key, value in facts.items():
            typer.echo(f"{key}: {value}")


@app.command()
def completion(
    shell: Annotated[
        str,
        typer.Argument(metavar="SHELL", help="bash, zsh or fish.", autocompletion=one_of(*SHELLS)),
    ] = "bash",
) -> None:
    """Print a completion script.

    \b
    Examples:
      eval "$(shardgit completion bash)"
      shardgit completion fish > ~/.config/fish/completions/shardgit.fish
    """
    with failing():
        from typer._completion_shared import get_completion_script

        if shell not in SHELLS:
            raise UsageRefused("no completion for that shell", shell=shell, known="|".join(SHELLS))
        typer.echo(
            get_completion_script(prog_name="shardgit", complete_var=COMPLETE_VARIABLE, shell=shell)
        )


@app.command("man")
def man() -> None:
    """Print the manual page, for man.

    \b
    Examples:
      shardgit man | man -l -
      shardgit man > /usr/local/share/man/man1/shardgit.1
    """
    with failing():
        from shardgit.cli.manual import roff
        from shardgit.version import VERSION

        typer.echo(roff(command(), VERSION), nl=False)


def _plain(config: ServeConfig) -> dict[str, object]:
    import msgspec

    found = msgspec.to_builtins(config)
    assert isinstance(found, dict)
    return found


dress(app)


@functools.cache
def command() -> typer.core.TyperGroup:
    """Return what runs a command line; all verbs are made ready, which is a tenth of a second."""
    made = typer.main.get_command(app)
    assert isinstance(made, typer.core.TyperGroup)
    return made


def main() -> None:
    """Run the command; usage errors take one line, and nothing ends in a traceback."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its lines beside our one
    if COMPLETE_VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
    try:
        code = command()(prog_name="shardgit", standalone_mode=False)
    except typer.Abort:
        _say("interrupted")
        code = FAILED
    except KeyboardInterrupt:
        _say("interrupted")
        code = FAILED
    except Exception as error:
        code = _unexpected(error)
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: Exception) -> int:
    # Typer brings its own copy of click from some version on, so its usage errors are known by
    # what they can do.
    tell = getattr(error, "format_message", None)
    if tell is not None:
        text = tell()
        if type(error).__name__ == "NoArgsIsHelpError":  # its text is the help itself
            sys.stderr.write(f"{text}\n")
            return USAGE
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "shardgit"
        _say(f"{text.rstrip('.')} (see {where} --help)")
        return USAGE
    if os.environ.get("SHARDGIT_DEBUG"):
        raise error
    _say(f"internal error (cause={type(error).__name__}: {error}; SHARDGIT_DEBUG=1 tells more)")
    return FAILED


def _say(text: str) -> None:
    sys.stderr.write(f"shardgit: {' '.join(text.split())}\n")
