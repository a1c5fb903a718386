"""What may be set for one repository. See docs/settings.md for every key.

A repository's record keeps as JSON what differs from the defaults, which are git's unless the
field says why not. Unknown keys are errors, at the edge and in the record.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Literal

import msgspec

from shardgit.errors import InvalidArgument, JournalCorrupt, StoreFormatUnknown
from shardgit.fsck import FsckConfig

if TYPE_CHECKING:
    from shardgit.journal.records import RepositoryRecord

SETTINGS_MAX_BYTES = 256 * 1024  # a journal row holds 1 MiB
LIST_MAX = 1_000
TEXT_MAX = 1_000
PATTERN_MAX = 255
HOOK_TIMEOUT_MAX_S = 3_600.0
HOOKS_MAX = 32  # each post_receive hook is a step of the commit that sets or removes it
_WORD = re.compile(r"[A-Za-z0-9-]+")
MIRROR_MIN_S, MIRROR_MAX_S = 10, 31 * 86_400
# No files, no paths of this machine; a user may stand in it, a password may not: listings and logs show it.
_MIRRORED = re.compile(r"(?:https?|ssh|git|shardgits?)://(?:[^\s/@:]+@)?[^\s@/]+/[!-~]*")
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def _check_count(key: str, values: tuple[object, ...]) -> None:
    if len(values) > LIST_MAX:
        raise InvalidArgument("setting has too many entries", key=key, limit=LIST_MAX)


def _check_texts(key: str, values: tuple[str, ...]) -> None:
    _check_count(key, values)
    for text in values:
        if len(text) > TEXT_MAX or not (text.isprintable() or not text):
            raise InvalidArgument("setting is too long or not printable", key=key)


class _Section(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """Base of all sections."""


class ProtectedRef(_Section, frozen=True):
    """What nobody may do to the refs that a pattern matches; of several entries all count.

    ``pattern`` is a glob over the full name: ``*`` stands for any run of characters, "/" among
    them, ``?`` for one, ``[...]`` for one of a set; without these it is the name itself. ``writers`` are globs over the
    names of those who alone may change such refs; without any everybody who may write may.
    """

    pattern: str
    create: bool = True
    update: bool = True
    force: bool = False  # updates that are no fast-forward
    delete: bool = False
    writers: tuple[str, ...] = ()
    advice: str = ""  # told to whoever is refused: what to do instead

    def __post_init__(self) -> None:
        """Check what the types do not."""
        if not self.pattern or len(self.pattern) > PATTERN_MAX:
            raise InvalidArgument(
                "ref pattern is empty or too long", pattern=self.pattern[:80], limit=PATTERN_MAX
            )
        _check_texts("advice", (self.advice,))
        _check_texts("writers", self.writers)


class TransferSettings(_Section, frozen=True):
    """What fetches and pushes share."""

    hidden_refs: tuple[str, ...] = ()  # as git's transfer.hideRefs

    def __post_init__(self) -> None:
        """Check what the types do not."""
        _check_texts("hidden_refs", self.hidden_refs)


class PromisorRemote(_Section, frozen=True):
    """Another place that holds the repository's objects, as a client may be told."""

    name: str
    url: str
    filter: str = ""  # what a partial clone from there leaves out

    def __post_init__(self) -> None:
        """Check what the types do not."""
        _check_texts("promisors", (self.name, self.url, self.filter))
        if not self.name or not self.url:
            raise InvalidArgument("promisor remote needs a name and a URL", name=self.name)


class ListedBundle(_Section, frozen=True):
    """A bundle that stands somewhere else, as git's bundle.<id> keys describe it."""

    id: str
    uri: str
    filter: str = ""
    creation_token: int = 0

    def __post_init__(self) -> None:
        """Check what the types do not."""
        _check_texts("listed_bundles", (self.id, self.uri, self.filter))
        if not _WORD.fullmatch(self.id) or not self.uri:
            raise InvalidArgument(
                "listed bundle needs an id of letters, digits and '-', and a URI", id=self.id[:80]
            )
        if not 0 <= self.creation_token < 1 << 63:
            raise InvalidArgument("setting is out of range", key="creation_token")


