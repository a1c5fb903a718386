"""git's fsck: message ids, severities, skip list, and the checks that need more than one object's bytes.

Commits, trees and tags are checked by the kernel (``_fsck.h``), inside whatever kernel holds their bytes. It answers
with messages, which are places in MESSAGES, and with the ids of blobs that stand as .gitmodules or .gitattributes in a
tree; those are checked here, once each, when all objects are there.

The rules are those of ``git index-pack --strict``, which receive-pack runs: what git warns of is an error, "info" is
told and let pass. Checks of refs and of packed-refs have ids for the sake of configurations, and nothing to check here.
"""

from __future__ import annotations

import enum
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardgit import _fsck
from shardgit._fsck import NAME_MAX_AT, NAME_MAX_BYTES, SEVERITIES, TABLE_BYTES
from shardgit.errors import InvalidArgument
from shardgit.limits import DEFAULT as DEFAULT_LIMITS
from shardgit.oid import hex_of, oid_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

    from shardgit.oid import HashKind, ObjectId

MESSAGES = _fsck.MESSAGES  # git's message ids, in the order of its fsck.h
FINDINGS_MAX = 100  # of one blob: the reader of the message has long seen enough
SHOWN_MAX_BYTES = 1_024  # of a value in a message
ATTRIBUTES_LINE_MAX_BYTES = 2_048  # from here on git does not read a line
_IDS = {name.lower(): message for message, name in enumerate(MESSAGES)}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Severity(enum.IntEnum):
    """How bad a finding is. ERROR and FATAL refuse the object; FATAL cannot be changed."""

    IGNORE = 0
    INFO = 1
    WARN = 2
    ERROR = 3
    FATAL = 4


class Special(enum.IntEnum):
    """A blob that git reads as configuration: what a tree's entry makes of it."""

    GITMODULES = 1
    GITATTRIBUTES = 2

    @property
    def path(self) -> str:
        """The name of the file."""
        return ".gitmodules" if self is Special.GITMODULES else ".gitattributes"

    @property
    def max_bytes(self) -> int:
        """The size up to which such a file is read."""
        if self is Special.GITMODULES:
            return DEFAULT_LIMITS.fsck_gitmodules_max_bytes
        return DEFAULT_LIMITS.fsck_gitattributes_max_bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an object: ``message`` is a place in MESSAGES, ``text`` says it in git's words."""

    message: int
    text: str

    @property
    def name(self) -> str:
        """The message id, as git and its configuration call it."""
        return MESSAGES[self.message]


@dataclass(frozen=True, slots=True)
class FsckConfig:
    """How severe each message is, and which objects are let pass whatever they hold.

    ``table`` is what the kernel takes: a severity a message, and the longest path name allowed.
    """

    table: bytes
    skip: frozenset[ObjectId] = frozenset()

    @classmethod
    def parse(
        cls, severities: Mapping[str, str], skip: Iterable[ObjectId] = (), *, strict: bool = True
    ) -> FsckConfig:
        """Read overrides as ``receive.fsck.<id>`` has them: "error", "warn" or "ignore" by message id.

        Without ``strict`` a warning is one, as for ``git fsck``; with it an error, as for a push.

        largePathname takes "error:4096" too. Ids are found in any case. InvalidArgument for an id or severity that
        there is not, and for a fatal message that is to be less than an error.
        """
        table = bytearray(DEFAULT.table if strict else _table(SEVERITIES))
        for name, word in severities.items():
            message = message_of(name)
            if MESSAGES[message] == "largePathname" and ":" in word:
                word, _, limit = word.partition(":")  # noqa: PLW2901
                table[NAME_MAX_AT : NAME_MAX_AT + 4] = _length_of(limit).to_bytes(4, "little")
            severity = _SEVERITY_WORDS.get(word)
            if severity is None:
                raise InvalidArgument("unknown fsck severity", message=name, severity=word)
            if SEVERITIES[message] == Severity.FATAL:
                if severity != Severity.ERROR:
                    raise InvalidArgument(
                        "a fatal fsck message cannot be demoted", message=name, severity=word
                    )
                severity = Severity.FATAL
            table[message] = severity
        return cls(bytes(table), frozenset(skip))

    def severity(self, message: int) -> Severity:
        """Return how severe a message is."""
        return Severity(self.table[message])

    def refuses(self, message: int, oid: ObjectId) -> bool:
        """Whether the finding of a message in an object refuses that object."""
        return self.table[message] >= Severity.ERROR and oid not in self.skip

    def tells(self, message: int, oid: ObjectId) -> bool:
        """Whether a finding is told at all."""
        return self.table[message] > Severity.IGNORE and oid not in self.skip


_SEVERITY_WORDS = {"error": Severity.ERROR, "warn": Severity.WARN, "ignore": Severity.IGNORE}


