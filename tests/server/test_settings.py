"""Settings over gRPC and by command: read, set, unset, compare-and-set, refused."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from served import shardgit as command

import shardgit.aio
from shardgit.errors import Conflict, InvalidArgument, RepositoryMissing
from shardgit.node import create_store, open_store
from shardgit.rpc.server import make_server
from shardgit.service.configuring import Configuring
from shardgit.service.repositories import Repositories
from shardgit.service.setting_keys import parse_value
from shardgit.v1 import repository_pb2, repository_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from shardgit.service.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "data", shards=1)
    with open_store(tmp_path / "data") as opened:
        Repositories(opened).create("demo")
        yield opened


@pytest.fixture
async def repo(store: Store) -> AsyncIterator[shardgit.aio.Repo]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = await make_server(store, address)
    await server.start()
    async with shardgit.aio.connect(address) as client:
        yield client.repo("demo")
    await server.stop(5)


async def test_settings_are_read_and_changed(repo: shardgit.aio.Repo) -> None:
    before = await repo.settings()
    assert before.changed == ()
    assert before.values["receive.deny_deletes"] is False
    changes = {
        "receive.deny_deletes": True,
        "receive.hidden_refs": ["refs/x"],
        "receive.protected_refs": [{"pattern": "refs/heads/main"}],
        "fsck.severities.badDate": "warn",
    }
    after = await repo.update_settings(changes, expected=before.revision)
    assert after.revision > before.revision
    assert after.changed == (
        "receive.deny_deletes",
        "receive.protected_refs",
        "receive.hidden_refs",
        "fsck.severities",
    )
    assert await repo.settings() == after
    assert after.values["fsck.severities"] == {"badDate": "warn"}
    back = await repo.update_settings(dict.fromkeys(changes))
    assert back.values == before.values


async def test_a_change_loses_against_another(repo: shardgit.aio.Repo) -> None:
    seen = await repo.settings()
    await repo.update_settings({"lfs.enabled": False})
    with pytest.raises(Conflict):
        await repo.update_settings({"receive.deny_deletes": True}, expected=seen.revision)
    assert (await repo.settings()).changed == ("lfs.enabled",)


async def test_setting_what_stands_changes_nothing(repo: shardgit.aio.Repo) -> None:
    first = await repo.update_settings({"lfs.enabled": False})
    assert await repo.update_settings({"lfs.enabled": False}) == first


async def test_all_keys_or_none(repo: shardgit.aio.Repo) -> None:
    with pytest.raises(InvalidArgument, match="unknown setting") as caught:
        await repo.update_settings({"lfs.enabled": False, "lfs.size": 1})
    assert caught.value.facts["known"] == "lfs.enabled"
    assert (await repo.settings()).changed == ()


@pytest.mark.parametrize("text", ["", "null", "{", "[" * 100_000])
async def test_values_that_are_no_json_are_refused(repo: shardgit.aio.Repo, text: str) -> None:
    request = repository_pb2.UpdateSettingsRequest(name="demo", values={"hooks": text})
    with pytest.raises(InvalidArgument):
        await repo.client.call(repository_pb2_grpc.RepositoryServiceStub, "UpdateSettings", request)


async def test_a_key_is_set_or_unset(repo: shardgit.aio.Repo) -> None:
    request = repository_pb2.UpdateSettingsRequest(
        name="demo", values={"lfs.enabled": "true"}, unset=["lfs.enabled"]
    )
    with pytest.raises(InvalidArgument, match="both set and unset"):
        await repo.client.call(repository_pb2_grpc.RepositoryServiceStub, "UpdateSettings", request)


async def test_a_missing_repository_has_no_settings(repo: shardgit.aio.Repo) -> None:
    nobody = repo.client.repo("nobody")
    with pytest.raises(RepositoryMissing):
        await nobody.settings()
    with pytest.raises(RepositoryMissing):
        await nobody.update_settings({"lfs.enabled": True})


@pytest.mark.parametrize("value", [["mine"], 17, "mine" * 300])
def test_a_refused_secret_is_not_repeated(store: Store, value: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Configuring(store).update("demo", {"signed_push.nonce_seed": value})
    assert "mine" not in str(refused.value)
    assert "17" not in str(refused.value)


def test_a_refused_url_is_repeated_without_its_password(store: Store) -> None:
    for key, value in (
        ("hooks", '[{"kind": "http", "target": "https://me:mine@host/", "event": 1'),
        ("fetch.promisors", "https://me:mine@host/"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            parse_value(key, value)
        assert "https://***@host" in str(refused.value)
        assert "mine" not in str(refused.value)
    for hook in ({"kind": "program", "target": "https://me:mine@host/", "event": "update"},):
        with pytest.raises(InvalidArgument) as refused:
            Configuring(store).update("demo", {"hooks": [hook]})
        assert "mine" not in str(refused.value)


def test_signed_pushes_get_a_secret_once(store: Store) -> None:
    configuring = Configuring(store)
    seed = configuring.update("demo", {"signed_push.mode": "allowed"}).settings
    assert len(seed.signed_push.nonce_seed) == 64
    later = configuring.update("demo", {"signed_push.mode": "required"}).settings
    assert later.signed_push.nonce_seed == seed.signed_push.nonce_seed
    given = {"signed_push.nonce_seed": "mine"}
    assert configuring.update("demo", given).settings.signed_push.nonce_seed == "mine"


def test_settings_outlive_a_rename(store: Store) -> None:
    Configuring(store).update("demo", {"lfs.enabled": False})
    Repositories(store).rename("demo", "other")
    assert not Configuring(store).get("other").settings.lfs.enabled


def test_the_command(store: Store, tmp_path: Path) -> None:
    def run(*words: str, code: int = 0) -> str:
        done = command("repo", "config", "demo", *words, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    key = "receive.max_push_bytes"
    assert run(key) == "0\n"
    assert run(key, "500m") == ""
    assert run(key) == "524288000\n"
    assert run(key, "--json") == '{\n  "receive.max_push_bytes": 524288000\n}\n'
    assert run("transfer.hidden_refs", "refs/a,refs/b") == ""
    run("signed_push.mode", "allowed")
    listed = [line.split() for line in run().splitlines()]
    assert listed[0] == ["KEY", "VALUE"]
    assert [key, "524288000", "*"] in listed
    assert ["lfs.enabled", "true"] in listed
    assert ["signed_push.nonce_seed", "(secret)", "*"] in listed
    assert ["transfer.hidden_refs", '["refs/a",', '"refs/b"]', "*"] in listed
    run(key, "--unset")
    assert run(key) == "0\n"
    assert "known=lfs.enabled" in run("lfs.enable", code=1)
    assert "setting has a bad value" in run(key, "much", code=1)
    run("--unset", code=2)
    run(key, "1", "--unset", code=2)