class ListedPack(_Section, frozen=True):
    """A pack with one object that stands somewhere else, as git's uploadpack.blobPackfileUri names it."""

    object: str  # ids in hex
    pack: str
    uri: str

    def __post_init__(self) -> None:
        """Check what the types do not."""
        _check_texts("listed_packs", (self.uri,))
        for oid in (self.object, self.pack):
            if not _OID.fullmatch(oid):
                raise InvalidArgument("not a full id", key="fetch.listed_packs", value=oid[:80])
        if ":" not in self.uri:
            raise InvalidArgument("listed pack needs a URI", uri=self.uri[:80])


FilterName = Literal["blob:none", "blob:limit", "tree", "sparse:oid", "object:type", "combine"]


class FetchSettings(_Section, frozen=True):
    """What clients may fetch, and how. Whatever is asked for, only what shown refs reach is given."""

    allow_filter: bool = True  # git's is off: partial clones are what a host is asked for
    denied_filters: tuple[FilterName, ...] = ()  # as git's uploadpackfilter.<filter>.allow
    tree_depth_max: int = -1  # of a tree filter, as uploadpackfilter.tree.maxDepth; -1: any
    allow_ref_in_want: bool = True  # git's is off: refs that move meanwhile fail no fetch with it
    # v2 lets any reachable id be wanted; these are for v0, where git's are off.
    allow_reachable_wants: bool = True
    allow_tip_wants: bool = True
    allow_sideband_all: bool = True  # git's is off: it was written for its tests
    advertise_session_id: bool = True  # git's is off: with it a client's log leads to ours
    unborn: Literal["advertise", "allow", "ignore"] = "advertise"  # as git's lsrefs.unborn
    promisors: tuple[PromisorRemote, ...] = ()  # shown to clients of protocol v2
    hidden_refs: tuple[str, ...] = ()  # as git's uploadpack.hideRefs
    bundle_uri: Literal["auto", "on", "off"] = "auto"  # git's is off: it has none to offer itself
    listed_bundles: tuple[ListedBundle, ...] = ()  # by hand; instead of shardgit's own
    listed_bundles_mode: Literal["all", "any"] = "all"  # as git's bundle.mode
    hidden_wants: bool = False  # as git's uploadpack.allowTipSHA1InWant does for hidden refs
    listed_packs: tuple[ListedPack, ...] = ()  # by hand, beside shardgit's own
    packfile_uris: bool = False
    archive_unreachable: bool = False  # as git's uploadArchive.allowUnreachable, within the refs

    def __post_init__(self) -> None:
        """Check what the types do not."""
        _check_texts("hidden_refs", self.hidden_refs)
        _check_count("promisors", self.promisors)
        _check_count("listed_bundles", self.listed_bundles)
        _check_count("listed_packs", self.listed_packs)
        _check_count("denied_filters", self.denied_filters)
        if not -1 <= self.tree_depth_max < 1 << 63:
            raise InvalidArgument("setting is out of range", key="fetch.tree_depth_max")


