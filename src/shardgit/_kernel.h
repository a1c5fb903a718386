/* The primitives that every kernel shares: inflate and deflate (libdeflate when built with it, zlib otherwise and
 * for streams), SHA-1 and SHA-256 through OpenSSL, pack entry headers, deltas.
 *
 * Rules: nothing here allocates a size that only the input claims, recurses, or reads past the end it is given.
 * Functions return an sg_status; outputs are valid only with SG_OK. */
#ifndef SHARDGIT_KERNEL_H
#define SHARDGIT_KERNEL_H

#define OPENSSL_SUPPRESS_DEPRECATED 1 /* SHA1_* and SHA256_*: no context allocation, state that can be copied */
#include <limits.h>
#include <openssl/opensslv.h>
#include <openssl/sha.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#ifdef SHARDGIT_LIBDEFLATE
#include <libdeflate.h>
#endif

typedef enum {
    SG_OK = 0,
    SG_TRUNCATED,   /* the input ends inside a value */
    SG_DEFLATE,     /* not a zlib stream, or a damaged one */
    SG_SIZE,        /* the stream holds more or fewer bytes than claimed */
    SG_TYPE,        /* unknown entry type */
    SG_VARINT,      /* a varint past 64 bits */
    SG_RANGE,       /* an offset or copy outside what it may touch */
    SG_DELTA,       /* a damaged delta */
    SG_BASE_SIZE,   /* the delta names another base size */
    SG_MEMORY,      /* no memory */
    SG_LIMIT,       /* over a limit */
    SG_OBJECT,      /* a commit, tree or tag that does not parse */
    SG_EXTERNAL,    /* the base is outside */
    SG_CHECKSUM,    /* a trailer that does not match */
    SG_DEPTH,       /* a delta chain that is too deep */
    SG_ATTACK       /* a SHA-1 collision attack */
} sg_status;

/* ---- loads and stores, little-endian unless named otherwise ---- */
static inline uint16_t sg_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t sg_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t sg_u64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void sg_put_u16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void sg_put_u32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void sg_put_u64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }
static inline uint32_t sg_u32be(const uint8_t *p) { return __builtin_bswap32(sg_u32(p)); }
static inline uint64_t sg_u64be(const uint8_t *p) { return __builtin_bswap64(sg_u64(p)); }
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "shardgit's formats are little-endian and so are the machines it runs on"
#endif

/* ---- hashing ---- */
typedef struct sg_hash sg_hash;
struct sg_hash {
    union { SHA_CTX sha1; SHA256_CTX sha256; } u;
    int kind; /* 1 SHA-1, 2 SHA-256 */
    void (*more)(sg_hash *h, const uint8_t *data, size_t n); /* takes the bytes instead; NULL: nobody does */
};

static inline size_t sg_hash_size(int kind) { return kind == 2 ? 32 : 20; }
static inline void sg_hash_init(sg_hash *h, int kind) {
    h->kind = kind;
    h->more = NULL;
    if (kind == 2) SHA256_Init(&h->u.sha256); else SHA1_Init(&h->u.sha1);
}
static inline void sg_hash_update(sg_hash *h, const void *data, size_t n) {
    if (h->more != NULL) h->more(h, (const uint8_t *)data, n);
    else if (h->kind == 2) SHA256_Update(&h->u.sha256, data, n); else SHA1_Update(&h->u.sha1, data, n);
}
static inline void sg_hash_final(sg_hash *h, uint8_t *out) {
    if (h->kind == 2) SHA256_Final(out, &h->u.sha256); else SHA1_Final(out, &h->u.sha1);
}
/* Write "blob 123\0" for an object; at most 28 bytes. Returns its length. */
static inline size_t sg_object_header(int type, uint64_t size, uint8_t *out) {
    static const char *const names[5] = {"", "commit ", "tree ", "blob ", "tag "};
    static const size_t lengths[5] = {0, 7, 5, 5, 4};
    uint8_t digits[20];
    size_t n = 0, at;
    if (type < 1 || type > 4) return 0;
    at = lengths[type];
    memcpy(out, names[type], at);
    do { digits[n++] = (uint8_t)('0' + size % 10); size /= 10; } while (size);
    while (n) out[at++] = digits[--n];
    out[at++] = 0;
    return at;
}
static inline void sg_object_id(int kind, int type, const uint8_t *data, size_t n, uint8_t *out) {
    uint8_t header[32];
    sg_hash h;
    size_t hn = sg_object_header(type, n, header);
    sg_hash_init(&h, kind);
    sg_hash_update(&h, header, hn);
    sg_hash_update(&h, data, n);
    sg_hash_final(&h, out);
}

