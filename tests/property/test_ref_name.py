"""Ref names: C git is the judge."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardgit.errors import InvalidRefName
from shardgit.limits import DEFAULT
from shardgit.refs.name import check_ref_name, is_ref_name

PIECES = st.one_of(
    st.sampled_from(list(b"ab./@{-~^:?*[]\\ \t\n\r\x7f\x1f\x80\xff!('\"#+")).map(
        lambda c: bytes([c])
    ),
    st.sampled_from([b"..", b"//", b"@{", b".lock", b"lock", b"HEAD", b"refs", "ü".encode()]),
)
NAMES = st.one_of(
    st.lists(PIECES, max_size=8).map(b"".join),
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\0", b"/")),
)


def git_takes(name: bytes) -> bool:
    return subprocess.run([b"git", b"check-ref-format", name], check=False).returncode == 0


@pytest.mark.interop
@settings(max_examples=400, deadline=None)
@given(name=NAMES.flatmap(lambda tail: st.sampled_from([tail, b"refs/" + tail, b"a/" + tail])))
@example(name=b"@")
@example(name=b"a/@")
@example(name=b"refs/heads/x.lock/y")
@example(name=b"refs/heads/x.lock")
@example(name=b"refs/heads/x.")
@example(name=b"refs/heads/.x")
@example(name=b"refs/heads/x\n")
@example(name=b"refs/heads/" + b"x" * 460)
def test_names_are_taken_as_git_takes_them(name: bytes) -> None:
    if name.startswith(b"-"):
        return  # git reads an option there
    assert is_ref_name(name) == git_takes(name)


@pytest.mark.parametrize("name", [b"HEAD", b"refs/heads/main", b"refs/a", b"refs/-/-"])
def test_head_and_names_under_refs_pass(name: bytes) -> None:
    check_ref_name(name)


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"refs",
        b"refs/",
        b"main",
        b"heads/main",
        b"FETCH_HEAD",
        b"HEAD/x",
        b"refs/a\0b",
        b"refs/heads/" + b"x" * DEFAULT.ref_name_max_bytes,
    ],
)
def test_all_else_is_an_invalid_ref_name(name: bytes) -> None:
    with pytest.raises(InvalidRefName):
        check_ref_name(name)
