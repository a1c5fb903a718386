"""The shardgit command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardgit.cli import objects, refs, repos, shards
from shardgit.cli.context import DataOption, JsonOption, data_folder, failing, print_json

app = typer.Typer(
    name="shardgit",
    help="The storage tier of a Git host: objects in shards, cloned by stock git.",
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


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the new store; must be empty or missing.")],
    shards: Annotated[int, typer.Option(min=1, max=256, help="Number of shards.")] = 1,
    shard_path: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Folder of a shard, once for each; sets their number.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make an empty store.

    Example: shardgit init ./data --shards 4
    """
    from shardgit.node import create_store

    with failing(json=json):
        layout = create_store(folder, shards=shards, shard_paths=shard_path or None)
        if json:
            print_json({"store": layout.store_id, "shards": [str(place.path) for place in layout.shards]})
        else:
            typer.echo(f"made store {layout.store_id} with {len(layout.shards)} shard(s) in {folder}")


@app.command()
def serve(
    data: DataOption = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file; SHARDGIT_* and flags win.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; one a core by default.")] = None,
    grpc: Annotated[str | None, typer.Option(metavar="ADDR", help="Default 127.0.0.1:7420.")] = None,
    http: Annotated[str | None, typer.Option(metavar="ADDR", help="Default 127.0.0.1:7421.")] = None,
    admin: Annotated[str | None, typer.Option(metavar="ADDR", help="Default 127.0.0.1:7423.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check configuration and store, then leave.")] = False,
    json: JsonOption = False,
) -> None:
    """Serve a store: git over HTTP, and gRPC.

    Example: shardgit serve --data ./data
    """
    from shardgit.blocks.layout import open_layout
    from shardgit.config import ServeConfig, load_config

    with failing(json=json):
        flags = {"workers": workers, "grpc": grpc, "http": http, "admin": admin}
        settled = load_config(config, flags={**flags, "data": str(data_folder(data)) if data else None})
        layout = open_layout(settled.folder)
        if check:
            if json:
                print_json({"ok": True, "store": layout.store_id})
            else:
                typer.echo(f"configuration and store {layout.store_id} are fine")
            return

        def ready(now: ServeConfig) -> None:
            if json:
                print_json({"http": now.http, "grpc": now.grpc, "admin": now.admin})
            else:
                typer.echo(f"serving {settled.folder}: http://{now.http}/NAME.git, gRPC on {now.grpc}, admin on {now.admin}")

        from shardgit.supervisor import serve as supervise

        raise typer.Exit(supervise(settled, ready=ready))


@app.command()
def version(json: JsonOption = False) -> None:
    """Print the version and what the kernels are built with."""
    from shardgit._fastpack import features
    from shardgit.version import VERSION

    facts = features()
    if json:
        print_json({"version": VERSION, **facts})
    else:
        typer.echo(f"shardgit {VERSION}\ninflate: {facts['inflate']}\nhash: {facts['hash']}\nzlib: {facts['zlib']}")


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")] = "bash") -> None:
    """Print a completion script: eval "$(shardgit completion bash)"."""
    from typer._completion_shared import get_completion_script

    from shardgit.errors import InvalidArgument

    with failing():
        if shell not in ("bash", "zsh", "fish"):
            raise InvalidArgument("no completion for that shell", shell=shell)
        typer.echo(get_completion_script(prog_name="shardgit", complete_var="_SHARDGIT_COMPLETE", shell=shell))


def main() -> None:
    """Run the command."""
    app(prog_name="shardgit")
