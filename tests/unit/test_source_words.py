"""What is said of a source that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shardgit.errors import NotFound
from shardgit.service.remote_url import without_secret
from shardgit.service.source import opened

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.interop
def test_a_url_is_told_without_its_password(tmp_path: Path) -> None:
    source = "http://user:hush-hush@127.0.0.1:1/x.git"
    with pytest.raises(NotFound) as caught, opened(source, scratch=tmp_path):
        pass
    assert "hush" not in str(caught.value)
    assert "http://127.0.0.1:1/x.git" in str(caught.value)


def test_only_credentials_are_left_out() -> None:
    assert without_secret("git@host:a/b") == "git@host:a/b"
    assert without_secret("http://host/a@b") == "http://host/a@b"
    assert without_secret("'ssh://a:b@c@host/x' and http://t@h/") == "'ssh://host/x' and http://h/"
