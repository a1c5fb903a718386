/* Detection of SHA-1 collision attacks, apart from hashing: it is given each block with the state before it.
 *
 * A block of an attack follows one of 32 known disturbance vectors (DVs). First 32 blocks at once, of one message or of
 * several, are looked at for the bit conditions that a DV makes unavoidable (_ubc.h); one block in twenty meets those
 * of some DV by chance. Then, eight such suspects at once, the other message of the pair is made: the block with the
 * DV's differences, whose state in the middle is the same. Going back and forth from there gives its state before and
 * behind the block, and when that behind is the one of the block at hand, the pair collides. By chance: 2^-160.
 *
 * Stevens, "Counter-cryptanalysis", CRYPTO 2013; Stevens and Shumow, "Speeding up detection of SHA-1 collision attacks
 * using unavoidable attack conditions", USENIX Security 2017. */
#ifndef SHARDGIT_DETECT_H
#define SHARDGIT_DETECT_H

#include "_kernel.h"
#include "_ubc.h"

#define SG_ATTACKS 64 /* messages that are told; more may be there */
#define SG_UBC_WORDS (SG_UBC_LAST + 1 - SG_UBC_FIRST)
#define SG_WAITING 32 /* blocks that are looked at together: a vector of AVX2 holds a byte of each */

typedef struct sg_detector sg_detector;
struct sg_detector {
    uint32_t suspect_words[16][8] __attribute__((aligned(32)));
    uint32_t suspect_states[5][8] __attribute__((aligned(32)));
    uint32_t suspect_vectors[8] __attribute__((aligned(32)));
    const void *suspect_messages[8];
    int suspects;
    const uint8_t *at[SG_WAITING];    /* the blocks that wait */
    const uint32_t *states[SG_WAITING]; /* before each of them, */
    size_t strides[SG_WAITING];       /* their words so far apart */
    const void *messages[SG_WAITING]; /* whose they are */
    int waiting;
    int kept; /* the first so many of them stand here: */
    uint8_t copies[SG_WAITING][64];
    uint32_t state_copies[SG_WAITING][5];
    void (*look)(const sg_detector *d, uint8_t masks[4][SG_WAITING]); /* DVs of each waiting block, eight a row */
    uint32_t (*judge)(const sg_detector *d); /* returns a bit for each suspect that is guilty */
    const void *attacks[SG_ATTACKS];
    int n_attacks;
};

#define SG_ROL(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
#define SG_CH(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))
#define SG_PARITY(x, y, z) ((x) ^ (y) ^ (z))
#define SG_MAJ(x, y, z) (((x) & (y)) + ((z) & ((x) ^ (y))))
#define SG_ALL(k) ((SG_WORDS){0} + (uint32_t)(k))
#define SG_EXPAND(w, to) \
    _Pragma("GCC unroll 16") for (int t = 16; t < (to); t++) { \
        const SG_WORDS x = w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]; \
        w[t] = SG_ROL(x, 1); \
    }

/* ---- the first look: which DVs may a block belong to? ----
 *
 * All bits that conditions name are among the eight lowest and the seven highest of their words: a plane each. The
 * planes are so placed that most pairs of bits meet without a shift. */
#define SG_PLANE(b) ((b) >= 25)
#define SG_IN_PLANE(b) (1 << ((b) >= 25 ? (b) - 25 : (b)))
#define SG_ALL8(v) ((SG_BYTES){0} + (uint8_t)(v))
#define SG_PLANE_BIT(t, b) (planes[(t) - SG_UBC_FIRST][SG_PLANE(b)] & SG_ALL8(SG_IN_PLANE(b)))
#define SG_UBC_OUT(i, dvs) \
    if ((dvs) >> 8 * i & 255) out##i &= met | SG_ALL8(~((dvs) >> 8 * i) & 255);
#define SG_UBC_CONDITION(t, b, u, c, flip) \
    if (SG_IN_PLANE(b) == SG_IN_PLANE(c)) \
        met &= (SG_BYTES)((SG_PLANE_BIT(t, b) ^ SG_PLANE_BIT(u, c)) == SG_ALL8((flip) ? SG_IN_PLANE(b) : 0)); \
    else \
        met &= (SG_BYTES)(SG_PLANE_BIT(t, b) == SG_ALL8(0)) ^ \
               (SG_BYTES)(SG_PLANE_BIT(u, c) == SG_ALL8((flip) ? 0 : SG_IN_PLANE(c)));