def _length_of(text: str) -> int:
    """Read a length as git's configuration has it; at most what four bytes hold."""
    found = re.fullmatch(r"\s*\+?([0-9]{1,18})([kmg]?)", text.lower())
    if not found:
        raise InvalidArgument("not a length", key="largePathname", value=text[:80])
    return min(int(found[1]) * _UNITS[found[2]], 0xFFFFFFFF)


def _strict_table() -> bytes:
    """Return git's severities in strict mode: a warning is an error."""
    return _table(bytes(Severity.ERROR if each == Severity.WARN else each for each in SEVERITIES))


def _table(severities: bytes) -> bytes:
    return severities.ljust(NAME_MAX_AT, b"\0") + NAME_MAX_BYTES.to_bytes(
        TABLE_BYTES - NAME_MAX_AT, "little"
    )


DEFAULT = FsckConfig(_strict_table())


def message_of(name: str) -> int:
    """Return the message that a name stands for, in any case; InvalidArgument when there is none."""
    message = _IDS.get(name.lower())
    if message is None:
        raise InvalidArgument("unknown fsck message", message=name[:80])
    return message


def parse_skip_list(text: str, kind: HashKind) -> frozenset[ObjectId]:
    """Read a list of objects to let pass, as in ``receive.fsck.skipList``: an id a line, # starts a comment."""
    lines = (line.partition("#")[0].strip() for line in text.split("\n"))
    return frozenset(oid_of(line, kind) for line in lines if line)


def check_object(
    kind: HashKind, type: int, data: Buffer, config: FsckConfig = DEFAULT
) -> tuple[list[Finding], list[tuple[Special, bytes]]]:
    """Check one object; returns what is wrong with it and the blobs that its tree entries make special."""
    found, special = _fsck.check(kind, type, data, config.table)
    view = memoryview(data)
    findings = [Finding(message, text_of(message, offset, view)) for message, offset in found]
    return findings, [(Special(which), oid) for which, oid in special]


def check_special(special: Special, type: int | None, data: bytes | None) -> list[Finding]:
    """Check a blob that stands as a special file. A type of None: there is no such object; data of None: too large.

    A file of more than ``special.max_bytes`` need not be read: it is too large, as for git one that it will not load.
    """
    prefix = "gitmodules" if special is Special.GITMODULES else "gitattributes"
    if type is None:
        return [_finding(f"{prefix}Missing")]
    if type != 3:
        return [_finding(f"{prefix}Blob")]
    if data is None or len(data) > special.max_bytes:
        return [_finding(f"{prefix}Large")]
    return check_gitmodules(data) if special is Special.GITMODULES else check_gitattributes(data)


def check_gitmodules(data: bytes) -> list[Finding]:
    """Check the settings of a .gitmodules file; the first FINDINGS_MAX of what is wrong."""
    return [
        _finding(_GITMODULES[what], None if what == _fsck.PARSE else shown(value))
        for what, value in itertools.islice(_fsck.GitmodulesReader(data), FINDINGS_MAX)
    ]


def check_gitattributes(data: bytes) -> list[Finding]:
    """Check the length of a .gitattributes file's lines."""
    text = data.partition(b"\0")[0]  # where git's reader ends
    at = 0
    while len(text) - at >= ATTRIBUTES_LINE_MAX_BYTES:
        end = text.rfind(b"\n", at, at + ATTRIBUTES_LINE_MAX_BYTES)
        if end < 0:
            return [_finding("gitattributesLineLength")]
        at = end + 1  # the lines before are shorter than what was searched
    return []


def describe(message: int, oid: bytes, severity: Severity, text: str = "") -> str:
    """Return the line that git prints: "error: object <oid>: missingTree: invalid format - expected 'tree' line"."""
    word = "error" if severity >= Severity.ERROR else "warning"
    return f"{word}: object {hex_of(oid)}: {MESSAGES[message]}: {text or text_of(message)}"


def git_line(type_name: str, oid: bytes, finding: Finding, severity: Severity) -> tuple[str, str]:
    """Return (severity's word, line) as ``git fsck`` says it: "error in commit <oid>: missingTree: ..."."""
    word = "error" if severity >= Severity.ERROR else "warning"
    return word, f"{word} in {type_name} {hex_of(oid)}: {finding.name}: {finding.text}"


def text_of(message: int, offset: int = 0, data: memoryview | None = None) -> str:
    """Return git's words for what the kernel finds. ``offset`` is where; ``data``, the object, names a tag's name."""
    name = MESSAGES[message]
    text = TEXTS.get(name, "")
    if name == "nulInHeader":
        return f"{text}: NUL at offset {offset}"
    if name == "badTagName" and data is not None:
        tag, _, _ = bytes(data[offset : offset + SHOWN_MAX_BYTES]).partition(b"\n")
        return f"{text}: {shown(tag)}"
    return text


