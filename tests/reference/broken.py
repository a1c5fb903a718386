"""Objects with mistakes in them, made from a seed: what fsck is there to find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

SPECIAL = [
    *(b".git", b"git~1", b"git~2", b".gitmodules", b"gitmod~1", b"gitmod~4", b"gitmod~5"),
    *(b"gi7eba~1", b"gi7eb~01", b"gi7eb~10", b"g~100000", b"~1000000", b"~1", b"gi7eba~9x"),
    *(b".gitattributes", b"gitatt~2", b"gi7d29~3", b".gitignore", b"gitign~3", b"gi250a~1"),
    *(b".mailmap", b"mailma~1", b"maba30~1", b"mab~12345", b".", b"..", b"...", b".gitx", b"gitk"),
]
HIDDEN = [b"\xe2\x80\x8c", b"\xe2\x80\xae", b"\xe2\x81\xaa", b"\xef\xbb\xbf", b"\xe2\x80\x90"]
TAILS = [b" ", b".", b":", b"\\", b"/", b"\xff", b"\xc3", b". .", b":x", b"\\.git", b"x", b"\x01"]
MODES = [b"100644", b"100755", b"40000", b"120000", b"160000"]
BAD_MODES = [b"100664", b"0100644", b"040000", b"100600", b"1", b"0", b"1100644", b"777777777777"]


@dataclass(frozen=True, slots=True)
class Row:
    """An entry of a tree."""

    mode: bytes
    name: bytes
    oid: bytes

    @property
    def key(self) -> bytes:
        """What git sorts by."""
        return self.name + (b"/" if int(self.mode, 8) & 0o170000 == 0o40000 else b"")


def special_name(rand: random.Random) -> bytes:
    """Return a name that a file system may take for .git or a file that git reads, or almost."""
    name = rand.choice(SPECIAL)
    while rand.random() < 0.6:
        at = rand.randrange(len(name) + 1)
        change = rand.randrange(6)
        if change == 0:
            name = name[:at] + rand.choice(HIDDEN) + name[at:]
        elif change == 1:
            name += rand.choice(TAILS)
        elif change == 2:
            name = name[:at] + name[at : at + 1].swapcase() + name[at + 1 :]
        elif change == 3 and len(name) > 1:
            name = name[:at] + name[at + 1 :]
        elif change == 4:
            name = rand.choice((b"a\\", b"b/", b"\\", b"x")) + name
        else:
            name = name.upper()
    return name


def plain_name(rand: random.Random) -> bytes:
    """Return a name of a small set, so that prefixes and repeats come up."""
    return b"".join(rand.choices((b"a", b"b", b".", b"-", b"0", b"a.b"), k=rand.randint(1, 5)))


def tree(rand: random.Random, hash_size: int) -> bytes:
    """Return a tree: sorted or almost, with few or many mistakes."""
    special = rand.choice((0.0, 0.1, 0.5))
    rows = []
    for _ in range(rand.randint(0, 12)):
        mode = rand.choice(MODES) if rand.random() < 0.97 else rand.choice(BAD_MODES)
        name = special_name(rand) if rand.random() < special else plain_name(rand)
        if rand.random() < 0.005:
            name = b"n" * rand.choice((4095, 4096, 4097))
        oid = bytes(hash_size) if rand.random() < 0.01 else rand.randbytes(hash_size)
        rows.append(Row(mode, name, oid))
    names = set()
    if rand.random() < 0.8:  # without repeats, but for a file and a directory of one name
        rows = [
            row
            for row in rows
            if row.key not in names and not names.add(row.key)  # type: ignore[func-returns-value]
        ]
    rows.sort(key=lambda row: row.key)
    if rand.random() < 0.1 and len(rows) > 1:
        at = rand.randrange(len(rows) - 1)
        rows[at : at + 2] = reversed(rows[at : at + 2])
    data = b"".join(row.mode + b" " + row.name + b"\0" + row.oid for row in rows)
    if rand.random() < 0.05 and data:
        at = rand.randrange(len(data))
        data = rand.choice((data[:at], data[:at] + data[at + 1 :], data[at:]))
    return data


NAMES = [b"A U Thor", b"", b"A", b"A<", b"A>", b"\xff", b"A  "]
EMAILS = [b"<a@b.c>", b"<>", b"a@b.c", b"<a@b.c", b"a@b.c>", b"<a<b>", b"<a>>"]
DATES = [b"1700000000", b"0", b"01", b"00", b"9223372036854775807", b"9223372036854775808"]
DATES += [b"18446744073709551616", b"9" * 40, b"x", b"", b"1x", b" 12"]
ZONES = [b"+0000", b"-0730", b"+000", b"+00000", b"0000", b"+00x0", b"", b"+9999", b"\x010000"]


def ident(rand: random.Random, *, broken: float = 0.3) -> bytes:
    """Return who did something and when, mistaken with a probability."""

    def pick(choices: list[bytes]) -> bytes:
        return rand.choice(choices) if rand.random() < broken else choices[0]

    def gap() -> bytes:
        return rand.choice((b"", b"  ", b"\t")) if rand.random() < broken / 3 else b" "

    return pick(NAMES) + gap() + pick(EMAILS) + gap() + pick(DATES) + gap() + pick(ZONES)


def commit(rand: random.Random, hash_size: int) -> bytes:
    """Return a commit whose ids git can parse, for the rest of it to be judged."""
    lines = [b"tree " + rand.randbytes(hash_size).hex().encode()]
    lines += [
        b"parent " + rand.randbytes(hash_size).hex().encode() for _ in range(rand.randrange(3))
    ]
    authors = rand.choice((1, 1, 1, 1, 1, 1, 0, 2))
    lines += [b"author " + ident(rand, broken=0.12) for _ in range(authors)]
    if rand.random() < 0.95:
        lines.append(b"committer " + ident(rand, broken=0.12))
    if rand.random() < 0.2:
        lines += [b"encoding ISO-8859-1", b"gpgsig -----BEGIN", b" x", b" -----END"]
    if rand.random() < 0.05:
        lines.insert(rand.randrange(1, len(lines) + 1), rand.choice((b"x", b"extra y", b"a\0b")))
    end = rand.choice((b"\n\nmessage\n", b"\n", b"\n\n", b"", b"\n\nnul \0 here\n", b"\n\nm\n\nm"))
    return b"\n".join(lines) + (end if rand.random() < 0.5 else b"\n\nmessage\n")


TAG_NAMES = [b"v1.0", b"", b"a..b", b"a/b", b"a/", b".a", b"a.", b"x.lock", b"a@{b", b"@", b"a b"]
TAG_NAMES += [b"a~", b"a\x7f", b"a.lock/b", b"/a", b"a//b", b"\xff", b"a\\b", b"refs/*", b"a/.b"]


def tag(rand: random.Random, hash_size: int) -> bytes:
    """Return a tag that git can parse as one, for the rest of it to be judged."""
    name = rand.choice(TAG_NAMES) if rand.random() < 0.6 else TAG_NAMES[0]
    kind = rand.choice((b"commit", b"tree", b"blob", b"tag"))
    lines = [b"object " + rand.randbytes(hash_size).hex().encode(), b"type " + kind, b"tag " + name]
    if rand.random() < 0.85:
        lines.append(b"tagger " + ident(rand, broken=0.1))
    if rand.random() < 0.1:
        lines.append(b"extra header")
    end = rand.choice((b"\n", b"\n\n", b"", b"\n\nnul \0 here\n", b"\nx\0"))
    return b"\n".join(lines) + (end if rand.random() < 0.3 else b"\n\nmessage\n")


URLS = [
    *(b"https://example.com/a.git", b"../a.git", b"./a", b"git@host:a/b.git", b"/srv/a", b"-x"),
    *(b"git://h/%0ahost=x", b"git://h/a", b"../a%0Ab", b"..\\..\\:x", b"./../../x", b"./%0a:x"),
    *(b"../../:x", b"..//x", b".//x", b"http://h%0a/x", b"http://h/a%0ab", b"http://h/%250a"),
    *(b"https:///x", b"https::///x", b"http::https://h/x", b"http::x", b"ftp://u@h/x", b"ftps::a"),
    *(b"http://h:80/x", b"http://h:99999/x", b"http://h:0/x", b"http://h:/x", b"http://h:8a/x"),
    *(b"https://h/../x", b"https://h/a/../x", b"https://h/%zz", b"https://h/%0a/../x", b"https://"),
    *(
        b"https://[::1]:80/x",
        b"https://[::1]/x",
        b"https://h?%0a",
        b"https://u:p%0a@h/",
        b"ssh://-x",
    ),
    *(
        b"https://h/./..",
        b"https://h//..",
        b"https://h/%2e%2e/x",
        b"https://h#%0A",
        b"http::file:///x",
    ),
    *(
        b"http::file://:80/x",
        b"http::file://:/x",
        b"http://h_-.:1/x",
        b"http://h!/x",
        b"ext::sh -c x",
    ),
    *(b"https://u@/x", b"https://@h/x", b"https://a@b@c/x", b"ftp::http://", b"HTTP://h/%0a"),
]
SUBMODULES = [
    b"a",
    b"..",
    b"../x",
    b"x/..",
    b"x/../y",
    b"x..",
    b"a\\\\..\\\\b",
    b"",
    b"..x",
    b"a\nb",
]
LINES = [
    *(
        b"[core]",
        b"  bare = true",
        b"[submodule]",
        b"url = -x",
        b"# comment [",
        b"; x",
        b"",
        b"key",
    ),
    *(
        b'[submodule "a" ]',
        b"[submodule",
        b"9key = x",
        b"path",
        b'x = "open',
        b"x = \\q",
        b"x = \\",
    ),
    *(b'[submodule.sub] update = "!x"', b"update = !sh", b"update = none", b"path = -p", b"url ="),
    *(
        b"path=a;b",
        b'url = "a b" # c',
        b'url = "\\n../x"',
        b"URL = -u",
        b"\r",
    ),
    *(
        b"[a-b.c]",
        b"[a_b]",
        b"[]",
        b'[ "x"]',
        b"pa\0th = -x",
        b"path = \0-x",
        b"path = -\0x",
        b"x y",
    ),
]


def gitmodules(rand: random.Random) -> bytes:
    """Return a .gitmodules file, sound or not.

    Without a byte order mark at its start and 0xff: git reads a blob with signed bytes, so that the one is a mistake
    and the other the end; when it reads the file, they are what they should be.
    """
    lines = []
    for _ in range(rand.randrange(4)):
        name = rand.choice(SUBMODULES) if rand.random() < 0.3 else b"lib"
        if rand.random() < 0.05:
            name += b'\\"' + rand.choice((b"\0", b"x", b"."))
        lines.append(b'[submodule "' + name + b'"]')
        lines.append(b"\tpath = " + rand.choice((b"lib", b"a/b", b"--x", b"'-x'", b'"-x"', b"a-")))
        lines.append(b"\turl = " + rand.choice(URLS))
        if rand.random() < 0.3:
            lines.append(b"\tupdate = " + rand.choice((b"none", b"!cmd", b"rebase", b"x", b'"!"')))
    for _ in range(rand.choice((0, 0, 1, 3))):
        lines.insert(rand.randrange(len(lines) + 1), rand.choice(LINES))
    return rand.choice((b"\n", b"\n", b"\r\n")).join(lines) + rand.choice((b"", b"\n"))


def gitattributes(rand: random.Random) -> bytes:
    """Return a .gitattributes file, with lines of lengths round git's bound."""
    lines = [
        b"*.c text" + b"x" * rand.choice((0, 0, 2_039, 2_040, 5_000))
        for _ in range(rand.randrange(4))
    ]
    return rand.choice((b"", b"", b"", b"\0")).join(
        [b"\n".join(lines), rand.choice(lines or [b""])]
    )
