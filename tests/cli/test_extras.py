"""What is said where an extra is not installed, and that all else works without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from served import clean_environment, git, shardgit, small_repository

from shardgit.backup.bucket import open_bucket
from shardgit.blocks.object_store import open_blocks_bucket
from shardgit.errors import Refused
from shardgit.extras import MODULES

ROOT = Path(__file__).parents[2]
FREE = [word for key in ("http", "grpc", "admin") for word in (f"--{key}", "127.0.0.1:0")]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store in ./data, and an environment whose Python has no module of an extra."""
    folder = tmp_path_factory.mktemp("bare")
    hidden = "".join(f"sys.modules[{module!r}] = None\n" for module in MODULES.values())
    (folder / "hidden").mkdir()
    (folder / "hidden" / "sitecustomize.py").write_text(f"import sys\n{hidden}")
    environment = {"PYTHONPATH": os.pathsep.join([str(folder / "hidden"), *sys.path])}
    small_repository(folder / "source")
    for words in (("init", "data"), ("repo", "import", "demo", "source")):
        done = shardgit(*words, cwd=folder, environment=environment)
        assert done.returncode == 0, done.stderr
    return folder, environment


def refused(bare: tuple[Path, dict[str, str]], *words: str, **variables: str) -> str:
    folder, environment = bare
    done = shardgit(*words, cwd=folder, environment={**environment, **variables})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_server_without_asyncssh_serves_all_but_ssh_and_git_clones(
    bare: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = bare
    done = shardgit("serve", "--check", *FREE, cwd=folder, environment=environment)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "shardgit", "serve", "--workers", "1", *FREE],
        cwd=folder,
        env={**clean_environment(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "ssh" not in line
            found = re.search(r"serving on (\S+)/NAME.git,", line)
            assert found is not None, line
            git(folder, "clone", "-q", f"{found[1]}/demo.git", "copy")
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "shardgit: no SSH: pip install 'shardgit[ssh]'\n" in errors


def test_ssh_that_was_asked_for_is_refused_with_the_extra_to_install(
    bare: tuple[Path, dict[str, str]],
) -> None:
    said = "pip install 'shardgit[ssh]', or serve with --ssh off"
    assert said in refused(bare, "serve", *FREE, "--ssh", "127.0.0.1:0")
    assert said in refused(bare, "serve", *FREE, "--check", SHARDGIT_SSH="127.0.0.1:0")
    (bare[0] / "ssh.toml").write_text('ssh = "127.0.0.1:0"\n')
    assert said in refused(bare, "serve", *FREE, "--config", "ssh.toml")


def test_an_object_store_is_refused_with_the_extra_to_install(
    bare: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "an object store needs obstore: pip install 'shardgit[s3]'"
    assert said in refused(bare, "backup", "create", "s3://bucket/prefix")
    assert said in refused(bare, "backup", "list", "gs://bucket/prefix")
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "shardgit.buckets.cloud", raising=False)
    for opens in (open_blocks_bucket, open_bucket):
        with pytest.raises(Refused, match=re.escape(said)):
            opens("s3://bucket/prefix")


def test_backups_to_a_folder_need_no_extra(bare: tuple[Path, dict[str, str]]) -> None:
    folder, environment = bare
    done = shardgit("backup", "create", "kept", cwd=folder, environment=environment)
    assert done.returncode == 0, done.stderr


def test_each_extra_brings_the_module_that_is_asked_for_and_all_brings_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for extra, module in MODULES.items():
        assert [re.split(r"[^\w-]", need)[0] for need in extras[extra]] == [module]
        assert not any(need.startswith(module) for need in project["dependencies"])
    (everything,) = extras["all"]
    assert set(everything.removeprefix("shardgit[").rstrip("]").split(",")) == set(extras) - {"all"}