/* ---- inflate ---- */
typedef struct {
#ifdef SHARDGIT_LIBDEFLATE
    struct libdeflate_decompressor *fast;
#endif
    z_stream z;
    int z_ready;
} sg_inflater;

static inline sg_inflater *sg_inflater_new(void) {
    sg_inflater *f = (sg_inflater *)calloc(1, sizeof *f);
    if (!f) return NULL;
#ifdef SHARDGIT_LIBDEFLATE
    f->fast = libdeflate_alloc_decompressor();
    if (!f->fast) { free(f); return NULL; }
#endif
    return f;
}
static inline void sg_inflater_free(sg_inflater *f) {
    if (!f) return;
#ifdef SHARDGIT_LIBDEFLATE
    libdeflate_free_decompressor(f->fast);
#endif
    if (f->z_ready) inflateEnd(&f->z);
    free(f);
}
static inline sg_status sg_z_begin(sg_inflater *f) {
    if (!f->z_ready) {
        if (inflateInit(&f->z) != Z_OK) return SG_MEMORY;
        f->z_ready = 1;
        return SG_OK;
    }
    return inflateReset(&f->z) == Z_OK ? SG_OK : SG_DEFLATE;
}
static inline uInt sg_z_cap(size_t n) { return n > (1u << 30) ? (uInt)(1u << 30) : (uInt)n; }

/* Inflate one zlib stream of exactly `size` bytes in pieces through `window`, hashing as it goes (hash may be NULL).
 * If `out` is not NULL it receives all bytes instead and must hold `size`. */
static inline sg_status sg_inflate_stream(sg_inflater *f, const uint8_t *in, size_t left, uint64_t size,
                                          uint8_t *out, uint8_t *window, size_t window_size,
                                          sg_hash *hash, size_t *consumed) {
    uint64_t done = 0;
    size_t at = 0;
    uint8_t spare[1];
    sg_status st = sg_z_begin(f);
    if (st != SG_OK) return st;
    for (;;) {
        uint8_t *to;
        size_t room, given, got, fed;
        int rc;
        uint64_t want = size - done;
        if (want == 0) { to = spare; room = 1; } /* the stream must end here */
        else if (out) { to = out + done; room = want > (1u << 30) ? (size_t)(1u << 30) : (size_t)want; }
        else { to = window; room = want > window_size ? window_size : (size_t)want; }
        fed = left - at;
        f->z.next_in = (Bytef *)(uintptr_t)(in + at);
        f->z.avail_in = sg_z_cap(fed);
        given = f->z.avail_in;
        f->z.next_out = to;
        f->z.avail_out = (uInt)room;
        rc = inflate(&f->z, Z_NO_FLUSH);
        got = room - f->z.avail_out;
        at += given - f->z.avail_in;
        if (want == 0) { if (got) return SG_SIZE; }
        else {
            if (hash && got) sg_hash_update(hash, to, got);
            done += got;
        }
        if (rc == Z_STREAM_END) {
            if (done != size) return SG_SIZE;
            *consumed = at;
            return SG_OK;
        }
        if (rc == Z_BUF_ERROR || (rc == Z_OK && got == 0 && given == f->z.avail_in))
            return at >= left ? SG_TRUNCATED : SG_DEFLATE;
        if (rc != Z_OK) return rc == Z_MEM_ERROR ? SG_MEMORY : SG_DEFLATE;
    }
}

