"""Every bound on sizes, depths, counts and queues that come from outside."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds checked before anything is allocated. Units stand last in each name."""

    # formats
    block_target_bytes: int = MIB - 16  # fills LMDB's overflow pages exactly
    block_max_bytes: int = 8 * MIB
    segment_objects_max: int = 65_535  # ordinals are u16
    # packs and objects
    pack_objects_max: int = 1 << 30
    pack_raw_max_bytes: int = 1024 * GIB  # of all objects of one import or push, deltas applied
    object_size_max_bytes: int = 4 * GIB  # a larger object is refused
    object_memory_max_bytes: int = 16 * MIB  # a larger one is streamed where that can be avoided
    delta_depth_max: int = 4_095  # git's own ceiling for --depth
    resolve_cache_max_bytes: int = 64 * MIB  # retained bases of one resolving thread
    thin_bases_max_bytes: int = GIB  # bases of one thin pack that the pool has, held at once
    # pushes
    push_pack_max_bytes: int = 64 * GIB  # as sent; it waits in a file
    # What its deltas make: in memory, a base beside it. git makes none of files over 512 MiB (core.bigFileThreshold).
    push_delta_max_bytes: int = 512 * MIB
    # Of its objects, deltas applied: so much, and so many times what was sent. git.git has 26 times.
    push_raw_floor_bytes: int = 16 * GIB
    push_raw_ratio_max: int = 4_096
    push_held_bytes: int = MIB  # of a pack in memory; a larger one waits in a file
    recent_embedded_max_bytes: int = 512 * KIB  # a larger push puts its blocks into the shards
    recents_settle: int = 64  # recents of a pool from which on a settle is begun
    recents_max: int = 128  # the same from which on pushes wait for it
    recents_max_bytes: int = 8 * MIB
    settle_wait_max_s: float = 30.0  # of a push, while another process settles such a pool
    # names and refs
    ref_name_max_bytes: int = 480  # an LMDB key is at most 511 bytes
    ref_symbolic_depth_max: int = 5
    repository_name_max_bytes: int = 200
    # shallow repositories
    shallow_lines_max: int = 1_000_000  # of an imported repository's shallow file
    grafts_max: int = 16_384  # of one repository; a journal row of 512 KiB with SHA-256
    # repositories imported from a URL
    mirror_max_bytes: int = 256 * GIB  # on disk, while it is copied
    mirror_time_max_s: float = 6 * 3_600.0
    mirror_refs_max: int = 1_000_000  # of a source that is followed
    mirror_listing_max_bytes: int = 256 * MIB  # of their list
    mirror_listing_memory_bytes: int = (
        2 * GIB
    )  # of git, which holds a list whole before it shows any
    mirror_copies_max_bytes: int = 32 * GIB  # of sources that are kept for the next time
    # protocol
    request_body_max_bytes: int = 64 * MIB  # a fetch request: wants and haves
    request_lines_max: int = 1_000_000
    refs_prefixes_max: int = 65_536
    request_time_max_s: float = 3_600.0
    client_stall_max_s: float = 60.0
    client_slowest_bytes_s: int = 1_024  # over HTTP and SSH, in each such time; slower ones are cut
    http_connections_max: int = 4_000  # of one worker; an idle one takes about 20 KiB
    # files made of repositories: bundles, packs by URI
    spool_max_bytes: int = 8 * GIB  # the least used go first; a file over it is refused
    # fetches
    filters_max: int = 64  # of one request, combined ones counted each
    filter_depth_max: int = 8  # combine: inside combine:
    deepen_not_max: int = 65_536
    sparse_blob_max_bytes: int = MIB
    # gRPC
    message_max_bytes: int = MIB
    grpc_connections_max: int = 4_000  # of one worker
    grpc_streams_max: int = 1_000  # on one connection; its client keeps further calls back
    handshake_max_s: float = 10.0  # TLS and HTTP/2, before the first call
    ids_per_request_max: int = 10_000_000
    page_size_max: int = 10_000
    # receive-pack
    push_commands_max: int = 1_000_000  # a mirror of a repository of a million refs
    push_head_max_bytes: int = 256 * MIB  # all that stands before the pack
    push_ref_name_max_bytes: int = 4_096  # a longer one breaks the request; see ref_name_max_bytes
    push_options_max: int = 1_000
    push_options_max_bytes: int = MIB
    upload_objects_max: int = 1_000_000  # of one PutObjects; more come as a pack
    upload_grace_s: float = 14 * 86_400.0  # how long an object that no ref names counts as ours
    commit_files_max: int = 10_000  # paths that one commit over gRPC changes
    commit_files_max_bytes: int = 64 * MIB  # of them all; larger files are uploaded first
    # ref log
    log_actor_max_bytes: int = 1_024  # of a principal's name and of an address; the rest is cut
    log_message_max_bytes: int = 4_096
    log_certificate_max_bytes: int = 4 * MIB  # a larger push certificate is refused
    # changes of refs over gRPC
    ref_updates_max: int = 1_000_000
    ref_updates_max_bytes: int = 256 * MIB  # of the requests of one call
    watches_max: int = 10_000  # of one process
    # Git LFS
    lfs_object_max_bytes: int = 128 * GIB  # 131,000 parts
    lfs_batch_objects_max: int = 1_000  # git-lfs asks for 100
    lfs_request_max_bytes: int = MIB  # JSON of a batch or a lock
    lfs_locks_page_max: int = 1_000
    lfs_lock_path_max_bytes: int = 4_096
    # conversations over SSH and bidirectional calls
    client_pause_max_s: float = 900.0  # before a client's next request, or the pack it is making
    ssh_connections_max: int = 2_000  # of one worker; one that idles takes about 100 KiB
    # hooks
    hook_output_max_bytes: int = MIB  # of all hooks of a push, as shown to the client
    hook_answer_max_bytes: int = 64 * KIB  # of an HTTP hook
    # fsck: files that git reads as configuration
    fsck_gitmodules_max_bytes: int = 16 * MIB  # some 130,000 submodules; git reads up to 512 MiB
    fsck_gitattributes_max_bytes: int = 16 * MIB  # git reads up to 100 MiB
    # gc
    gc_grace_s: float = 14 * 86_400.0  # how long what nothing reaches any more is kept
    log_retention_s: float = 90 * 86_400.0  # of ref logs; moments before cannot be brought back
    orphan_age_s: float = 2 * 3_600.0  # of blocks that nothing names; twice the longest request
    gc_wait_s: float = 3_700.0  # for requests that may read what is to be deleted


DEFAULT = Limits()