class ReceiveSettings(_Section, frozen=True):
    """What pushes may do. Limits of 0 leave only the store's own."""

    deny_non_fast_forwards: bool = False
    deny_deletes: bool = False
    deny_delete_current: Literal["refuse", "warn", "ignore"] = "refuse"
    protected_refs: tuple[ProtectedRef, ...] = ()
    hidden_refs: tuple[str, ...] = ()  # as git's receive.hideRefs
    fsck_objects: bool = True  # git's is off: a host cannot take back what it has served
    atomic: bool = True
    shallow_update: bool = False  # as git's receive.shallowUpdate
    push_options: bool = True  # git's is off: it has no hooks unless somebody wrote them
    advertise: Literal["auto", "all", "heads"] = "auto"
    advertise_cap: int = 10_000  # refs shown at a push unless all are
    max_push_bytes: int = 0  # of the pack as it is sent
    max_push_objects: int = 0
    max_push_refs: int = 0
    max_file_bytes: int = 0  # of one blob

    def __post_init__(self) -> None:
        """Check what the types do not."""
        _check_texts("hidden_refs", self.hidden_refs)
        _check_count("protected_refs", self.protected_refs)
        for name in (
            *("advertise_cap", "max_push_bytes", "max_push_objects"),
            *("max_push_refs", "max_file_bytes"),
        ):
            if not 0 <= getattr(self, name) < 1 << 63:
                raise InvalidArgument("setting is out of range", key=f"receive.{name}")


class FsckSettings(_Section, frozen=True):
    """How strict fsck is: severities by message id (git's camelCase), objects that are let pass."""

    severities: dict[str, str] = {}  # ignore, warn or error
    skip_list: tuple[str, ...] = ()  # ids in hex

    def __post_init__(self) -> None:
        """Check what the types do not."""
        FsckConfig.parse(self.severities)
        _check_count("fsck.skip_list", self.skip_list)
        for oid in self.skip_list:
            if not _OID.fullmatch(oid):
                raise InvalidArgument("not a full object id", key="fsck.skip_list", value=oid[:80])


class SignedPushSettings(_Section, frozen=True):
    """Whether pushes are signed, and by whom."""

    mode: Literal["off", "allowed", "required"] = "off"
    nonce_seed: str = ""  # of the nonce's HMAC; made when the mode is set and none is given
    nonce_slop_s: int = 300  # git's is 0; over HTTP every push comes after its nonce
    gpg_keys: tuple[str, ...] = ()  # armored public keys
    ssh_signers: tuple[str, ...] = ()  # lines of an allowed-signers file, see ssh-keygen(1)

    def __post_init__(self) -> None:
        """Check what the types do not."""
        for lines in (self.gpg_keys, self.ssh_signers):
            _check_count("signed_push", lines)
        if any("\n" in text.strip() for text in self.ssh_signers):
            raise InvalidArgument("a signer stands on one line", key="signed_push.ssh_signers")
        if not 0 <= self.nonce_slop_s <= 86_400:
            raise InvalidArgument("setting is out of range", key="signed_push.nonce_slop_s")
        if len(self.nonce_seed) > TEXT_MAX:
            raise InvalidArgument("setting is too long", key="signed_push.nonce_seed")


class LfsSettings(_Section, frozen=True):
    """Git LFS."""

    enabled: bool = True


class QuotaSettings(_Section, frozen=True):
    """What the repository may take, 0 for no bound. See service/usages.py for what counts."""

    bytes: int = 0
    objects: int = 0

    def __post_init__(self) -> None:
        """Check what the types do not."""
        for name in ("bytes", "objects"):
            if not 0 <= getattr(self, name) < 1 << 62:
                raise InvalidArgument("setting is out of range", key=f"quota.{name}")


class MirrorSettings(_Section, frozen=True):
    """Another repository that this one follows; see service/mirrors.py."""

    url: str = ""
    interval_s: int = 300
    refs: tuple[str, ...] = ()  # globs over full names; none: all
    credential: str = ""  # name of one in the server's configuration

    def __post_init__(self) -> None:
        """Check what the types do not."""
        _check_texts("mirror.refs", self.refs)
        _check_texts("mirror.credential", (self.credential,))
        if self.url and (not _MIRRORED.fullmatch(self.url) or len(self.url) > TEXT_MAX):
            raise InvalidArgument(
                "a mirror follows a URL of http, https, ssh or git without a password",
                key="mirror.url",
            )
        if not MIRROR_MIN_S <= self.interval_s <= MIRROR_MAX_S:
            raise InvalidArgument(
                "mirror's interval is out of range", least_s=MIRROR_MIN_S, most_s=MIRROR_MAX_S
            )