def shown(text: bytes) -> str:
    """Return bytes from outside as text for a terminal, the first SHOWN_MAX_BYTES of them.

    Control characters become "?", as in git's messages.
    """
    plain = text[:SHOWN_MAX_BYTES].decode("utf-8", "replace")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "?", plain)


def _finding(name: str, value: str | None = None) -> Finding:
    return Finding(_IDS[name.lower()], TEXTS[name] if value is None else f"{TEXTS[name]}: {value}")


_GITMODULES = {
    _fsck.NAME: "gitmodulesName",
    _fsck.URL: "gitmodulesUrl",
    _fsck.PATH: "gitmodulesPath",
    _fsck.UPDATE: "gitmodulesUpdate",
    _fsck.PARSE: "gitmodulesParse",
}
_LINE = "invalid author/committer line"
TEXTS = {
    "nulInHeader": "unterminated header",
    "unterminatedHeader": "unterminated header",
    "badDate": f"{_LINE} - bad date",
    "badDateOverflow": f"{_LINE} - date causes integer overflow",
    "badEmail": f"{_LINE} - bad email",
    "badName": f"{_LINE} - bad name",
    "badTimezone": f"{_LINE} - bad time zone",
    "missingEmail": f"{_LINE} - missing email",
    "missingNameBeforeEmail": f"{_LINE} - missing space before email",
    "missingSpaceBeforeDate": f"{_LINE} - missing space before date",
    "missingSpaceBeforeEmail": f"{_LINE} - missing space before email",
    "zeroPaddedDate": f"{_LINE} - zero-padded date",
    "badTreeSha1": "invalid 'tree' line format - bad sha1",
    "badParentSha1": "invalid 'parent' line format - bad sha1",
    "badObjectSha1": "invalid 'object' line format - bad sha1",
    "missingTree": "invalid format - expected 'tree' line",
    "missingAuthor": "invalid format - expected 'author' line",
    "multipleAuthors": "invalid format - multiple 'author' lines",
    "missingCommitter": "invalid format - expected 'committer' line",
    "nulInCommit": "NUL byte in the commit object body",
    "missingObject": "invalid format - expected 'object' line",
    "missingTypeEntry": "invalid format - expected 'type' line",
    "missingType": "invalid format - unexpected end after 'type' line",
    "badType": "invalid 'type' value",
    "missingTagEntry": "invalid format - expected 'tag' line",
    "missingTag": "invalid format - unexpected end after 'type' line",
    "badTagName": "invalid 'tag' name",
    "missingTaggerEntry": "invalid format - expected 'tagger' line",
    "extraHeaderEntry": "invalid format - extra header(s) after 'tagger'",
    "badGpgsig": "invalid format - unexpected end after 'gpgsig' or 'gpgsig-sha256' line",
    "badHeaderContinuation": (
        "invalid format - unexpected end in 'gpgsig' or 'gpgsig-sha256' continuation line"
    ),
    "badTree": "cannot be parsed as a tree",
    "nullSha1": "contains entries pointing to null sha1",
    "fullPathname": "contains full pathnames",
    "emptyName": "contains empty pathname",
    "hasDot": "contains '.'",
    "hasDotdot": "contains '..'",
    "hasDotgit": "contains '.git'",
    "zeroPaddedFilemode": "contains zero-padded file modes",
    "badFilemode": "contains bad file modes",
    "duplicateEntries": "contains duplicate file entries",
    "treeNotSorted": "not properly sorted",
    "largePathname": "contains excessively large pathname",
    "gitmodulesSymlink": ".gitmodules is a symbolic link",
    "gitattributesSymlink": ".gitattributes is a symlink",
    "gitignoreSymlink": ".gitignore is a symlink",
    "mailmapSymlink": ".mailmap is a symlink",
    "gitmodulesName": "disallowed submodule name",
    "gitmodulesUrl": "disallowed submodule url",
    "gitmodulesPath": "disallowed submodule path",
    "gitmodulesUpdate": "disallowed submodule update setting",
    "gitmodulesMissing": "unable to read .gitmodules blob",
    "gitmodulesBlob": "non-blob found at .gitmodules",
    "gitmodulesLarge": ".gitmodules too large to parse",
    "gitmodulesParse": "could not parse gitmodules blob",
    "gitattributesMissing": "unable to read .gitattributes blob",
    "gitattributesBlob": "non-blob found at .gitattributes",
    "gitattributesLarge": ".gitattributes too large to parse",
    "gitattributesLineLength": ".gitattributes has too long lines to parse",
    "unknownType": "unknown type",
}