/* Inflate one zlib stream of exactly `size` bytes into `out`. */
static inline sg_status sg_inflate(sg_inflater *f, const uint8_t *in, size_t left, uint8_t *out, size_t size,
                                   size_t *consumed) {
#ifdef SHARDGIT_LIBDEFLATE
    size_t got = 0;
    uint8_t spare[1];
    enum libdeflate_result rc =
        libdeflate_zlib_decompress_ex(f->fast, in, left, size ? out : spare, size, consumed, &got);
    if (rc == LIBDEFLATE_SUCCESS) return got == size ? SG_OK : SG_SIZE;
    return rc == LIBDEFLATE_BAD_DATA ? SG_DEFLATE : SG_SIZE;
#else
    uint8_t spare[1];
    return sg_inflate_stream(f, in, left, size, size ? out : spare, NULL, 0, NULL, consumed);
#endif
}

/* ---- deflate ---- */
static inline size_t sg_deflate_bound(size_t n) {
    size_t bound = (size_t)compressBound((uLong)n) + 64;
#ifdef SHARDGIT_LIBDEFLATE
    size_t fast = libdeflate_zlib_compress_bound(NULL, n);
    if (fast > bound) bound = fast;
#endif
    return bound;
}
/* Returns bytes written, 0 on failure. */
static inline size_t sg_deflate(int level, const uint8_t *in, size_t n, uint8_t *out, size_t room) {
#ifdef SHARDGIT_LIBDEFLATE
    struct libdeflate_compressor *c = libdeflate_alloc_compressor(level);
    size_t wrote;
    if (!c) return 0;
    wrote = libdeflate_zlib_compress(c, in, n, out, room);
    libdeflate_free_compressor(c);
    return wrote;
#else
    uLongf wrote = (uLongf)room;
    return compress2(out, &wrote, in, (uLong)n, level) == Z_OK ? (size_t)wrote : 0;
#endif
}
/* A compressor that is kept: making one costs more than a small entry. */
typedef struct {
#ifdef SHARDGIT_LIBDEFLATE
    struct libdeflate_compressor *fast;
#endif
    int level;
} sg_deflater;
static inline sg_deflater *sg_deflater_new(int level) {
    sg_deflater *d = (sg_deflater *)calloc(1, sizeof *d);
    if (!d) return NULL;
    d->level = level;
#ifdef SHARDGIT_LIBDEFLATE
    d->fast = libdeflate_alloc_compressor(level);
    if (!d->fast) { free(d); return NULL; }
#else
    if (level > 9) d->level = 9;
#endif
    return d;
}
static inline void sg_deflater_free(sg_deflater *d) {
    if (!d) return;
#ifdef SHARDGIT_LIBDEFLATE
    libdeflate_free_compressor(d->fast);
#endif
    free(d);
}
/* Returns bytes written, 0 when `room` is too small. */
static inline size_t sg_deflater_run(sg_deflater *d, const uint8_t *in, size_t n, uint8_t *out, size_t room) {
#ifdef SHARDGIT_LIBDEFLATE
    return libdeflate_zlib_compress(d->fast, in, n, out, room);
#else
    return sg_deflate(d->level, in, n, out, room);
#endif
}
static inline const char *sg_inflate_name(void) {
#ifdef SHARDGIT_LIBDEFLATE
    return "libdeflate " LIBDEFLATE_VERSION_STRING;
#else
    return "zlib";
#endif
}
static inline const char *sg_openssl_name(void) { return OPENSSL_VERSION_TEXT; }
static inline const char *sg_zlib_name(void) { return ZLIB_VERSION; }
static inline uint32_t sg_crc32(uint32_t crc, const uint8_t *data, size_t n) {
#ifdef SHARDGIT_LIBDEFLATE
    return libdeflate_crc32(crc, data, n);
#else
    uLong c = crc;
    while (n) { uInt k = sg_z_cap(n); c = crc32(c, data, k); data += k; n -= k; }
    return (uint32_t)c;
#endif
}