#define SG_UBC_EQUAL(t, b, u, c) SG_UBC_CONDITION(t, b, u, c, 0)
#define SG_UBC_DIFFER(t, b, u, c) SG_UBC_CONDITION(t, b, u, c, 1)
#define SG_UBC_NEEDED(dvs) \
    SG_UBC_OUT(0, dvs) SG_UBC_OUT(1, dvs) SG_UBC_OUT(2, dvs) SG_UBC_OUT(3, dvs) met = SG_ALL8(255);

/* ---- the judgement ---- */
#define SG_UNROLLED _Pragma("GCC unroll 5")
/* A step forward, and one back. */
#define SG_FORTH(F, k, w) { \
        const SG_WORDS made = SG_ROL(A, 5) + F(B, C, D) + E + (w) + SG_ALL(k); \
        E = D; D = C; C = SG_ROL(B, 30); B = A; A = made; \
    }
#define SG_BACK(F, k, w) { \
        const SG_WORDS b = SG_ROL(C, 2), made = A - SG_ROL(B, 5) - F(b, D, E) - (w) - SG_ALL(k); \
        A = B; B = b; C = D; D = E; E = made; \
    }
#define SG_FORTH_RUN(F, k, w, from, to) SG_UNROLLED for (int t = (from); t < (to); t++) SG_FORTH(F, k, w[t])
#define SG_BACK_RUN(F, k, w, from, to) SG_UNROLLED for (int t = (from) - 1; t >= (to); t--) SG_BACK(F, k, w[t])
#define SG_STORE(s) s[0] = A; s[1] = B; s[2] = C; s[3] = D; s[4] = E;
#define SG_RECALL(s) A = s[0]; B = s[1]; C = s[2]; D = s[3]; E = s[4];
#define SG_CHOOSE(lane, yes, no) (((yes) & (lane)) | ((no) & ~(lane)))

/* ---- for what every machine has: vectors of 16 bytes, or what the compiler makes of them ---- */
#define SG_NAME(x) x##_plain
#define SG_TARGET
#define SG_WIDTH 16
#define SG_GATHER(w, at) { \
        uint32_t each[16][4]; \
        for (int j = 0; j < 4; j++) \
            for (int t = 0; t < 16; t++) each[t][j] = sg_u32be((at)[j] + 4 * t); \
        memcpy(w, each, sizeof each); \
    }
#define SG_PACK(p, a, b, c, d) { \
        const SG_WORDS from[4] = {a, b, c, d}; \
        uint32_t each[16]; \
        memcpy(each, from, sizeof each); \
        for (int j = 0; j < 16; j++) p[j] = (uint8_t)each[j]; \
    }
#define SG_SPREAD(to, out) memcpy(to, &(out), 16)
#include "_detect_wide.h"
#undef SG_SPREAD

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define SG_AVX2 __attribute__((target("avx2")))

#define SG_TURN _Pragma("GCC unroll 8")
/* Turn 32 bytes of each message into eight vectors of words. */
SG_AVX2 static inline void sg_sha1_words(const uint8_t *const at[8], size_t offset, __m256i w[8]) {
    const __m256i order = _mm256_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3,
                                          12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    __m256i r[8], t[8], u[8];
    SG_TURN for (int i = 0; i < 8; i++)
        r[i] = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(at[i] + offset)), order);
    SG_TURN for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    SG_TURN for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    SG_TURN for (int i = 0; i < 4; i++) {
        w[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
        w[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
}

/* ---- AVX2 ---- */
#define SG_NAME(x) x##_avx2
#define SG_TARGET SG_AVX2
#define SG_WIDTH 32
#define SG_GATHER(w, at) { \
        sg_sha1_words(at, 0, (__m256i *)(w)); \
        sg_sha1_words(at, 32, (__m256i *)(w) + 8); \
    }
/* Packing works in halves of a vector, so the blocks come in another order, */
#define SG_PACK(p, a, b, c, d) \
    p = (SG_BYTES)_mm256_packus_epi16(_mm256_packus_epi32((__m256i)(a), (__m256i)(b)), \
                                      _mm256_packus_epi32((__m256i)(c), (__m256i)(d)));
/* which ends here. */
#define SG_SPREAD(to, out) \
    _mm256_storeu_si256((__m256i *)(to), \
                        _mm256_permutevar8x32_epi32((__m256i)(out), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)))
#include "_detect_wide.h"

/* Look at the blocks of four rows of eight, whose words from SG_UBC_FIRST on are known already. */
SG_AVX2 static inline void sg_look_rows(const sg_words_avx2 rows[4][SG_UBC_WORDS], uint8_t masks[4][SG_WAITING]) {
    const sg_words_avx2 *const w[4] = {rows[0], rows[1], rows[2], rows[3]};
    sg_bytes_avx2 out[4];
    sg_look_words_avx2(w, out);
    for (int i = 0; i < 4; i++) SG_SPREAD(masks[i], out[i]);
}
#undef SG_SPREAD

