/* Ids of many objects side by side: SHA-1 of several messages in turn on one core, lanes refilled as objects end.
 *
 * One message alone waits for itself: each round needs the one before. Three of them keep a core with the SHA extensions
 * busy, eight one with AVX2. Where there is neither, or for SHA-256, objects are hashed one by one by OpenSSL.
 * With a detector every block is also looked at for collision attacks, see _detect.h.
 *
 * FIPS 180-4; the rounds by Intel's "SHA Extensions" and by vectors of one word of each message. */
#ifndef SHARDGIT_SHA1_H
#define SHARDGIT_SHA1_H

#include "_detect.h"
#include "_kernel.h"

#define SG_LANES 8
#define SG_SPARE 4 /* buffers that are kept for the next objects */
#define SG_STEP 16 /* blocks of each of three lanes at once where attacks are looked for: the states are noted */
#define SG_STEP_WIDE 8 /* the same of eight lanes: message words are noted, too */

typedef struct {
    const uint8_t *at;   /* the next block */
    size_t blocks;       /* whole blocks there */
    const uint8_t *data; /* the object */
    size_t size;
    size_t taken;        /* bytes of it that are hashed, or in an edge */
    uint8_t *oid;        /* where its id goes; NULL: the lane is idle */
    uint8_t *owned;      /* its memory, where it is ours to free */
    size_t room;
    uint64_t bits;       /* of the message: header and object */
    int ended;           /* the last blocks are under way */
    uint8_t edge[128];   /* the first block, or the last ones */
} sg_sha1_job;

typedef struct sg_sha1 sg_sha1;
struct sg_sha1 {
    uint32_t state[5][SG_LANES] __attribute__((aligned(32)));
    sg_sha1_job jobs[SG_LANES];
    void (*compress)(sg_sha1 *s, size_t blocks); /* takes that many blocks of each lane */
    sg_detector *detector; /* NULL: attacks are not looked for */
    uint32_t before[SG_STEP][8 * SG_LANES]; /* by block: the states before it, where there is a detector */
    uint32_t words[SG_STEP_WIDE][SG_UBC_WORDS][SG_LANES] __attribute__((aligned(32))); /* that it looks at, of 8 lanes */
    int lanes; /* 0: one by one */
    int busy;
    uint8_t *spare[SG_SPARE];
    size_t spare_room[SG_SPARE];
    int spares;
};

#if defined(__x86_64__) && defined(__GNUC__)
/* ---- the SHA extensions, three lanes ---- */
#define SG_NI __attribute__((target("sha,sse4.1,ssse3")))
#define SG_UNROLL _Pragma("GCC unroll 4")
#define SG_EACH SG_UNROLL for (int j = 0; j < 3; j++)
/* Four rounds of each lane: `ea` comes in as E and its words are `ma`; the schedule of later ones goes on. */
#define SG_ROUNDS(ea, eb, ma, mb, mc, md, k) \
    SG_EACH { \
        ea[j] = _mm_sha1nexte_epu32(ea[j], ma[j]); \
        eb[j] = abcd[j]; \
        mb[j] = _mm_sha1msg2_epu32(mb[j], ma[j]); \
        abcd[j] = _mm_sha1rnds4_epu32(abcd[j], ea[j], k); \
        md[j] = _mm_sha1msg1_epu32(md[j], ma[j]); \
        mc[j] = _mm_xor_si128(mc[j], ma[j]); \
    }
#define SG_WORDS(i) _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(at[j] + 16 * (i))), order)