/* ---- pack entry headers ---- */
#define SG_OFS_DELTA 6
#define SG_REF_DELTA 7

/* Type and size; *at is the header's length. */
static inline sg_status sg_entry_header(const uint8_t *p, size_t left, int *type, uint64_t *size, size_t *at) {
    uint64_t v;
    unsigned shift = 4;
    size_t i = 1;
    if (left == 0) return SG_TRUNCATED;
    *type = (p[0] >> 4) & 7;
    v = p[0] & 15u;
    if (p[0] & 0x80) {
        for (;;) {
            uint8_t c;
            if (i >= left) return SG_TRUNCATED;
            c = p[i++];
            if (shift > 57 && ((uint64_t)(c & 0x7f) << (shift - 57)) >> 7) return SG_VARINT;
            if (shift > 63) return SG_VARINT;
            v |= (uint64_t)(c & 0x7f) << shift;
            shift += 7;
            if (!(c & 0x80)) break;
        }
    }
    if (*type == 0 || *type == 5) return SG_TYPE;
    *size = v;
    *at = i;
    return SG_OK;
}
/* The distance of an OFS_DELTA; *at is its length. */
static inline sg_status sg_ofs_distance(const uint8_t *p, size_t left, uint64_t *distance, size_t *at) {
    uint64_t v;
    size_t i = 1;
    if (left == 0) return SG_TRUNCATED;
    v = p[0] & 0x7fu;
    while (p[i - 1] & 0x80) {
        if (i >= left) return SG_TRUNCATED;
        if (v >= (UINT64_MAX >> 8)) return SG_VARINT;
        v = ((v + 1) << 7) | (p[i] & 0x7fu);
        i++;
    }
    *distance = v;
    *at = i;
    return SG_OK;
}
static inline size_t sg_put_entry_header(uint8_t *out, int type, uint64_t size) {
    size_t i = 0;
    uint8_t c = (uint8_t)(((unsigned)type << 4) | (unsigned)(size & 15));
    size >>= 4;
    while (size) { out[i++] = (uint8_t)(c | 0x80); c = (uint8_t)(size & 0x7f); size >>= 7; }
    out[i++] = c;
    return i; /* at most 10 */
}
static inline size_t sg_put_ofs_distance(uint8_t *out, uint64_t distance) {
    uint8_t buf[10];
    size_t n = sizeof buf, used;
    buf[--n] = (uint8_t)(distance & 0x7f);
    while (distance >>= 7) buf[--n] = (uint8_t)(0x80 | (--distance & 0x7f));
    used = sizeof buf - n;
    memcpy(out, buf + n, used);
    return used;
}

/* ---- deltas ---- */
static inline sg_status sg_delta_varint(const uint8_t *p, size_t left, uint64_t *value, size_t *at) {
    uint64_t v = 0;
    unsigned shift = 0;
    size_t i = 0;
    uint8_t c;
    do {
        if (i >= left) return SG_DELTA;
        if (shift > 56) return SG_VARINT;
        c = p[i++];
        v |= (uint64_t)(c & 0x7f) << shift;
        shift += 7;
    } while (c & 0x80);
    *value = v;
    *at = i;
    return SG_OK;
}
static inline sg_status sg_delta_sizes(const uint8_t *delta, size_t n, uint64_t *base, uint64_t *result, size_t *at) {
    size_t a = 0, b = 0;
    sg_status st = sg_delta_varint(delta, n, base, &a);
    if (st != SG_OK) return st;
    st = sg_delta_varint(delta + a, n - a, result, &b);
    *at = a + b;
    return st;
}
static inline size_t sg_less(size_t a, size_t b) { return a < b ? a : b; }
/* Copy n bytes that do not overlap; `spare` are those that may be read and written from there on, n at least. Most of a
 * delta's copies are short: a call of memcpy for each costs more than what it copies. */
