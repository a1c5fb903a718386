"""What we find wrong with an object is what git finds: the same messages in the same words, on thousands of objects."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from reference import broken
from reference.gits import git
from reference.packs import TYPES, PackMaker, object_id

from shardgit import fsck
from shardgit.fsck import FsckConfig, Severity
from shardgit.oid import HashKind, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.interop
Lines = dict[str, str]
"""What is said of an object, by message id: "error in tree <oid>: badTree: cannot be parsed as a tree"."""

MAKERS = {1: broken.commit, 2: broken.tree, 4: broken.tag}
CONFIG = FsckConfig.parse({"extraHeaderEntry": "warn"})
DATES = ("badDate", "zeroPaddedDate", "badDateOverflow")


class Judge:
    """A repository of objects, good and bad, and what git says of them."""

    def __init__(self, folder: Path, kind: HashKind) -> None:
        self.folder = folder
        self.kind = kind
        self.objects: dict[bytes, tuple[int, bytes]] = {}
        self.maker = PackMaker(kind.git_name)
        git(folder, "init", "-q", "--bare", f"--object-format={kind.git_name}", ".")
        words = git(folder, "help", "--config-for-completion").decode().split()
        # An older git knows fewer messages: what it cannot find is not asked for.
        self.known = {word.removeprefix("fsck.") for word in words if word.startswith("fsck.")}
        found = re.search(rb"(\d+)\.(\d+)", git(folder, "version"))
        assert found
        self.version = int(found[1]), int(found[2])

    def add(self, type: int, data: bytes) -> bytes:
        """Add an object and return its id."""
        oid = object_id(type, data, self.kind.git_name)
        if oid not in self.objects:
            self.objects[oid] = type, data
            self.maker.add(type, data, level=1)
        return oid

    def theirs(self) -> tuple[dict[bytes, Lines], set[bytes]]:
        """Return git's findings, and the objects that it cannot parse and so does not check."""
        git(self.folder, "index-pack", "--stdin", stdin=self.maker.pack())
        words = ("-c", "fsck.extraHeaderEntry=warn", "fsck", "--strict", "--no-dangling")
        said = git(self.folder, *words, check=False).decode("utf-8", "replace")
        found: dict[bytes, Lines] = defaultdict(dict)
        for line in said.split("\n"):
            if told := re.match(r"(?:error|warning) in \w+ ([0-9a-f]+): (\w+): ", line):
                found[bytes.fromhex(told[1])][told[2]] = fsck.shown(line.encode())
        unread = re.findall(r"^error: ([0-9a-f]+): object corrupt or missing", said, re.M)
        return found, {bytes.fromhex(oid) for oid in unread}

    def ours(self) -> dict[bytes, Lines]:
        """Return our findings in objects, and in the blobs that their trees make special."""
        found: dict[bytes, Lines] = defaultdict(dict)
        special = set()
        for oid, (type, data) in self.objects.items():
            findings, more = fsck.check_object(self.kind, type, data, CONFIG)
            special.update(more)
            self.note(found[oid], oid, findings)
        for which, oid in special:
            self.note(
                found[oid], oid, fsck.check_special(which, *self.objects.get(oid, (None, None)))
            )
        return found

    def note(self, lines: Lines, oid: bytes, findings: list[fsck.Finding]) -> None:
        """Note findings as git fsck words them."""
        type = TYPES[self.objects.get(oid, (3, b""))[0]].decode()
        for each in findings:
            if each.name in self.known:
                word = "error" if CONFIG.refuses(each.message, ObjectId(oid)) else "warning"
                text, _, _ = each.text.partition("\n")
                lines[each.name] = f"{word} in {type} {oid.hex()}: {each.name}: {text}"

    def forgive(self, data: bytes, one: Lines, two: Lines) -> None:
        """Take out of git's findings and ours what they rightly differ in."""
        if self.version < (2, 42):
            # with strtoumax() blanks and signs before a date were part of it
            blanks = re.search(rb">[ \t]{2}", data)
            for lines in (one, two):
                for name in [name for name in lines if name in DATES]:
                    del lines[name]
                    lines.setdefault("date", "")
                if blanks:
                    lines.clear()
        if self.version < (2, 44) and re.search(rb"(?i)http|ftp", data):
            # URLs were read by the rules for credentials, not normalized
            one.pop("gitmodulesUrl", None)
            two.pop("gitmodulesUrl", None)
        if "badTree" in one:
            # git leaves the last entry before the break without a check of its order and mode
            for name in {"badFilemode", "treeNotSorted", "duplicateEntries"} - set(one):
                two.pop(name, None)
        if "treeNotSorted" in one and "treeNotSorted" in two:
            # what comes twice far apart is not found for sure when the order is off
            one.pop("duplicateEntries", None)
            two.pop("duplicateEntries", None)

    def agree(self) -> set[str]:
        """Assert that git and we find the same in every object that git reads; return the messages it took."""
        theirs, unread = self.theirs()
        ours = self.ours()
        messages: set[str] = set()
        for oid in {*theirs, *ours} - unread:
            one, two = theirs[oid], ours[oid]
            type, data = self.objects.get(oid, (3, b""))
            messages.update(one)
            self.forgive(data, one, two)
            assert one == two, (oid.hex(), type, data)
        return messages


@pytest.mark.parametrize("kind", HashKind)
def test_git_fsck_finds_the_same_in_objects(tmp_path: Path, kind: HashKind) -> None:
    judge = Judge(tmp_path, kind)
    rand = random.Random(kind.git_name)
    for type, count in ((2, 6_000), (1, 2_500), (4, 2_500)):
        for _ in range(count):
            judge.add(type, MAKERS[type](rand, kind.size))
    messages = judge.agree()
    assert len(messages) >= 34  # the generators reach every message that git fsck can come to