def check_mirrored(url: str) -> None:
    """Raise InvalidArgument for a URL that shows a secret: everybody is told what a mirror follows.

    Over ssh a user is none. Rows that were written before this was checked are read all the same.
    """
    protocol, _, rest = url.partition("://")
    if protocol != "ssh" and "@" in rest.partition("/")[0]:
        raise InvalidArgument(
            "a mirror's URL names no user; a token or password goes into mirror_credentials",
            key="mirror.url",
        )


class Hook(_Section, frozen=True):
    """One hook: a program's absolute path, a URL, or the HOST:PORT of a gRPC service."""

    kind: Literal["program", "http", "grpc"]
    event: Literal["pre_receive", "update", "post_receive"]
    target: str
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check what the types do not."""
        starts = {"program": ("/",), "http": ("http://", "https://"), "grpc": ("",)}[self.kind]
        if not self.target.startswith(starts) or not 0 < len(self.target) <= TEXT_MAX:
            raise InvalidArgument("hook has no such target", kind=self.kind, starts=starts[0])
        if not 0 < self.timeout_s <= HOOK_TIMEOUT_MAX_S:
            raise InvalidArgument(
                "hook's time is out of range", timeout_s=self.timeout_s, most=HOOK_TIMEOUT_MAX_S
            )


class RepositorySettings(_Section, frozen=True):
    """All settings of a repository."""

    transfer: TransferSettings = TransferSettings()
    fetch: FetchSettings = FetchSettings()
    receive: ReceiveSettings = ReceiveSettings()
    fsck: FsckSettings = FsckSettings()
    signed_push: SignedPushSettings = SignedPushSettings()
    lfs: LfsSettings = LfsSettings()
    quota: QuotaSettings = QuotaSettings()
    mirror: MirrorSettings = MirrorSettings()
    read_only: bool = False
    read_only_why: str = ""  # told to whoever is refused
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        """Check what the types do not."""
        if len(self.hooks) > HOOKS_MAX:
            raise InvalidArgument("setting has too many entries", key="hooks", limit=HOOKS_MAX)
        _check_texts("read_only_why", (self.read_only_why,))


DEFAULTS = RepositorySettings()


def settings_of(record: RepositoryRecord) -> RepositorySettings:
    """Return a repository's settings. Errors: StoreFormatUnknown for a newer shardgit's."""
    return decode_settings(record.settings)


def unmirrored(data: bytes) -> bytes:
    """Return a record's settings without what it follows, for a copy: that is itself, and takes pushes."""
    settings = decode_settings(data)
    if settings.mirror == MirrorSettings():
        return data
    return encode_settings(msgspec.structs.replace(settings, mirror=MirrorSettings()))


@functools.lru_cache(maxsize=1_024)
def decode_settings(data: bytes) -> RepositorySettings:
    """Return the settings in a record's JSON."""
    try:
        return msgspec.json.decode(data, type=RepositorySettings)
    except msgspec.ValidationError as cause:
        raise StoreFormatUnknown(
            "repository settings are not known to this release", cause=str(cause)
        ) from cause
    except msgspec.DecodeError as cause:
        raise JournalCorrupt("repository settings are not JSON", bytes=len(data)) from cause


def encode_settings(settings: RepositorySettings) -> bytes:
    """Return what a record keeps: what differs from the defaults. Errors: InvalidArgument."""
    kept = {key: value for key, value in msgspec.to_builtins(settings).items() if value}
    data = msgspec.json.encode(kept, order="sorted")
    if len(data) > SETTINGS_MAX_BYTES:
        raise InvalidArgument(
            "settings are too large", bytes=len(data), limit_bytes=SETTINGS_MAX_BYTES
        )
    return data