SG_NI static void sg_sha1_ni(sg_sha1 *s, size_t blocks) {
    const __m128i order = _mm_set_epi64x(0x0001020304050607LL, 0x08090a0b0c0d0e0fLL);
    __m128i abcd[3], e0[3], e1[3], m0[3], m1[3], m2[3], m3[3], before[3], e_before[3];
    const uint8_t *at[3];
    uint32_t *noted = s->detector != NULL ? s->before[0] : NULL;
    SG_EACH {
        at[j] = s->jobs[j].at;
        abcd[j] = _mm_set_epi32((int)s->state[0][j], (int)s->state[1][j], (int)s->state[2][j], (int)s->state[3][j]);
        e0[j] = _mm_set_epi32((int)s->state[4][j], 0, 0, 0);
    }
    while (blocks--) {
        SG_EACH { before[j] = abcd[j]; e_before[j] = e0[j]; }
        if (noted != NULL) {
            SG_EACH {
                _mm_storeu_si128((__m128i *)(noted + 8 * j), _mm_shuffle_epi32(abcd[j], 0x1b));
                noted[8 * j + 4] = (uint32_t)_mm_extract_epi32(e0[j], 3);
            }
            noted += 8 * SG_LANES;
        }
        SG_EACH {
            m0[j] = SG_WORDS(0);
            e0[j] = _mm_add_epi32(e0[j], m0[j]);
            e1[j] = abcd[j];
            abcd[j] = _mm_sha1rnds4_epu32(abcd[j], e0[j], 0);
        }
        SG_EACH {
            m1[j] = SG_WORDS(1);
            e1[j] = _mm_sha1nexte_epu32(e1[j], m1[j]);
            e0[j] = abcd[j];
            abcd[j] = _mm_sha1rnds4_epu32(abcd[j], e1[j], 0);
            m0[j] = _mm_sha1msg1_epu32(m0[j], m1[j]);
        }
        SG_EACH {
            m2[j] = SG_WORDS(2);
            e0[j] = _mm_sha1nexte_epu32(e0[j], m2[j]);
            e1[j] = abcd[j];
            abcd[j] = _mm_sha1rnds4_epu32(abcd[j], e0[j], 0);
            m1[j] = _mm_sha1msg1_epu32(m1[j], m2[j]);
            m0[j] = _mm_xor_si128(m0[j], m2[j]);
        }
        SG_EACH {
            m3[j] = SG_WORDS(3);
            at[j] += 64;
            e1[j] = _mm_sha1nexte_epu32(e1[j], m3[j]);
            e0[j] = abcd[j];
            m0[j] = _mm_sha1msg2_epu32(m0[j], m3[j]);
            abcd[j] = _mm_sha1rnds4_epu32(abcd[j], e1[j], 0);
            m2[j] = _mm_sha1msg1_epu32(m2[j], m3[j]);
            m1[j] = _mm_xor_si128(m1[j], m3[j]);
        }
        SG_ROUNDS(e0, e1, m0, m1, m2, m3, 0)
        SG_ROUNDS(e1, e0, m1, m2, m3, m0, 1)
        SG_ROUNDS(e0, e1, m2, m3, m0, m1, 1)
        SG_ROUNDS(e1, e0, m3, m0, m1, m2, 1)
        SG_ROUNDS(e0, e1, m0, m1, m2, m3, 1)
        SG_ROUNDS(e1, e0, m1, m2, m3, m0, 1)
        SG_ROUNDS(e0, e1, m2, m3, m0, m1, 2)
        SG_ROUNDS(e1, e0, m3, m0, m1, m2, 2)
        SG_ROUNDS(e0, e1, m0, m1, m2, m3, 2)
        SG_ROUNDS(e1, e0, m1, m2, m3, m0, 2)
        SG_ROUNDS(e0, e1, m2, m3, m0, m1, 2)
        SG_ROUNDS(e1, e0, m3, m0, m1, m2, 3)
        SG_ROUNDS(e0, e1, m0, m1, m2, m3, 3)
        SG_EACH {
            e1[j] = _mm_sha1nexte_epu32(e1[j], m1[j]);
            e0[j] = abcd[j];
            m2[j] = _mm_sha1msg2_epu32(m2[j], m1[j]);
            abcd[j] = _mm_sha1rnds4_epu32(abcd[j], e1[j], 3);
            m3[j] = _mm_xor_si128(m3[j], m1[j]);
        }
        SG_EACH {
            e0[j] = _mm_sha1nexte_epu32(e0[j], m2[j]);
            e1[j] = abcd[j];
            m3[j] = _mm_sha1msg2_epu32(m3[j], m2[j]);
            abcd[j] = _mm_sha1rnds4_epu32(abcd[j], e0[j], 3);
        }
        SG_EACH {
            e1[j] = _mm_sha1nexte_epu32(e1[j], m3[j]);
            e0[j] = abcd[j];
            abcd[j] = _mm_sha1rnds4_epu32(abcd[j], e1[j], 3);
        }
        SG_EACH {
            e0[j] = _mm_sha1nexte_epu32(e0[j], e_before[j]);
            abcd[j] = _mm_add_epi32(abcd[j], before[j]);
        }
    }
    SG_EACH {
        s->jobs[j].at = at[j];
        s->state[0][j] = (uint32_t)_mm_extract_epi32(abcd[j], 3);
        s->state[1][j] = (uint32_t)_mm_extract_epi32(abcd[j], 2);
        s->state[2][j] = (uint32_t)_mm_extract_epi32(abcd[j], 1);
        s->state[3][j] = (uint32_t)_mm_extract_epi32(abcd[j], 0);
        s->state[4][j] = (uint32_t)_mm_extract_epi32(e0[j], 3);
    }
}

