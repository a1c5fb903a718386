"""C declarations of the resolving half of the ingest, for the half that lays out."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from shardgit._kernel cimport sg_copy, sg_inflater, sg_status
from shardgit._sha1 cimport sg_detector, sg_sha1
from shardgit._spill cimport sg_spill

cdef enum:
    NONE = 0xFFFFFFFF
    EXTERNAL = 0x80000000
    WINDOW = 65536
    BATCH = 32  # roots that a thread takes at once
    FINDINGS_MAX = 1000  # of fsck that a thread keeps: errors
    WARNINGS_MAX = 100  # the same, of those that do not refuse anything
    SIDE_MAX = 1 << 20  # bytes of an object that is hashed beside others; it is held until that is done
    SORT_SMALL = 256  # objects that are sorted by insertion
    SCAN_KEYS = 8  # so few keys, one line of the cache, are looked at one by one
    COMMIT = 1
    TREE = 2
    BLOB = 3
    TAG = 4
    HEADER = 64  # block header
    TRAILER = 48  # segment trailer
    PAGE_OVERHEAD = 16  # LMDB's header of a run of overflow pages


ctypedef struct Object:
    uint64_t at  # entry start in its pack
    uint64_t body  # length of the zlib stream
    uint64_t size  # what the stream inflates to: the object, or the delta
    uint64_t raw  # size of the object
    uint64_t edge_at  # first edge, in the lane's edges
    int64_t date  # of a commit
    uint32_t base
    uint32_t similar  # the tree that this tree's edges are told against; NONE: all children are edges
    uint32_t child  # first child by OFS_DELTA; after layout: first child in the kept forest
    uint32_t next  # next sibling
    uint32_t heavy  # the child with the largest family
    uint32_t weight  # objects in the family below, itself included
    uint32_t edges
    uint32_t position  # run-local
    uint32_t place  # offset in the segment
    uint32_t segment
    uint16_t depth
    uint16_t pack
    uint8_t entry  # type in the pack
    uint8_t type  # of the object, 0 until resolved
    uint8_t head  # bytes of the entry before the zlib stream
    uint8_t lane
    uint8_t keep
    uint8_t claimed
    uint8_t hops
    uint8_t alone  # stored in parts
    uint8_t outside  # a base that the pool has: never laid out
    uint8_t pool_hops  # of an object that the pool has: the hops of its chain there


ctypedef struct Pack:
    const uint8_t *data
    uint64_t size
    uint32_t first
    uint32_t count


ctypedef struct Frame:
    uint8_t *data
    uint64_t *bounds
    uint32_t object
    uint32_t child
    uint32_t ref_at
    uint32_t ref_end
    uint32_t heavy  # NONE once taken


ctypedef struct Finding:
    uint32_t object
    uint32_t message
    uint64_t offset


ctypedef struct Lane:
    sg_inflater *inflater
    sg_sha1 *side  # hashes objects; NULL: OpenSSL does, one by one
    sg_detector *detector  # looks for collision attacks; NULL: nobody does
    bint beside  # ids are known some time later, objects being hashed side by side
    uint8_t *delta
    size_t delta_room
    uint8_t *result
    size_t result_room
    uint8_t *spare
    size_t spare_room
    uint8_t *window
    sg_copy *copies
    size_t copies_room
    Frame *frames
    size_t n_frames
    size_t frames_room
    uint64_t retained
    uint8_t *edges
    uint64_t n_edges
    uint64_t edges_room
    uint32_t *names  # by edge: name_hash of the entry, where names are noted
    Finding *findings
    uint32_t n_findings
    uint32_t n_warnings
    uint8_t *specials  # kind and id of blobs that fsck wants to see: .gitmodules, .gitattributes
    uint64_t n_specials
    uint64_t specials_room
    const uint8_t *severity  # of each message, while one object is checked
    uint32_t checked
    size_t hash_size
    sg_spill *spill  # that its edges came from; NULL: plain memory, as those of the delta encoder are
    bint no_memory


cdef class Resolver:
    cdef readonly int hash_kind
    cdef readonly bint detect  # collision attacks
    cdef size_t hash_size
    cdef uint64_t size_max
    cdef uint64_t memory_max
    cdef uint64_t cache_max
    cdef uint64_t objects_max
    cdef uint64_t raw_max
    cdef uint64_t delta_max  # of what a delta makes: it is made in memory, with its base beside it
    cdef uint32_t depth_max
    cdef sg_spill spill
    cdef Object *objects
    cdef uint8_t *ids
    cdef size_t room  # objects that both have room for
    cdef uint32_t n
    cdef Pack *packs
    cdef uint16_t n_packs
    cdef Py_buffer *buffers
    cdef uint16_t n_buffers  # the packs that came from outside; those after are entries written anew
    cdef uint32_t *roots
    cdef uint32_t n_roots
    cdef uint32_t *refs  # REF_DELTA entries sorted by pack and base id
    cdef uint32_t n_refs
    cdef Lane lanes[64]
    cdef uint64_t n_lanes  # taken in this round
    cdef uint64_t lanes_most  # taken in any round
    cdef uint32_t n_outside  # bases from outside: the last of `objects`
    cdef list _outside  # their bytes
    cdef uint64_t outside_bytes
    cdef uint64_t taken  # roots given out
    cdef uint64_t resolved
    cdef uint64_t work  # bytes of objects made, those made again included
    cdef uint64_t failure  # status + (object index << 8), 0 while all is well
    cdef uint32_t *sorted  # object indices by id
    cdef uint32_t *buckets  # first of `sorted` by the top 16 bits
    cdef uint64_t *keys  # the first 8 bytes of each id, as `sorted`; NULL for a few objects
    cdef bint linked
    cdef bint noting  # names of tree entries, beside the edges
    cdef uint32_t *walk  # object indices in the order in which they shall be laid out; NULL: as they came
    cdef uint8_t *sight  # by object: who sees it, 0 first; families and segments hold one kind; NULL: all alike
    cdef bytes _severity  # of fsck's messages; None: nothing is checked
    cdef const uint8_t *severity

    cdef uint64_t _lanes_used(self) noexcept nogil
    cdef int _grow(self, uint32_t count) except -1
    cdef sg_status _scan(self, Pack *p, uint32_t count, const uint64_t *starts, uint64_t *failed_at) noexcept nogil
    cdef sg_status _scan_head(self, Pack *p, Object *o, uint64_t at, uint64_t end) noexcept nogil
    cdef sg_status _scan_body(self, Pack *p, Object *o, sg_inflater *inflater, uint8_t **scratch, size_t *room, uint64_t end) noexcept nogil
    cdef const uint8_t *_ref_base(self, uint32_t i) noexcept nogil
    cdef int _compare_ref(self, uint32_t i, uint16_t pack, const uint8_t *oid) noexcept nogil
    cdef void _sort_refs(self) noexcept nogil
    cdef bint _ref_less(self, uint32_t a, uint32_t b) noexcept nogil
    cdef uint32_t _find_ref(self, uint16_t pack, const uint8_t *oid) noexcept nogil
    cdef sg_status _family(self, Lane *lane, uint8_t number, uint32_t *at) noexcept nogil
    cdef uint32_t _next_child(self, Frame *f) noexcept nogil
    cdef void _evict(self, Lane *lane) noexcept nogil
    cdef void _let_go(self, Lane *lane, Frame *f) noexcept nogil
    cdef void _hash(self, Lane *lane, Object *o, uint8_t *data, bint stays, uint8_t *oid) noexcept nogil
    cdef void _hash_now(self, Lane *lane, Object *o, const uint8_t *data, uint8_t *oid) noexcept nogil
    cdef sg_status _make_again(self, Lane *lane, Frame *f) noexcept nogil
    cdef sg_status _data(self, Lane *lane, uint32_t i, uint8_t **out, size_t *out_size) noexcept nogil
    cdef sg_status _inflate(self, Lane *lane, Object *o, uint8_t *out) noexcept nogil
    cdef sg_status _object(self, Lane *lane, uint8_t number, uint32_t i, Frame *base) noexcept nogil
    cdef bint _has_ref(self, uint16_t pack, const uint8_t *oid) noexcept nogil
    cdef sg_status _stream_id(self, Lane *lane, Object *o, uint8_t *oid) noexcept nogil
    cdef sg_status _push(self, Lane *lane, uint32_t i, uint64_t *bounds, uint32_t ref_at, uint32_t ref_end) noexcept nogil
    cdef sg_status _edge(self, Lane *lane, const uint8_t *oid) noexcept nogil
    cdef sg_status _tree(self, Lane *lane, size_t n, Frame *base, size_t n_copies, uint64_t *bounds) noexcept nogil
    cdef sg_status _commit(self, Lane *lane, Object *o) noexcept nogil
    cdef sg_status _tag(self, Lane *lane, size_t n) noexcept nogil
    cdef void _sort_few(self) noexcept nogil
    cdef bint _sort(self) noexcept nogil
    cdef bint _same_id(self, uint32_t a, uint32_t b) noexcept nogil
    cdef uint32_t _unique(self) noexcept nogil
    cdef uint32_t _find(self, const uint8_t *oid) noexcept nogil
    cdef uint32_t _rank(self, const uint8_t *oid) noexcept nogil
    cdef bint _in_packs(self, const uint8_t *oid) noexcept nogil


cdef void free_lane(Lane *lane) noexcept nogil


cdef sg_status tree_entry(const uint8_t *data, size_t n, size_t at, size_t h, size_t *end, bint *link) noexcept nogil
