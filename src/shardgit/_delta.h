/* Deltas in git's format: an index over a source, and the copy and insert instructions that make a target of it.
 *
 * Rules: nothing here recurses or reads past the end it is given. An index takes 6 bytes for each SG_DELTA_STEP of its
 * source; encoding allocates nothing and stops as soon as its room is full. */
#ifndef SHARDGIT_DELTA_H
#define SHARDGIT_DELTA_H

#include "_kernel.h"

#define SG_DELTA_WINDOW 16u  /* bytes that must be equal before anything is copied */
#ifndef SG_DELTA_STEP
#define SG_DELTA_STEP 8u     /* a window of the source starts at every so many bytes */
#endif
#define SG_DELTA_CHAIN 24u   /* windows of one hash that are looked at */
#define SG_DELTA_COPY_MAX 0x10000u
#define SG_DELTA_GOOD 2048u  /* a match this long is taken without looking for a longer one */
#define SG_DELTA_SOURCE_MAX 0x7fffffffu

typedef struct {
    const uint8_t *data; /* the source; belongs to the caller */
    size_t size;
    uint32_t *head;      /* by hash: 1 + the number of the first window, 0 without */
    uint32_t *next;      /* by window: 1 + the number of the next with its hash */
    unsigned shift;
    size_t bytes;        /* memory that the index takes */
} sg_delta_index;

static inline uint64_t sg_delta_hash(const uint8_t *p) {
    /* Both halves at once: no byte waits for the one before it, as in a rolling hash. */
    return sg_u64(p) * 0x9E3779B97F4A7C15ull + (sg_u64(p + 8) ^ 0xD6E8FEB86659FD93ull) * 0xC2B2AE3D27D4EB4Full;
}

static inline void sg_delta_index_free(sg_delta_index *x) {
    free(x->head);
    free(x->next);
    x->head = x->next = NULL;
    x->bytes = 0;
}

/* Index a source. Sources shorter than a window have an empty index. */
static inline sg_status sg_delta_index_make(sg_delta_index *x, const uint8_t *data, size_t size) {
    size_t windows = size < SG_DELTA_WINDOW ? 0 : (size - SG_DELTA_WINDOW) / SG_DELTA_STEP + 1, i;
    unsigned bits = 4;
    uint64_t last = 0;
    uint32_t run = 0;
    memset(x, 0, sizeof *x);
    x->data = data;
    x->size = size;
    if (size > SG_DELTA_SOURCE_MAX) return SG_LIMIT;
    while (((size_t)1 << bits) < windows && bits < 30) bits++;
    x->shift = 64 - bits;
    x->head = (uint32_t *)calloc((size_t)1 << bits, 4);
    x->next = (uint32_t *)malloc((windows + 1) * 4);
    if (!x->head || !x->next) {
        sg_delta_index_free(x);
        return SG_MEMORY;
    }
    x->bytes = (((size_t)1 << bits) + windows) * 4;
    for (i = windows; i-- > 0;) { /* backwards: the first of equal windows is found first */
        uint64_t h = sg_delta_hash(data + i * SG_DELTA_STEP);
        uint32_t *slot = &x->head[h >> x->shift];
        /* Of a long stretch of equal windows the first and the last few are enough. */
        run = h == last ? run + 1 : 0;
        last = h;
        if (run > 8) {
            if (*slot) { x->next[i] = x->next[*slot - 1]; *slot = (uint32_t)i + 1; }
            continue;
        }
        x->next[i] = *slot;
        *slot = (uint32_t)i + 1;
    }
    return SG_OK;
}

/* How many bytes of a and b are equal, `most` at most. */
static inline size_t sg_equal_length(const uint8_t *a, const uint8_t *b, size_t most) {
    size_t n = 0;
    while (most - n >= 8) {
        uint64_t x = sg_u64(a + n) ^ sg_u64(b + n);
        if (x) return n + ((size_t)__builtin_ctzll(x) >> 3);
        n += 8;
    }
    while (n < most && a[n] == b[n]) n++;
    return n;
}

static inline size_t sg_put_varint(uint8_t *out, uint64_t v) {
    size_t n = 0;
    while (v >= 0x80) { out[n++] = (uint8_t)(v | 0x80); v >>= 7; }
    out[n++] = (uint8_t)v;
    return n;
}