/* ---- AVX2, eight lanes: a vector is one word of each message ---- */
typedef uint32_t sg_words __attribute__((vector_size(32)));
#define SG_SEEN(i) if (watched && (i) >= SG_UBC_FIRST && (i) <= SG_UBC_LAST) rows[i - SG_UBC_FIRST] = w[(i) & 15];
#define SG_MIX(i) (x = w[((i) + 13) & 15] ^ w[((i) + 8) & 15] ^ w[((i) + 2) & 15] ^ w[(i) & 15], \
                   w[(i) & 15] = SG_ROL(x, 1))
#define SG_ROUND(F, k, word) { \
        sg_words made = SG_ROL(a, 5) + F(b, c, d) + e + (word) + (sg_words){k, k, k, k, k, k, k, k}; \
        e = d; d = c; c = SG_ROL(b, 30); b = a; a = made; \
    }

SG_AVX2 static inline __attribute__((always_inline)) void sg_sha1_eight(sg_sha1 *s, size_t blocks, const int watched) {
    sg_words a, b, c, d, e, w[16], x;
    const uint8_t *at[8];
    uint32_t *noted = s->before[0];
    sg_words *rows = (sg_words *)s->words;
    memcpy(&a, s->state[0], 32);
    memcpy(&b, s->state[1], 32);
    memcpy(&c, s->state[2], 32);
    memcpy(&d, s->state[3], 32);
    memcpy(&e, s->state[4], 32);
    for (int j = 0; j < 8; j++) at[j] = s->jobs[j].at;
    while (blocks--) {
        const sg_words a0 = a, b0 = b, c0 = c, d0 = d, e0 = e;
        if (watched) {
            memcpy(noted, &a, 32);
            memcpy(noted + 8, &b, 32);
            memcpy(noted + 16, &c, 32);
            memcpy(noted + 24, &d, 32);
            memcpy(noted + 32, &e, 32);
            noted += 8 * SG_LANES;
        }
        sg_sha1_words(at, 0, (__m256i *)w);
        sg_sha1_words(at, 32, (__m256i *)w + 8);
        for (int j = 0; j < 8; j++) at[j] += 64;
        _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) SG_ROUND(SG_CH, 0x5A827999u, w[i])
        _Pragma("GCC unroll 4") for (int i = 16; i < 20; i++) SG_ROUND(SG_CH, 0x5A827999u, SG_MIX(i))
        _Pragma("GCC unroll 20") for (int i = 20; i < 40; i++) {
            SG_ROUND(SG_PARITY, 0x6ED9EBA1u, SG_MIX(i))
            SG_SEEN(i)
        }
        _Pragma("GCC unroll 20") for (int i = 40; i < 60; i++) {
            SG_ROUND(SG_MAJ, 0x8F1BBCDCu, SG_MIX(i))
            SG_SEEN(i)
        }
        _Pragma("GCC unroll 20") for (int i = 60; i < 80; i++) {
            SG_ROUND(SG_PARITY, 0xCA62C1D6u, SG_MIX(i))
            SG_SEEN(i)
        }
        if (watched) rows += SG_UBC_WORDS;
        a += a0; b += b0; c += c0; d += d0; e += e0;
    }
    memcpy(s->state[0], &a, 32);
    memcpy(s->state[1], &b, 32);
    memcpy(s->state[2], &c, 32);
    memcpy(s->state[3], &d, 32);
    memcpy(s->state[4], &e, 32);
    for (int j = 0; j < 8; j++) s->jobs[j].at = at[j];
}

SG_AVX2 static void sg_sha1_avx2(sg_sha1 *s, size_t blocks) { sg_sha1_eight(s, blocks, 0); }
SG_AVX2 static void sg_sha1_avx2_watched(sg_sha1 *s, size_t blocks) { sg_sha1_eight(s, blocks, 1); }