static inline int sg_has_avx2(void) { return __builtin_cpu_supports("avx2") != 0; }
#else
static inline int sg_has_avx2(void) { return 0; }
#endif

static inline void sg_detect_begin(sg_detector *d, int plain) {
    memset(d, 0, sizeof *d);
    d->look = sg_look_plain;
    d->judge = sg_judge_plain;
#if defined(__x86_64__) && defined(__GNUC__)
    if (!plain && sg_has_avx2()) {
        d->look = sg_look_avx2;
        d->judge = sg_judge_avx2;
    }
#else
    (void)plain;
#endif
}

static inline void sg_detect_judge(sg_detector *d) {
    uint32_t guilty = d->judge(d);
    for (int j = 0; guilty; j++, guilty >>= 1) {
        if (!(guilty & 1)) continue;
        for (int i = 0; i < d->n_attacks; i++)
            if (d->attacks[i] == d->suspect_messages[j]) goto told;
        if (d->n_attacks < SG_ATTACKS) d->attacks[d->n_attacks++] = d->suspect_messages[j];
    told:;
    }
    d->suspects = 0;
}

/* Note a block for the judge, once for each DV it may belong to. */
static inline void sg_detect_suspect(sg_detector *d, const uint8_t *block, const uint32_t *state, size_t stride,
                                     const void *message, uint32_t mask) {
    for (; mask; mask &= mask - 1) {
        const int to = d->suspects;
        for (int t = 0; t < 16; t++) d->suspect_words[t][to] = sg_u32be(block + 4 * t);
        for (size_t i = 0; i < 5; i++) d->suspect_states[i][to] = state[i * stride];
        d->suspect_vectors[to] = (uint32_t)__builtin_ctz(mask);
        d->suspect_messages[to] = message;
        if (++d->suspects == 8) sg_detect_judge(d);
    }
}

/* Return the next block, from *at on, for which there is a mask, and that mask; SG_WAITING when there is none. */
static inline int sg_detect_next(uint8_t masks[4][SG_WAITING], int *at, uint32_t *mask) {
    for (; *at < SG_WAITING; *at = (*at | 7) + 1) {
        const int first = *at & ~7;
        const uint64_t rows[4] = {sg_u64(masks[0] + first), sg_u64(masks[1] + first), sg_u64(masks[2] + first),
                                  sg_u64(masks[3] + first)};
        const uint64_t any = (rows[0] | rows[1] | rows[2] | rows[3]) >> 8 * (*at & 7) << 8 * (*at & 7);
        if (any) {
            const int bit = __builtin_ctzll(any) & ~7;
            *mask = 0;
            for (int i = 0; i < 4; i++) *mask |= (uint32_t)(rows[i] >> bit & 255) << 8 * i;
            *at = first + bit / 8 + 1;
            return *at - 1;
        }
    }
    return SG_WAITING;
}

/* Look at the blocks that wait. */
static inline void sg_detect_look(sg_detector *d) {
    uint8_t masks[4][SG_WAITING] = {{0}};
    uint32_t mask = 0;
    int at = 0, j;
    for (j = d->waiting; j & 7; j++) d->at[j] = d->at[0];
    d->look(d, masks);
    while ((j = sg_detect_next(masks, &at, &mask)) < d->waiting)
        sg_detect_suspect(d, d->at[j], d->states[j], d->strides[j], d->messages[j], mask);
    d->waiting = d->kept = 0;
}

/* Give a block of a message and the state before it, words `stride` apart. Both must stay until the next call of
 * `sg_detect_keep`. */
static inline void sg_detect_add(sg_detector *d, const uint8_t *block, const uint32_t *state, size_t stride,
                                 const void *message) {
    const int to = d->waiting;
    d->at[to] = block;
    d->states[to] = state;
    d->strides[to] = stride;
    d->messages[to] = message;
    d->waiting = to + 1;
    if (to + 1 == SG_WAITING) sg_detect_look(d);
}

/* Let go of what was given. */
static inline void sg_detect_keep(sg_detector *d) {
    for (; d->kept < d->waiting; d->kept++) {
        const int j = d->kept;
        memcpy(d->copies[j], d->at[j], 64);
        for (size_t i = 0; i < 5; i++) d->state_copies[j][i] = d->states[j][i * d->strides[j]];
        d->at[j] = d->copies[j];
        d->states[j] = d->state_copies[j];
        d->strides[j] = 1;
    }
}

/* Come to an end with all that was given. */
static inline void sg_detect_flush(sg_detector *d) {
    if (d->waiting) sg_detect_look(d);
    if (d->suspects) sg_detect_judge(d);
}

#endif
