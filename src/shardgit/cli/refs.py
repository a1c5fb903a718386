"""shardgit ref: list and get refs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardgit.cli.context import (
    DataOption,
    JsonOption,
    ServerOption,
    connected,
    failing,
    opened,
    print_json,
    server_address,
)

if TYPE_CHECKING:
    from shardgit.protocol.upload_pack import AdvertisedRef

app = typer.Typer(help="Refs.", no_args_is_help=True)
RepoArgument = Annotated[str, typer.Argument(metavar="REPO")]


@app.command("list")
def list_(
    repo: RepoArgument,
    prefix: Annotated[str, typer.Option(help="Only refs that start so, such as refs/tags/.")] = "",
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """List refs with what they name, as git for-each-ref does."""
    with failing(json=json):
        found = [ref for ref in _all(repo, prefix, server_address(server, data), data) if ref.name != b"HEAD"]
        if json:
            print_json({"refs": [_plain(ref) for ref in found]})
            return
        for ref in found:
            typer.echo(f"{ref.target.hex() if ref.target else '-'} {ref.name.decode('utf-8', 'replace')}")


@app.command()
def get(
    repo: RepoArgument,
    name: Annotated[str, typer.Argument(metavar="REF", help="Full name, such as refs/heads/main, or HEAD.")],
    data: DataOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Print what a ref names."""
    from shardgit.errors import RefMissing

    with failing(json=json):
        found = [ref for ref in _all(repo, name, server_address(server, data), data) if ref.name == name.encode()]
        if not found:
            raise RefMissing("ref does not exist", ref=name, repository=repo)
        if json:
            print_json(_plain(found[0]))
        else:
            target = found[0].target
            typer.echo(target.hex() if target else f"unborn: {(found[0].symbolic or b'').decode('utf-8', 'replace')}")


def _all(repo: str, prefix: str, address: str | None, data: object) -> list[AdvertisedRef]:
    from pathlib import Path

    from shardgit.service.fetch import advertised

    if address:
        with connected(address) as client:
            remote = client.repo(repo)
            found = [remote.ref(b"HEAD")] if prefix == "HEAD" else remote.refs(prefix=prefix)
            return [_advertised(ref) for ref in found]
    assert data is None or isinstance(data, Path)
    with opened(data) as store:
        return advertised(store, repo, (prefix.encode(),) if prefix else ())


def _advertised(ref: object) -> AdvertisedRef:
    from shardgit.client import Ref
    from shardgit.protocol.upload_pack import AdvertisedRef

    assert isinstance(ref, Ref)
    return AdvertisedRef(ref.name, ref.target, ref.peeled, ref.symbolic)


def _plain(ref: AdvertisedRef) -> dict[str, str | None]:
    return {
        "name": ref.name.decode("utf-8", "replace"),
        "target": ref.target.hex() if ref.target else None,
        "peeled": ref.peeled.hex() if ref.peeled else None,
        "symbolic": ref.symbolic.decode("utf-8", "replace") if ref.symbolic else None,
    }