/* One copy instruction of up to SG_DELTA_COPY_MAX bytes; 7 bytes at most. */
static inline size_t sg_put_copy(uint8_t *out, size_t from, size_t size) {
    size_t n = 1;
    uint8_t c = 0x80;
    if (from & 0xffu) { out[n++] = (uint8_t)from; c |= 1; }
    if (from & 0xff00u) { out[n++] = (uint8_t)(from >> 8); c |= 2; }
    if (from & 0xff0000u) { out[n++] = (uint8_t)(from >> 16); c |= 4; }
    if (from & 0xff000000u) { out[n++] = (uint8_t)(from >> 24); c |= 8; }
    if (size != SG_DELTA_COPY_MAX) {
        if (size & 0xffu) { out[n++] = (uint8_t)size; c |= 0x10; }
        if (size & 0xff00u) { out[n++] = (uint8_t)(size >> 8); c |= 0x20; }
    }
    out[0] = c;
    return n;
}

/* Insert `size` literal bytes; 0 when there is no room. */
static inline size_t sg_put_insert(uint8_t *out, size_t room, const uint8_t *data, size_t size) {
    size_t n = 0;
    while (size) {
        size_t k = size > 127 ? 127 : size;
        if (room - n < k + 1) return 0;
        out[n++] = (uint8_t)k;
        memcpy(out + n, data, k);
        n += k;
        data += k;
        size -= k;
    }
    return n;
}

/* Write to `out` the delta that makes `target` of the indexed source. Returns its length, 0 when it does not fit
 * `room`: encoding stops at the byte that is too many. */
static inline size_t sg_delta_encode(const sg_delta_index *x, const uint8_t *target, size_t size, uint8_t *out,
                                     size_t room) {
    const uint8_t *source = x->data;
    size_t done, at = 0, literal = 0; /* literal: start of what waits to be inserted */
    size_t last = size < SG_DELTA_WINDOW ? 0 : size - SG_DELTA_WINDOW + 1;
    size_t expect = 0; /* where in the source a copy would go on at `literal`, if what lies between was replaced */
    if (room < 20) return 0;
    done = sg_put_varint(out, x->size);
    done += sg_put_varint(out + done, size);
    while (at < last) {
        const uint8_t *p = target + at;
        uint32_t w = x->head[sg_delta_hash(p) >> x->shift];
        size_t best = 0, from = 0, back, n, guess = expect + (at - literal);
        unsigned looked = 0;
        /* After a change of equal length the source goes on where it was: found without the index. */
        if (guess < x->size) {
            n = sg_equal_length(source + guess, p, x->size - guess < size - at ? x->size - guess : size - at);
            if (n >= SG_DELTA_WINDOW / 2) { best = n; from = guess; }
        }
        while (w && best < SG_DELTA_GOOD && looked < SG_DELTA_CHAIN) {
            size_t start = (size_t)(w - 1) * SG_DELTA_STEP;
            size_t most = x->size - start < size - at ? x->size - start : size - at;
            looked++;
            /* Only what beats the best so far is measured. */
            if (best < most && source[start + best] == p[best] && sg_u64(source + start) == sg_u64(p)) {
                n = sg_equal_length(source + start, p, most);
                if (n > best && n >= SG_DELTA_WINDOW) { best = n; from = start; }
            }
            w = x->next[w - 1];
        }
        if (!best) {
            at++;
            /* What would be inserted by now does not fit any more. */
            if (at - literal > room - done) return 0;
            continue;
        }
        for (back = 0; back < at - literal && back < from && source[from - back - 1] == target[at - back - 1];) back++;
        from -= back;
        at -= back;
        best += back;
        if (at > literal) {
            n = sg_put_insert(out + done, room - done, target + literal, at - literal);
            if (!n) return 0;
            done += n;
        }
        at += best;
        expect = from + best;
        while (best) {
            n = best > SG_DELTA_COPY_MAX ? SG_DELTA_COPY_MAX : best;
            if (room - done < 7) return 0;
            done += sg_put_copy(out + done, from, n);
            from += n;
            best -= n;
        }
        literal = at;
    }
    if (literal < size) {
        size_t n = sg_put_insert(out + done, room - done, target + literal, size - literal);
        if (!n) return 0;
        done += n;
    }
    return done;
}

#endif