static inline void sg_copy_short(uint8_t *to, const uint8_t *from, size_t n, size_t spare) {
    if (n <= 32 && spare >= 32) {
        memcpy(to, from, 16);
        memcpy(to + 16, from + 16, 16);
    } else {
        memcpy(to, from, n);
    }
}
typedef struct { uint32_t to, from, length; } sg_copy; /* one copy instruction: result[to..] = base[from..] */

/* Apply `delta` to `base`. `result` must hold the result size that sg_delta_sizes gave. When `copies` is not NULL, up to
 * `copies_room` copy instructions are noted in order and *n_copies is how many there were in all. */
static inline sg_status sg_delta_apply(const uint8_t *base, size_t base_size, const uint8_t *delta, size_t n,
                                       uint8_t *result, size_t result_size, sg_copy *copies, size_t copies_room,
                                       size_t *n_copies) {
    uint64_t claimed_base, claimed_result;
    size_t i, to = 0, noted = 0;
    sg_status st = sg_delta_sizes(delta, n, &claimed_base, &claimed_result, &i);
    if (st != SG_OK) return st;
    if (claimed_base != base_size) return SG_BASE_SIZE;
    if (claimed_result != result_size) return SG_SIZE;
    while (i < n) {
        uint8_t c = delta[i++];
        if (c & 0x80) {
            size_t from = 0, size = 0;
            size_t need = c & 0x7fu; /* the number of its bits; __builtin_popcount is a call on plain x86-64 */
            need -= (need >> 1) & 0x55;
            need = (need & 0x33) + ((need >> 2) & 0x33);
            need = (need + (need >> 4)) & 0x0f;
            if (n - i < need) return SG_DELTA;
            if (c & 0x01) from = delta[i++];
            if (c & 0x02) from |= (size_t)delta[i++] << 8;
            if (c & 0x04) from |= (size_t)delta[i++] << 16;
            if (c & 0x08) from |= (size_t)delta[i++] << 24;
            if (c & 0x10) size = delta[i++];
            if (c & 0x20) size |= (size_t)delta[i++] << 8;
            if (c & 0x40) size |= (size_t)delta[i++] << 16;
            if (size == 0) size = 0x10000;
            if (from > base_size || size > base_size - from || size > result_size - to) return SG_RANGE;
            sg_copy_short(result + to, base + from, size, sg_less(base_size - from, result_size - to));
            if (copies) {
                if (noted < copies_room) {
                    copies[noted].to = (uint32_t)to;
                    copies[noted].from = (uint32_t)from;
                    copies[noted].length = (uint32_t)size;
                }
                noted++;
            }
            to += size;
        } else if (c) {
            if (c > n - i || c > result_size - to) return SG_RANGE;
            sg_copy_short(result + to, delta + i, c, sg_less(n - i, result_size - to));
            i += c;
            to += c;
        } else {
            return SG_DELTA;
        }
    }
    if (to != result_size) return SG_SIZE;
    if (n_copies) *n_copies = noted;
    return SG_OK;
}

/* ---- counters shared by threads ---- */
static inline uint64_t sg_fetch_add(uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }
static inline uint64_t sg_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
/* Store `to` if *p is `from`; returns 1 when it did. */
static inline int sg_swap(uint64_t *p, uint64_t from, uint64_t to) {
    return __atomic_compare_exchange_n(p, &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline int sg_claim(uint8_t *p) { return __atomic_exchange_n(p, (uint8_t)1, __ATOMIC_ACQ_REL) == 0; }

/* The most that a deflate stream of n bytes can inflate to; a larger claim is a lie and is not allocated. */
static inline uint64_t sg_inflate_most(uint64_t n) { return n > (UINT64_MAX >> 11) ? UINT64_MAX : n * 1032 + 1024; }

#endif