/* Look at as many rows of blocks as make fours; returns how many. */
static inline size_t sg_sha1_look_rows(sg_sha1 *s, size_t rows) {
    size_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        uint8_t masks[4][SG_WAITING];
        uint32_t mask = 0;
        int at = 0, j;
        sg_look_rows((const sg_words_avx2(*)[SG_UBC_WORDS])s->words[row], masks);
        while ((j = sg_detect_next(masks, &at, &mask)) < SG_WAITING) {
            const int lane = j % 8;
            const size_t k = row + (size_t)j / 8;
            const sg_sha1_job *job = &s->jobs[lane];
            if (job->oid != NULL)
                sg_detect_suspect(s->detector, job->at - 64 * (rows - k), s->before[k] + lane, SG_LANES, job->oid, mask);
        }
    }
    return row;
}

static inline int sg_sha1_has_ni(void) {
    unsigned a, b, c, d;
    /* Leaf 7, EBX bit 29: the SHA extensions; older compilers have no name for them. */
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
    if (a < 7) return 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    return (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}
#else
static inline int sg_sha1_has_ni(void) { return 0; }
#endif

/* Return how many lanes this machine has for `wanted` of them (0: the best there is); 0 without: one by one.
 * With a detector eight are better, which has the message words of them for nothing. */
static inline int sg_sha1_lanes(int wanted, int detecting) {
    static int known, ni, avx2; /* asking a virtual machine takes microseconds; whoever is first finds the same */
    if (!known) {
        ni = sg_sha1_has_ni();
        avx2 = sg_has_avx2();
        known = 1;
    }
    if (wanted == 0 && detecting && avx2) return 8;
    if ((wanted == 0 || wanted == 3) && ni) return 3;
    if ((wanted == 0 || wanted == 8) && avx2) return 8;
    return 0;
}

static inline void sg_sha1_begin(sg_sha1 *s, int lanes, sg_detector *detector) {
    memset(s, 0, sizeof *s);
    s->lanes = lanes;
    s->detector = detector;
#if defined(__x86_64__) && defined(__GNUC__)
    s->compress = lanes == 3 ? sg_sha1_ni : detector != NULL ? sg_sha1_avx2_watched : sg_sha1_avx2;
#endif
}

/* Set a job to the blocks that come next. Returns 0 when there are none. */
static inline int sg_sha1_more(sg_sha1_job *job) {
    size_t left = job->size - job->taken, used;
    if (job->ended) return 0;
    if (left >= 64) {
        job->at = job->data + job->taken;
        job->blocks = left / 64;
        job->taken += left & ~(size_t)63;
        return 1;
    }
    used = (size_t)(job->bits / 8 % 64); /* a short message has its header before it */
    if (left) memcpy(job->edge + used - left, job->data + job->taken, left);
    job->edge[used] = 0x80;
    job->blocks = used < 56 ? 1 : 2;
    memset(job->edge + used + 1, 0, job->blocks * 64 - 8 - used - 1);
    for (int i = 0; i < 8; i++) job->edge[job->blocks * 64 - 1 - (size_t)i] = (uint8_t)(job->bits >> 8 * i);
    job->at = job->edge;
    job->taken = job->size;
    job->ended = 1;
    return 1;
}

/* End a job: its id is told, its memory kept for another object or freed. */
static inline void sg_sha1_end(sg_sha1 *s, int lane) {
    sg_sha1_job *job = &s->jobs[lane];
    for (int k = 0; k < 5; k++) {
        uint32_t word = __builtin_bswap32(s->state[k][lane]);
        memcpy(job->oid + 4 * k, &word, 4);
    }
    job->oid = NULL;
    s->busy--;
    if (job->owned == NULL) return;
    if (s->spares < SG_SPARE) {
        s->spare[s->spares] = job->owned;
        s->spare_room[s->spares++] = job->room;
    } else {
        free(job->owned);
    }
    job->owned = NULL;
}

/* Show the detector the blocks that were just taken. */
static inline void sg_sha1_watch(sg_sha1 *s, size_t blocks) {
    const size_t apart = s->lanes == 3 ? 1 : SG_LANES; /* words of one state */
    size_t done = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    if (s->lanes == SG_LANES) done = sg_sha1_look_rows(s, blocks);
#endif
    for (int i = 0; i < s->lanes; i++) {
        const uint8_t *at = s->jobs[i].at - 64 * blocks;
        const uint32_t *state = s->before[0] + (apart == 1 ? 8 * i : i);
        if (s->jobs[i].oid == NULL) continue;
        for (size_t k = done; k < blocks; k++)
            sg_detect_add(s->detector, at + 64 * k, state + 8 * SG_LANES * k, apart, s->jobs[i].oid);
    }
    sg_detect_keep(s->detector);
}

/* Take blocks of one message by OpenSSL, and show them to a detector. */
static inline void sg_sha1_blocks(SHA_CTX *one, const uint8_t *at, size_t blocks, sg_detector *d, const void *message) {
    uint32_t states[SG_WAITING][5];
    for (size_t k = 0; k < blocks; k++, at += 64) {
        uint32_t *state = states[k % SG_WAITING]; /* looked at when as many more have come, or kept */
        state[0] = one->h0; state[1] = one->h1; state[2] = one->h2; state[3] = one->h3; state[4] = one->h4;
        sg_detect_add(d, at, state, 1, message);
        SHA1_Transform(one, at);
    }
    sg_detect_keep(d);
}

/* Take blocks of all lanes until one of them is at the end of its piece. */
static inline void sg_sha1_step(sg_sha1 *s) {
    size_t least = SIZE_MAX;
    const uint8_t *some = NULL;
    for (int i = 0; i < s->lanes; i++)
        if (s->jobs[i].oid != NULL && s->jobs[i].blocks < least) {
            least = s->jobs[i].blocks;
            some = s->jobs[i].at;
        }
    for (int i = 0; i < s->lanes; i++)
        if (s->jobs[i].oid == NULL) s->jobs[i].at = some; /* an idle lane reads what a busy one does */
    if (s->detector != NULL) {
        const size_t most = s->lanes == SG_LANES ? SG_STEP_WIDE : SG_STEP;
        if (least > most) least = most;
    }
    s->compress(s, least);
    if (s->detector != NULL) sg_sha1_watch(s, least);
    for (int i = 0; i < s->lanes; i++) {
        sg_sha1_job *job = &s->jobs[i];
        if (job->oid == NULL) continue;
        job->blocks -= least;
        if (job->blocks == 0 && !sg_sha1_more(job)) sg_sha1_end(s, i);
    }
}

/* Take all blocks of one lane that are left, by OpenSSL: few objects are faster alone. */
static inline void sg_sha1_alone(sg_sha1 *s, int lane) {
    sg_sha1_job *job = &s->jobs[lane];
    SHA_CTX one;
    SHA1_Init(&one);
    one.h0 = s->state[0][lane];
    one.h1 = s->state[1][lane];
    one.h2 = s->state[2][lane];
    one.h3 = s->state[3][lane];
    one.h4 = s->state[4][lane];
    do {
        if (s->detector != NULL) sg_sha1_blocks(&one, job->at, job->blocks, s->detector, job->oid);
        else SHA1_Update(&one, job->at, 64 * job->blocks);
    } while (sg_sha1_more(job));
    s->state[0][lane] = one.h0;
    s->state[1][lane] = one.h1;
    s->state[2][lane] = one.h2;
    s->state[3][lane] = one.h3;
    s->state[4][lane] = one.h4;
    sg_sha1_end(s, lane);
}

/* Begin with an object; returns its lane. Type 0: a message without a header. */
static inline int sg_sha1_take(sg_sha1 *s, int type, const uint8_t *data, size_t size, uint8_t *oid) {
    static const uint32_t start[5] = {0x67452301u, 0xEFCDAB89u, 0x98BADCFEu, 0x10325476u, 0xC3D2E1F0u};
    sg_sha1_job *job;
    size_t head, first;
    int lane = 0;
    while (s->jobs[lane].oid != NULL) lane++;
    job = &s->jobs[lane];
    for (int k = 0; k < 5; k++) s->state[k][lane] = start[k];
    head = sg_object_header(type, size, job->edge);
    job->data = data;
    job->size = size;
    job->oid = oid;
    job->bits = 8 * ((uint64_t)head + size);
    job->ended = 0;
    job->taken = 0;
    if (head + size >= 64) {
        first = 64 - head;
        memcpy(job->edge + head, data, first);
        job->taken = first;
        job->at = job->edge;
        job->blocks = 1;
    } else {
        (void)sg_sha1_more(job);
    }
    s->busy++;
    return lane;
}

/* Have an object hashed, some time before `sg_sha1_flush` is through; its bytes must stay until then, or until
 * `sg_sha1_leave` says who frees them. With `owned` they are freed when that is done. */
static inline void sg_sha1_add(sg_sha1 *s, int type, const uint8_t *data, size_t size, uint8_t *oid,
                               uint8_t *owned, size_t room) {
    const int lane = sg_sha1_take(s, type, data, size, oid);
    s->jobs[lane].owned = owned;
    s->jobs[lane].room = room;
    while (s->busy == s->lanes) sg_sha1_step(s);
}

/* Hash an object at once, alone; also where there are no lanes. */
static inline void sg_sha1_now(sg_sha1 *s, int type, const uint8_t *data, size_t size, uint8_t *oid) {
    sg_sha1_alone(s, sg_sha1_take(s, type, data, size, oid));
}

/* Say that whoever holds `data` lets go of it. Returns whether it is to be freed at once. */
static inline int sg_sha1_leave(sg_sha1 *s, uint8_t *data, size_t room) {
    for (int i = 0; i < s->lanes; i++)
        if (s->jobs[i].oid != NULL && s->jobs[i].data == data) {
            s->jobs[i].owned = data;
            s->jobs[i].room = room;
            return 0;
        }
    return 1;
}

/* Return memory that was left here, NULL without. */
static inline uint8_t *sg_sha1_spare(sg_sha1 *s, size_t *room) {
    if (s->spares == 0) return NULL;
    *room = s->spare_room[--s->spares];
    return s->spare[s->spares];
}

/* Finish all that is under way, and let go of all memory. */
static inline void sg_sha1_flush(sg_sha1 *s) {
    while (3 * s->busy > s->lanes) sg_sha1_step(s);
    for (int i = 0; i < s->lanes; i++)
        if (s->jobs[i].oid != NULL) sg_sha1_alone(s, i);
    if (s->detector != NULL) sg_detect_flush(s->detector);
    while (s->spares) free(s->spare[--s->spares]);
}

/* ---- a long message that comes in pieces, shown to a detector ---- */
typedef struct {
    sg_hash hash; /* the first member: what gets one takes the other */
    sg_detector *detector;
    const void *message;
    uint64_t size;
    uint8_t edge[128]; /* what is not a whole block yet */
} sg_watched;

static inline void sg_watched_more(sg_hash *hash, const uint8_t *data, size_t n) {
    sg_watched *one = (sg_watched *)hash;
    const size_t held = (size_t)(one->size % 64), fill = held == 0 ? 0 : n < 64 - held ? n : 64 - held;
    one->size += n;
    if (fill) {
        memcpy(one->edge + held, data, fill);
        if (held + fill == 64) sg_sha1_blocks(&hash->u.sha1, one->edge, 1, one->detector, one->message);
        data += fill;
        n -= fill;
    }
    sg_sha1_blocks(&hash->u.sha1, data, n / 64, one->detector, one->message);
    if (n % 64) memcpy(one->edge, data + (n & ~(size_t)63), n % 64);
}

/* Begin a SHA-1 that `sg_hash_update` goes on with. */
static inline void sg_watched_begin(sg_watched *one, sg_detector *detector, const void *message) {
    memset(one, 0, sizeof *one);
    sg_hash_init(&one->hash, 1);
    one->hash.more = sg_watched_more;
    one->detector = detector;
    one->message = message;
}

/* End it. What the detector found is known once that is flushed. */
static inline void sg_watched_end(sg_watched *one, uint8_t *out) {
    const uint64_t bits = 8 * one->size;
    const size_t held = (size_t)(one->size % 64), blocks = held < 56 ? 1 : 2;
    const SHA_CTX *sha = &one->hash.u.sha1;
    one->edge[held] = 0x80;
    memset(one->edge + held + 1, 0, blocks * 64 - 8 - held - 1);
    for (int i = 0; i < 8; i++) one->edge[blocks * 64 - 1 - (size_t)i] = (uint8_t)(bits >> 8 * i);
    sg_sha1_blocks(&one->hash.u.sha1, one->edge, blocks, one->detector, one->message);
    const uint32_t words[5] = {sha->h0, sha->h1, sha->h2, sha->h3, sha->h4};
    for (int i = 0; i < 5; i++) sg_put_u32(out + 4 * i, __builtin_bswap32(words[i]));
}

#endif
