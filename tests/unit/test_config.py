"""Configuration: a file, then variables, then flags; every mistake is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from shardgit.addresses import split_address
from shardgit.config import ServeConfig, load_config
from shardgit.errors import InvalidArgument
from shardgit.worker import _hook_policy

if TYPE_CHECKING:
    from pathlib import Path


PEERS = '[blocks]\nurl = "s3://b"\n[cluster]\netcd = ["http://a:1"]\nnode = "n"\n'
TLS = 'peer_ca = "ca.pem"\npeer_certificate = "node.pem"\npeer_key = "node.key"\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "shardgit.toml"
    file.write_text(text)
    return file


def test_without_anything_the_defaults_are_on_loopback() -> None:
    config = load_config(None, environment={})
    assert config == ServeConfig()
    assert (config.grpc, config.http, config.ssh, config.admin) == (
        "127.0.0.1:7420",
        "127.0.0.1:7421",
        "127.0.0.1:7422",
        "127.0.0.1:7423",
    )


def test_flags_beat_variables_and_variables_beat_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'workers = 1\nhttp = "127.0.0.1:1"\ndrain_s = 5\n')
    environment = {"SHARDGIT_WORKERS": "2", "SHARDGIT_HTTP": "127.0.0.1:2"}
    flags = {"http": "127.0.0.1:3", "grpc": None}
    config = load_config(file, environment=environment, flags=flags)
    assert (config.workers, config.http, config.drain_s) == (2, "127.0.0.1:3", 5.0)
    assert config.grpc == "127.0.0.1:7420"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("wrokers = 1", ("key", "wrokers")),
        ("[workers]\ncount = 1", ("key", "workers")),
        ('workers = "2"', ("key", "workers")),
        ("workers = -1", ("workers", -1)),
        ("workers = 1.5", ("key", "workers")),
        ('http = "7421"', ("key", "http")),
        ('http = "127.0.0.1:70000"', ("key", "http")),
        ('log_level = "loud"', ("log_level", "loud")),
        ("drain_s = -1", ("drain_s", -1.0)),
        ("drain_s = nan", ("drain_s", None)),
        ('http = "127.0.0.1:9"\ngrpc = "127.0.0.1:9"', ("addresses", None)),
        ('data = ""', None),
        ("workers = ", ("path", None)),
    ],
)
def test_a_mistake_in_the_file_is_named(
    tmp_path: Path, text: str, fact: tuple[str, object] | None
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_config(written(tmp_path, text), environment={})
    if fact is not None:
        key, value = fact
        assert key in caught.value.facts
        assert value is None or caught.value.facts[key] == value


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load_config(tmp_path / "none.toml", environment={})
    file = tmp_path / "binary.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgument, match="not TOML"):
        load_config(file, environment={})


def test_an_unknown_variable_is_an_error_but_not_those_of_others() -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_config(None, environment={"SHARDGIT_WROKERS": "2"})
    assert caught.value.facts == {"variable": "SHARDGIT_WROKERS"}
    others = ("SERVER", "DEBUG", "PORT", "PORT_7421_TCP", "SERVICE_HOST", "BENCH_REPO")
    environment = {f"SHARDGIT_{name}": "x" for name in others}
    assert load_config(None, environment={**environment, "PATH": "/bin"}) == ServeConfig()


def test_a_variable_of_the_wrong_type_is_named() -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_config(None, environment={"SHARDGIT_WORKERS": "many"})
    assert (caught.value.facts["key"], caught.value.facts["source"]) == (
        "workers",
        "SHARDGIT_WORKERS",
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:7420", ("127.0.0.1", 7420)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses_split(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:x", "host:-1", "::1:80", "a:٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        split_address(text)


@pytest.mark.parametrize("text", ["", "off"])
def test_ssh_can_be_left_out(text: str) -> None:
    config = ServeConfig(ssh=text)
    assert config.listens == ("grpc", "http", "admin")
    assert ServeConfig().listens == ("grpc", "http", "ssh", "admin")


def test_a_cluster_is_a_section_and_variables_reach_into_it(tmp_path: Path) -> None:
    text = '[cluster]\netcd = ["http://127.0.0.1:2379"]\nzone = "a"\n[blocks]\nurl = "s3://b/p"\n'
    environment = {"SHARDGIT_CLUSTER_ETCD": "http://a:1,http://b:2", "SHARDGIT_CLUSTER_NODE": "n1"}
    config = load_config(written(tmp_path, text), environment=environment)
    assert config.cluster.etcd == ("http://a:1", "http://b:2")
    assert (config.cluster.node_name, config.cluster.zone) == ("n1", "a")
    assert config.blocks.url == "s3://b/p"
    assert msgspec.json.decode(msgspec.json.encode(config), type=type(config)) == config


def test_variables_of_a_section_that_belong_together_are_taken_together(tmp_path: Path) -> None:
    environment = {
        "SHARDGIT_CLUSTER_USER": "u",
        "SHARDGIT_CLUSTER_PASSWORD_FILE": "/p",
        "SHARDGIT_CLUSTER_ETCD": "https://[::1]:2379",
        "SHARDGIT_BLOCKS_URL": "gs://b",
    }
    config = load_config(written(tmp_path, ""), environment=environment)
    assert (config.cluster.user, config.cluster.password_file) == ("u", "/p")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[cluster]\netcd = ["127.0.0.1:2379"]', "etcd is no"),
        ('[cluster]\netcd = ["http://a:1", "https://b:2"]', "with TLS and others without"),
        ('[cluster]\netcd = ["http://a:1"]', "needs both"),
        ('[blocks]\nurl = "s3://b"', "needs both"),
        ('[blocks]\nurl = "ftp://b"', "blocks are kept at"),
        ('[blocks]\nurl = "s3://key:secret@b"', "belong into the environment"),
        ('[cluster]\netcd = ["http://a:1"]\nnode = "a b"', "not a name"),
        ("[cluster]\nweight = 0", "weight is out of range"),
        ("[cluster]\nlease_s = 0.1", "lease_s is out of range"),
        ('[cluster]\nuser = "u"', "belong together"),
        ('[cluster]\ncertificate = "c.pem"', "belong together"),
        ("[cluster]\nectd = []", "wrong type"),
        (f'{PEERS}listen = "10.0.0.1:7424"', "beyond loopback only with peer_ca"),
        (f'{PEERS}{TLS}listen = "0.0.0.0:7424"', "say advertise"),
        (f'{PEERS}{TLS}advertise = "here"', "not an address"),
        (f'{PEERS}peer_ca = "ca.pem"', "belong together"),
    ],
)
def test_a_mistake_in_a_section_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        load_config(written(tmp_path, text), environment={})


def test_a_section_is_no_variable(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="unknown configuration variable"):
        load_config(written(tmp_path, ""), environment={"SHARDGIT_CLUSTER": "x"})


def test_nodes_listen_everywhere_with_certificates_and_an_address(tmp_path: Path) -> None:
    text = f'{PEERS}{TLS}listen = "0.0.0.0:7424"\nadvertise = "node.example:7424"\n'
    config = load_config(written(tmp_path, text), environment={})
    assert config.in_cluster
    assert config.peer_address == "node.example:7424"
    assert not ServeConfig().in_cluster


def test_hooks_are_told_whether_tls_is_spoken() -> None:
    plain = ServeConfig(grpc="127.0.0.1:7420")
    assert _hook_policy(plain).server == "127.0.0.1:7420"
    secure = ServeConfig(grpc="127.0.0.1:7420", tls_certificate="/c", tls_key="/k")
    assert _hook_policy(secure).server == "grpcs://127.0.0.1:7420"
