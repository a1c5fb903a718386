"""fsck's rules one by one, its configuration, and what it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import gitmodules as witness

from shardgit import fsck
from shardgit._fsck import SEVERITIES, check, is_submodule_name, is_submodule_url
from shardgit.errors import InvalidArgument
from shardgit.fsck import DEFAULT, MESSAGES, FsckConfig, Severity, Special
from shardgit.oid import HashKind, ObjectId

OID = bytes(range(1, 21))
HEX = OID.hex().encode()
COMMIT = b"tree %s\nparent %s\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nm\n" % (HEX, HEX)
TAG = b"object %s\ntype commit\ntag v1\ntagger A <a> 1 +0000\n\nm\n" % HEX


def names(type: int, data: bytes, config: FsckConfig = DEFAULT) -> list[str]:
    return [each.name for each in fsck.check_object(HashKind.SHA1, type, data, config)[0]]


def entry(mode: str, name: bytes, oid: bytes = OID) -> bytes:
    return mode.encode() + b" " + name + b"\0" + oid


def test_sound_objects_pass() -> None:
    tree = entry("100644", b"a.b") + entry("40000", b"a") + entry("160000", b"c")
    assert [names(1, COMMIT), names(2, tree), names(2, b""), names(3, b"\0"), names(4, TAG)] == [
        []
    ] * 5


@pytest.mark.parametrize(
    ("type", "old", "new", "message"),
    [
        (1, b"tree ", b"Tree ", "missingTree"),
        (1, b"tree " + HEX, b"tree " + HEX[:-1], "badTreeSha1"),
        (1, b"parent " + HEX, b"parent " + HEX + b"0", "badParentSha1"),
        (1, b"parent " + HEX, b"parent " + b"g" * 40, "badParentSha1"),
        (1, COMMIT, b"", "unterminatedHeader"),
        (4, TAG, b"\n\n", "missingObject"),
        (4, b"object " + HEX, b"object " + HEX[:39] + b"x", "badObjectSha1"),
        (4, b"type commit", b"typo commit", "missingTypeEntry"),
        (4, b"type commit", b"type commits", "badType"),
        (4, b"type commit", b"type ", "badType"),
        (4, b"type commit\n", b"", "missingTypeEntry"),
        (4, b"tag v1", b"tog v1", "missingTagEntry"),
        (4, b"tagger A", b"tagger A<", "missingSpaceBeforeEmail"),
        (5, TAG, b"", "unknownType"),
    ],
)
def test_what_git_does_not_even_parse_has_its_message(
    type: int, old: bytes, new: bytes, message: str
) -> None:
    data = (TAG if type == 4 else COMMIT).replace(old, new)
    assert data != (TAG if type == 4 else COMMIT) or type == 5
    assert names(type, data) == [message]


def test_headers_after_the_tagger_are_extra_unless_they_are_a_signature() -> None:
    config = FsckConfig.parse({"extraHeaderEntry": "error"})
    signed = TAG.replace(b"\n\n", b"\ngpgsig-sha256 -----BEGIN\n x\n -----END\n\n", 1)
    assert names(4, signed, config) == []
    assert names(4, signed.replace(b"\n x", b"\nx"), config) == ["extraHeaderEntry"]
    assert names(4, signed.replace(b"\n x", b"\nx")) == []


def test_each_message_comes_once_an_object_and_stands_where_it_first_is() -> None:
    config = FsckConfig.parse({"badTimezone": "warn", "multipleAuthors": "ignore"})
    author = b"author A <a> 1 +0\n"
    data = COMMIT.replace(b"author A <a> 1 +0000\n", author * 3)
    found, _ = check(1, 1, data, config.table)
    assert found == [(MESSAGES.index("badTimezone"), data.index(b"+0\n"))]
    tree = entry("120000", b".mailmap") + entry("120000", b".mailmap.")
    assert names(2, tree) == ["mailmapSymlink"]


def sort_key(row: tuple[bytes, bool]) -> bytes:
    return row[0] + (b"/" if row[1] else b"")


@given(
    st.lists(
        st.tuples(st.text("ab.-0", min_size=1, max_size=6).map(str.encode), st.booleans()),
        unique=True,
        max_size=30,
    )
)
def test_a_name_twice_is_found_however_far_apart(rows: list[tuple[bytes, bool]]) -> None:
    rows.sort(key=sort_key)
    tree = b"".join(entry("40000" if folder else "100644", name) for name, folder in rows)
    twice = len({name for name, _ in rows}) < len(rows)
    config = FsckConfig.parse({"hasDot": "ignore", "hasDotdot": "ignore"})
    assert names(2, tree, config) == ["duplicateEntries"] * twice


@pytest.mark.parametrize("length", [63, 64, 65, 4_000, 65_535, 65_536, 70_000])
def test_a_long_name_twice_is_found_behind_others(length: int) -> None:
    name = b"n" * length
    config = FsckConfig.parse({"largePathname": "ignore"})
    between = [entry("100644", name + b"." + b"x" * depth) for depth in range(1, 70)]
    between += [entry("100644", name + b"." + b"y" * 70_000)]
    tree = b"".join([entry("100644", b"n"), *between, entry("40000", name)])
    assert names(2, tree, config) == []
    tree = b"".join([entry("100644", name), *between, entry("40000", name)])
    assert names(2, tree, config) == ["duplicateEntries"]


@given(st.sampled_from([1, 2]), st.integers(0, 5), st.binary(max_size=300))
def test_any_bytes_are_judged(kind: int, type: int, data: bytes) -> None:
    findings, special = check(kind, type, data, DEFAULT.table)
    assert all(0 <= offset <= len(data) for _, offset in findings)
    assert all(len(oid) == HashKind(kind).size for _, oid in special)


def test_severities_are_gits_in_strict_mode() -> None:
    assert len(MESSAGES) == len(SEVERITIES) == len({name.lower() for name in MESSAGES})
    by_name = {name: DEFAULT.severity(message) for message, name in enumerate(MESSAGES)}
    assert by_name["nulInHeader"] is Severity.FATAL
    assert by_name["badTree"] is by_name["hasDotgit"] is Severity.ERROR
    assert by_name["badFilemode"] is Severity.INFO
    assert by_name["extraHeaderEntry"] is Severity.IGNORE


def test_overrides_change_what_refuses() -> None:
    oid = ObjectId(OID)
    config = FsckConfig.parse(
        {
            "HASDOT": "warn",
            "badFilemode": "error",
            "treeNotSorted": "ignore",
            "nulinheader": "error",
        }
    )
    tree = entry("100600", b"b") + entry("100644", b".")
    findings, _ = fsck.check_object(HashKind.SHA1, 2, tree, config)
    assert {each.name: config.refuses(each.message, oid) for each in findings} == {
        "hasDot": False,
        "badFilemode": True,
    }
    lenient = FsckConfig.parse({"badFilemode": "error"}, [oid])
    assert not lenient.refuses(fsck.message_of("badFilemode"), oid)
    assert not lenient.tells(fsck.message_of("badFilemode"), oid)
    assert names(1, b"\0", config) == ["nulInHeader"]


@pytest.mark.parametrize(
    "severities",
    [
        {"noSuchThing": "warn"},
        {"hasDot": "fatal"},
        {"nulInHeader": "warn"},
        {"unterminatedHeader": "ignore"},
        {"largePathname": "warn:x"},
    ],
)
def test_a_configuration_that_git_refuses_is_refused(severities: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        FsckConfig.parse(severities)


def test_the_longest_path_name_is_configured() -> None:
    tree = entry("100644", b"n" * 2_000)
    assert names(2, tree) == []
    assert names(2, tree, FsckConfig.parse({"largePathname": "error:1k"})) == ["largePathname"]
    assert names(2, entry("100644", b"n" * 4_097)) == ["largePathname"]
    assert (
        names(2, entry("100644", b"n" * 4_097), FsckConfig.parse({"largePathname": "warn:4097"}))
        == []
    )


def test_a_skip_list_is_read_as_git_reads_it() -> None:
    text = f"# known\n\n  {HEX.decode()} # old\n{HEX.decode().upper()}\n"
    assert fsck.parse_skip_list(text, HashKind.SHA1) == {OID}
    with pytest.raises(InvalidArgument):
        fsck.parse_skip_list("abc", HashKind.SHA1)


def test_special_blobs_that_are_none() -> None:
    def of(special: Special, type: int | None, data: bytes | None) -> list[str]:
        return [each.name for each in fsck.check_special(special, type, data)]

    assert of(Special.GITMODULES, None, None) == ["gitmodulesMissing"]
    assert of(Special.GITATTRIBUTES, 2, b"") == ["gitattributesBlob"]
    assert of(Special.GITATTRIBUTES, 3, None) == ["gitattributesLarge"]
    assert of(Special.GITATTRIBUTES, 3, b"x" * 2_047 + b"\n" + b"y" * 2_047) == []
    assert of(Special.GITATTRIBUTES, 3, b"\n" + b"x" * 2_048) == ["gitattributesLineLength"]


def test_gitmodules_after_bytes_that_gits_own_check_stumbles_over() -> None:
    """git checks a blob with signed bytes: a byte order mark is a mistake there and 0xff the end, unlike in a file."""
    attack = b'[submodule "a"]\nurl = -u\n'
    assert [each.name for each in fsck.check_gitmodules(b"\xef\xbb\xbf" + attack)] == [
        "gitmodulesUrl"
    ]
    assert [each.name for each in fsck.check_gitmodules(b"#\xff\n" + attack)] == ["gitmodulesUrl"]


def test_a_flood_of_findings_is_cut() -> None:
    flood = b'[submodule "a"]\n' + b"url=-u\n" * 100_000
    assert len(fsck.check_gitmodules(flood)) == fsck.FINDINGS_MAX


def test_urls_that_must_not_be_cloned() -> None:
    """git normalizes http and ftp URLs since 2.44 only, so the judge may not tell."""
    for url in (b"https:///x", b"http::x", b"http://h:0/x", b"http://h:65536/", b"https://h/%zz"):
        assert not is_submodule_url(url)
    for url in (
        b"https://h/../x",
        b"https://h/%2E%2e/x",
        b"https://h/a?%0a",
        b"http://h!/",
        b"ftp://",
    ):
        assert not is_submodule_url(url)
    for url in (
        b"https://u:p@h:8080/a/./b/../c",
        b"http::file:///x",
        b"https://[::1]:80/",
        b"ssh://x",
    ):
        assert is_submodule_url(url)


PARTS = [
    *(
        b"http",
        b"https",
        b"ftp",
        b"file",
        b"git",
        b"://",
        b"::",
        b":",
        b"/",
        b"//",
        b"..",
        b".",
        b"\\",
    ),
    *(
        b"%0a",
        b"%0A",
        b"%2e",
        b"%2E",
        b"%",
        b"%zz",
        b"%25",
        b"\n",
        b"@",
        b"?",
        b"#",
        b"[",
        b"]",
        b"-",
    ),
    *(
        b"h",
        b"a",
        b"80",
        b"0",
        b"65535",
        b"65536",
        b"../",
        b"./",
        b"a/..",
        b"http://h",
        b"\0",
        b"!",
    ),
]
pieces = st.lists(st.sampled_from(PARTS), max_size=12).map(b"".join)


@given(st.sampled_from([b"", b"http://", b"https://h/", b"git://", b"../", b"http::"]), pieces)
def test_urls_are_judged_as_the_witness_judges_them(start: bytes, rest: bytes) -> None:
    url = start + rest
    assert is_submodule_url(url) == witness.is_url(url)


@given(pieces)
def test_names_are_judged_as_the_witness_judges_them(name: bytes) -> None:
    assert is_submodule_name(name) == witness.is_name(name)


@given(st.binary(max_size=200) | pieces.map(lambda text: b'[submodule "' + text + b'"]\nurl=-'))
def test_any_bytes_are_judged_as_gitmodules(data: bytes) -> None:
    assert len(fsck.check_gitmodules(data)) <= fsck.FINDINGS_MAX


def test_gitmodules_made_to_cost_time_are_judged_soon() -> None:
    """Each takes seconds or minutes when names are copied, or regular expressions retried, an entry."""
    size = Special.GITMODULES.max_bytes
    long = b'[submodule "' + b"x/" * (size // 4) + b'"]\n'
    assert fsck.check_gitmodules(long + b"path=x\n" * 100_000) == []
    assert fsck.check_gitmodules(b'[submodule "a"]\nurl=./' + b"../x/" * 13_000) == []
    assert fsck.check_gitmodules(b'[submodule "a"]\n' + b"url=http://h/%41\n" * (size // 18)) == []
    url = fsck.check_gitmodules(b'[submodule "a"]\nurl=http://h' + b"/a/.." * (size // 6) + b"/..")
    assert [(each.name, len(each.text) < 2_000) for each in url] == [("gitmodulesUrl", True)]
    lines = (b"x" * 2_047 + b"\n") * 4_000
    assert fsck.check_gitattributes(lines) == []
    assert [each.name for each in fsck.check_gitattributes(lines + b"\n" + b"y" * 2_048)] == [
        "gitattributesLineLength"
    ]
    assert fsck.check_special(Special.GITMODULES, 3, bytes(size + 1)) == fsck.check_special(
        Special.GITMODULES, 3, None
    )


def test_lines_are_those_of_git() -> None:
    message = fsck.message_of("missingSpaceBeforeDate")
    assert fsck.describe(message, OID, Severity.ERROR) == (
        f"error: object {HEX.decode()}: missingSpaceBeforeDate: "
        "invalid author/committer line - missing space before date"
    )
    line = fsck.describe(fsck.message_of("badTagName"), OID, Severity.INFO, "invalid 'tag' name: x")
    assert line.startswith("warning: object ") and line.endswith(
        "badTagName: invalid 'tag' name: x"
    )
    assert fsck.shown(b"a\x1b[31m\xff\n") == "a?[31m\ufffd\n"


def test_every_message_of_objects_has_words() -> None:
    refs = ("ref", "head", "referent", "symref", "symlink")
    objects = [name for name in MESSAGES if not any(word in name.lower() for word in refs)]
    others = set(MESSAGES) - set(fsck.TEXTS)
    assert set(fsck.TEXTS) <= set(MESSAGES)
    assert not {name for name in others if name in objects}
