"""What deploy/ has for containers, Kubernetes and systemd fits the server that it starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from served import clean_environment, serving, shardgit

from shardgit.addresses import split_address
from shardgit.config import ServeConfig, load_config
from shardgit.crew import KILL_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTAINER, KUBERNETES = DEPLOY / "container", DEPLOY / "kubernetes"
OVERLAYS = ("single", "cluster")
OUTSIDE = re.compile(r"AWS_\w+|POD_NAMESPACE")  # variables that are not ours
NEEDED = {"securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}}


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def image() -> dict[str, str]:
    """Return the variables that the image sets."""
    text = (CONTAINER / "Containerfile").read_text().replace("\\\n", " ")
    words = " ".join(
        line.removeprefix("ENV ") for line in text.splitlines() if line.startswith("ENV ")
    )
    return dict(word.split("=", 1) for word in words.split())


def set_by(overlay: str) -> dict[str, str]:
    """Return the variables of a pod: the image's, the config map's, those of the container."""
    found = image()
    for place in ("base", overlay):
        (kustomization,) = documents(KUBERNETES / place / "kustomization.yaml")
        for one in kustomization["configMapGenerator"]:
            assert one["name"] == "shardgit"
            found |= dict(literal.split("=", 1) for literal in one["literals"])
    for patch in (KUBERNETES / overlay).glob("node.yaml"):
        for one in container(documents(patch)[0]).get("env", ()):
            value = one.get("value", one["name"].lower().replace("_", "-"))
            found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], value)
    return found


def container(document: dict[str, Any]) -> dict[str, Any]:
    (one,) = document["spec"]["template"]["spec"]["containers"]
    return dict(one)


def configured(variables: dict[str, str]) -> ServeConfig:
    """Return what the server makes of a pod's variables; InvalidArgument for one that it does not know."""
    ours = {key: value for key, value in variables.items() if key.startswith("SHARDGIT_")}
    others = {key for key in variables if not key.startswith("SHARDGIT_")}
    assert all(OUTSIDE.fullmatch(key) or key in image() for key in others), others
    return load_config(None, environment=ours)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_say_what_the_configuration_knows(overlay: str) -> None:
    config = configured(set_by(overlay))
    assert config.needs_auth
    assert config.in_cluster == (overlay == "cluster")
    (base,) = documents(KUBERNETES / "base" / "statefulset.yaml")
    ports = {one["name"]: one["containerPort"] for one in container(base)["ports"]}
    grace = base["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    if overlay == "cluster":
        (node,) = documents(KUBERNETES / "cluster" / "node.yaml")
        grace = node["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        ports |= {one["name"]: one["containerPort"] for one in container(node)["ports"]}
        assert ports.pop("peers") == split_address(config.cluster.listen)[1]
        assert config.leave_s > 1.1 * config.grpc_connection_s
        assert config.cluster.advertise.startswith("shardgit-cluster-node.shardgit-nodes.")
    assert ports == {key: split_address(getattr(config, key))[1] for key in config.listens}
    assert grace >= config.leave_s + config.drain_s + KILL_AFTER_S + 10


def test_pods_may_do_little_and_are_asked_how_they_are() -> None:
    (base,) = documents(KUBERNETES / "base" / "statefulset.yaml")
    pod, one = base["spec"]["template"]["spec"], container(base)
    user = re.search(r"^USER (\d+):(\d+)$", (CONTAINER / "Containerfile").read_text(), re.M)
    assert user is not None
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (
        int(user[1]),
        int(user[2]),
    )
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert NEEDED["securityContext"].items() <= one["securityContext"].items()
    assert not pod["enableServiceLinks"]  # SHARDGIT_NODES_PORT would be an unknown variable
    probes = {key: one[key]["httpGet"] for key in one if key.endswith("Probe")}
    assert probes == {
        "startupProbe": {"path": "/readyz", "port": "admin"},
        "readinessProbe": {"path": "/readyz", "port": "admin"},
        "livenessProbe": {"path": "/livez", "port": "admin"},
    }
    mounts = {mount["mountPath"] for mount in one["volumeMounts"]}
    assert mounts == {image()["SHARDGIT_DATA"], "/tmp"}


KUBECTL = shutil.which("kubectl")


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not there")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_put_together(overlay: str) -> None:
    assert KUBECTL is not None
    done = subprocess.run(
        [KUBECTL, "kustomize", str(KUBERNETES / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    kinds = sorted(kind for kind, _ in found)
    assert kinds == sorted(
        ["ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service", "StatefulSet"]
    )
    node = found["StatefulSet", "shardgit"]
    labels = node["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Service", "shardgit"]["spec"]["selector"],
        found["Service", "shardgit-nodes"]["spec"]["selector"],
        node["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget", "shardgit"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy", "shardgit"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()
    assert node["spec"]["serviceName"] == "shardgit-nodes"
    names = {one["name"] for one in container(node)["ports"]}
    for service in ("shardgit", "shardgit-nodes"):
        assert {port["targetPort"] for port in found["Service", service]["spec"]["ports"]} <= names
    volumes = {one["name"] for one in node["spec"]["template"]["spec"]["volumes"]} | {"data"}
    assert {mount["name"] for mount in container(node)["volumeMounts"]} <= volumes
    config_map = container(node)["envFrom"][0]["configMapRef"]["name"]
    assert ("ConfigMap", config_map) in found
    assert set(found["ConfigMap", config_map]["data"]) <= set_by(overlay).keys()


def steps() -> Iterator[tuple[str, str]]:
    """Return the instructions of the Containerfile, without comments."""
    lines = [
        line
        for line in (CONTAINER / "Containerfile").read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest


def test_the_image_takes_what_is_there_and_sets_what_the_server_knows() -> None:
    config = configured(image())
    assert config.needs_auth
    assert {split_address(getattr(config, key))[1] for key in config.listens} == {
        int(port) for word, rest in steps() if word == "EXPOSE" for port in rest.split()
    }
    for word, rest in steps():
        if word == "COPY" and "--from" not in rest:
            *sources, _ = [one for one in rest.split() if not one.startswith("--")]
            assert all((DEPLOY.parent / source).exists() for source in sources), sources
    words = dict(steps())
    assert words["VOLUME"] == str(config.folder)
    assert words["STOPSIGNAL"] == "SIGTERM"
    assert words["USER"].split(":")[0] != "0"
    assert json.loads(words["ENTRYPOINT"])[-1] == "shardgit-start"


def start(folder: Path, *words: str, more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run what the image runs, with this machine's shardgit."""
    there = folder / "bin"
    there.mkdir(exist_ok=True)
    program = there / "shardgit"
    if not program.exists():
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m shardgit "$@"\n')
        program.chmod(0o755)
    return subprocess.run(
        ["sh", str(CONTAINER / "start"), *words],
        env={**clean_environment(), "PATH": f"{there}:{os.environ['PATH']}", **more},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_start_makes_a_store_and_later_ones_take_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()  # an empty volume
    more = {"SHARDGIT_DATA": str(data), "SHARDGIT_INIT_SHARDS": "2"}
    first = start(tmp_path, "serve", "--check", more=more)
    assert first.returncode == 0, first.stderr
    assert "with 2 shards" in first.stdout
    again = start(tmp_path, "serve", "--check", more=more)
    assert again.returncode == 0, again.stderr
    assert "made store" not in again.stdout
    listed = start(tmp_path, "repo", "list", "--json", more=more)
    assert listed.returncode == 0, listed.stderr


def test_the_image_looks_after_a_server_as_readyz_does(tmp_path: Path) -> None:
    ((_, rest),) = [step for step in steps() if step[0] == "HEALTHCHECK"]
    command = json.loads(rest.partition(" CMD ")[2])
    assert shardgit("init", "data", cwd=tmp_path).returncode == 0
    with serving(tmp_path / "data", "--workers", "1") as server:
        variables = {**clean_environment(), "SHARDGIT_ADMIN": server.admin}
        assert subprocess.run(command, env=variables, check=False).returncode == 0
        server.stop()
        gone = subprocess.run(command, env=variables, capture_output=True, check=False)
        assert gone.returncode != 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not there")
def test_systemd_takes_the_unit_and_finds_it_closed() -> None:
    unit = str(DEPLOY / "systemd" / "shardgit.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert "shardgit.service:" not in done.stderr, done.stderr
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout[-300:]