@pytest.mark.parametrize("kind", HashKind)
def test_git_fsck_finds_the_same_in_special_blobs(tmp_path: Path, kind: HashKind) -> None:
    judge = Judge(tmp_path, kind)
    rand = random.Random(kind.git_name)
    for _ in range(1_000):
        judge.add(2, b"100644 .gitmodules\0" + judge.add(3, broken.gitmodules(rand)))
    for _ in range(100):
        judge.add(2, b"100644 .gitattributes\0" + judge.add(3, broken.gitattributes(rand)))
    for name in (b".gitmodules", b".gitattributes"):
        judge.add(2, b"40000 " + name + b"\0" + judge.add(2, b""))
        judge.add(2, b"160000 " + name + b"\0" + rand.randbytes(kind.size))
    assert judge.agree() == {
        *("gitmodulesName", "gitmodulesUrl", "gitmodulesPath", "gitmodulesUpdate"),
        *("gitmodulesParse", "gitmodulesBlob", "gitmodulesMissing"),
        *("gitattributesLineLength", "gitattributesBlob", "gitattributesMissing"),
    }


def headless(rand: random.Random, hash_size: int) -> bytes:
    """Return a tag with a mistake in the headers that git parses even before it checks."""
    data = broken.tag(rand, hash_size)
    old, new = rand.choice(
        [
            (b"object ", b"Object "),
            (b"object ", b"object 0"),
            (b"object ", b"object g"),
            (b"\ntype ", b"\ntypo "),
            (b"\ntype ", b"\ntype x"),
            (b"\ntag ", b"\ntog "),
            (b"\n", b" "),
        ]
    )
    return data.replace(old, new)


@pytest.mark.parametrize("make", [broken.tag, headless])
def test_git_mktag_refuses_for_the_same(
    tmp_path: Path, make: Callable[[random.Random, int], bytes]
) -> None:
    """mktag checks without parsing first, and stops at what is not even an error elsewhere."""
    judge = Judge(tmp_path, HashKind.SHA1)
    names = ("extraHeaderEntry", "badTagName", "missingTaggerEntry")
    config = FsckConfig.parse(dict.fromkeys(names, "error"))
    rand = random.Random(5)
    for _ in range(60):
        data = make(rand, 20)
        findings, _ = fsck.check_object(HashKind.SHA1, 4, data, config)
        said = git(tmp_path, "mktag", stdin=data, check=False).decode("utf-8", "replace")
        told = re.findall(r"^error: tag input does not pass fsck: (\w+): ([^\n]*)", said, re.M)
        one = {name: fsck.shown(text.encode()) for name, text in told}
        two = {each.name: each.text.partition("\n")[0] for each in findings}
        judge.forgive(data, one, two)
        assert one == two, data


@pytest.mark.parametrize("type", MAKERS)
def test_index_pack_refuses_the_same_objects_in_the_same_words(tmp_path: Path, type: int) -> None:
    judge = Judge(tmp_path, HashKind.SHA1)
    rand = random.Random(type)
    for _ in range(40):
        data = MAKERS[type](rand, 20)
        maker = PackMaker()
        maker.add(type, data)
        oid = ObjectId(object_id(type, data))
        said = git(
            tmp_path, "index-pack", "--stdin", "--fsck-objects", stdin=maker.pack(), check=False
        ).decode("utf-8", "replace")
        if re.search(r"^fatal: invalid \w+", said, re.M):
            continue  # not even parsed
        findings, special = fsck.check_object(HashKind.SHA1, type, data)
        findings = [each for each in findings if each.name in judge.known]
        told = re.findall(r"^(?:error|warning): object \w+: (\w+): .*", said, re.M)
        lines = re.findall(r"^(?:error|warning): object .*", said, re.M)
        one = {name: fsck.shown(line.encode()) for name, line in zip(told, lines, strict=True)}
        two = {
            each.name: fsck.describe(
                each.message, oid, fsck.DEFAULT.severity(each.message), each.text
            )
            for each in findings
        }
        judge.forgive(data, one, two)
        assert one == two, data
        if not special and not re.search(rb">[ \t]{2}", data):
            # Not by "fatal:": git forgets the error of a tagger when headers follow that it ignores.
            refused = any(fsck.DEFAULT.refuses(each.message, oid) for each in findings)
            assert ("error: object" in said) == refused, said


@pytest.mark.parametrize("kind", HashKind)
def test_hash_object_refuses_the_same_commits(tmp_path: Path, kind: HashKind) -> None:
    judge = Judge(tmp_path, kind)
    if judge.version < (2, 40):
        pytest.skip("git before 2.40 parses what it hashes, and does not check it")
    rand = random.Random(3)
    for _ in range(60):
        data = broken.commit(rand, kind.size)
        old = rand.choice((b"tree ", b"tree 0", b"\nparent ", b"\nparent x", b"\n"))
        data = data.replace(old, rand.choice((b"", b"tree x", b"\nparent ")), 1)
        findings, _ = fsck.check_object(kind, 1, data)
        said = git(tmp_path, "hash-object", "-t", "commit", "--stdin", stdin=data, check=False)
        told = re.findall(rb"^error: object fails fsck: (\w+): ", said, re.M)
        worst = [each for each in findings if fsck.DEFAULT.severity(each.message) > Severity.INFO]
        assert [each.name.encode() for each in worst] == told, data
