"""What all tests share."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import seaweed
import structlog
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcds import Etcds

# Examples take longer on a busy machine; pytest-timeout is what ends those that hang.
settings.register_profile("shardgit", deadline=None)
settings.load_profile("shardgit")
# Else each of some hundred processes that tests start compiles all of the source anew, 0.3 s of CPU.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A test that sends logs to its own, captured standard error leaves no other test a closed file."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _priority_as_it_was() -> Iterator[None]:
    """A test of work that steps back leaves the others, and the servers that they start, at their priority."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    yield
    if os.getpriority(os.PRIO_PROCESS, 0) != before:
        with suppress(PermissionError):  # only root may
            os.setpriority(os.PRIO_PROCESS, 0, before)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.Seaweed]:
    """Give an S3 server, for tests marked ``cluster``."""
    with seaweed.seaweed(tmp_path_factory.mktemp("seaweed")) as made:
        yield made


@pytest.fixture
def s3_url(s3_server: seaweed.Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the URL of an empty prefix on that server, which the environment leads to."""
    for key, value in s3_server.environment.items():
        monkeypatch.setenv(key, value)
    return s3_server.fresh_url()


@pytest.fixture(scope="session")
def etcds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcds]:
    """Three members of etcd, for tests that leave them as they are."""
    from etcds import binary, running  # most tests do without gRPC

    if binary() is None:
        pytest.skip("etcd is not there: .ci/cluster-setup")
    with running(tmp_path_factory.mktemp("etcd")) as started:
        yield started


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes and long texts by their argument: some are made anew each time, and names must not be."""
    if isinstance(val, bytes) or (isinstance(val, str) and len(val) > 60):
        return argname
    return None
