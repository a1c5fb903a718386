/* The code of _detect.h for one width of vectors: included once for each, with SG_NAME(x), SG_TARGET and SG_WIDTH. */
#define SG_WORDS SG_NAME(sg_words)
#define SG_BYTES SG_NAME(sg_bytes)
#define SG_LANES_WIDE (SG_WIDTH / 4)
typedef uint32_t SG_WORDS __attribute__((vector_size(SG_WIDTH))); /* one word of each of some blocks */
typedef uint8_t SG_BYTES __attribute__((vector_size(SG_WIDTH)));  /* one byte of each of four times as many */

SG_TARGET static inline void SG_NAME(sg_ubc)(const SG_BYTES (*planes)[2], SG_BYTES masks[4]) {
    SG_BYTES met = SG_ALL8(255), out0 = met, out1 = met, out2 = met, out3 = met;
    SG_UBC(SG_UBC_EQUAL, SG_UBC_DIFFER, SG_UBC_NEEDED)
    masks[0] = out0; masks[1] = out1; masks[2] = out2; masks[3] = out3;
}

/* Look at four vectors of blocks by their words from SG_UBC_FIRST on. */
SG_TARGET static inline void SG_NAME(sg_look_words)(const SG_WORDS *const w[4], SG_BYTES masks[4]) {
    SG_BYTES planes[SG_UBC_WORDS][2];
    for (int t = 0; t < SG_UBC_WORDS; t++) {
        SG_PACK(planes[t][0], w[0][t] & SG_ALL(255), w[1][t] & SG_ALL(255), w[2][t] & SG_ALL(255),
                w[3][t] & SG_ALL(255));
        SG_PACK(planes[t][1], w[0][t] >> 25, w[1][t] >> 25, w[2][t] >> 25, w[3][t] >> 25);
    }
    SG_NAME(sg_ubc)((const SG_BYTES (*)[2])planes, masks);
}
/* Look at four vectors of blocks, of which `count` are there. */
SG_TARGET static inline void SG_NAME(sg_look_some)(const uint8_t *const *at, int count, SG_BYTES masks[4]) {
    SG_WORDS w[4][SG_UBC_LAST + 1];
    const SG_WORDS *const late[4] = {w[0] + SG_UBC_FIRST, w[1] + SG_UBC_FIRST, w[2] + SG_UBC_FIRST,
                                     w[3] + SG_UBC_FIRST};
    for (int k = 0; k < 4; k++) {
        if (k * SG_LANES_WIDE >= count) { /* nothing there: any words do */
            memcpy(w[k], w[0], sizeof *w);
            continue;
        }
        SG_GATHER(w[k], at + k * SG_LANES_WIDE);
        SG_EXPAND(w[k], SG_UBC_LAST + 1)
    }
    SG_NAME(sg_look_words)(late, masks);
}
SG_TARGET static void SG_NAME(sg_look)(const sg_detector *d, uint8_t masks[4][SG_WAITING]) {
    SG_BYTES out[4];
    for (int first = 0; first < d->waiting; first += SG_WIDTH) {
        SG_NAME(sg_look_some)(d->at + first, d->waiting - first, out);
        for (int i = 0; i < 4; i++) SG_SPREAD(masks[i] + first, out[i]);
    }
}

SG_TARGET static inline uint32_t SG_NAME(sg_judge_some)(const sg_detector *d, int first) {
    SG_WORDS w[80], v[80], start[5], early[5], late[5], out[5], A, B, C, D, E, is_late, differ, vectors;
    uint32_t change[SG_LANES_WIDE], result[SG_LANES_WIDE], guilty = 0;
    memcpy(&vectors, d->suspect_vectors + first, sizeof vectors);
    for (int i = 0; i < 5; i++) memcpy(&start[i], d->suspect_states[i] + first, sizeof *start);
    for (int t = 0; t < 16; t++) {
        for (int j = 0; j < SG_LANES_WIDE; j++) change[j] = sg_dv_words[d->suspect_vectors[first + j]][t];
        memcpy(&v[t], change, sizeof *v);
        memcpy(&w[t], d->suspect_words[t] + first, sizeof *w);
        v[t] ^= w[t];
    }
    SG_EXPAND(w, 80)
    SG_EXPAND(v, 80)
    is_late = (SG_WORDS)(vectors >= SG_ALL(SG_LATE));
    SG_RECALL(start)
    SG_FORTH_RUN(SG_CH, 0x5A827999u, w, 0, 20)
    SG_FORTH_RUN(SG_PARITY, 0x6ED9EBA1u, w, 20, 40)
    SG_FORTH_RUN(SG_MAJ, 0x8F1BBCDCu, w, 40, SG_MIDDLE)
    SG_STORE(early)
    SG_FORTH_RUN(SG_MAJ, 0x8F1BBCDCu, w, SG_MIDDLE, 60)
    SG_FORTH_RUN(SG_PARITY, 0xCA62C1D6u, w, 60, SG_MIDDLE_LATE)
    SG_STORE(late)
    SG_FORTH_RUN(SG_PARITY, 0xCA62C1D6u, w, SG_MIDDLE_LATE, 80)
    out[0] = start[0] + A; out[1] = start[1] + B; out[2] = start[2] + C; out[3] = start[3] + D; out[4] = start[4] + E;
    /* The other message: forth from the middle, */
    SG_RECALL(early)
    SG_FORTH_RUN(SG_MAJ, 0x8F1BBCDCu, v, SG_MIDDLE, 60)
    SG_FORTH_RUN(SG_PARITY, 0xCA62C1D6u, v, 60, SG_MIDDLE_LATE)
    A = SG_CHOOSE(is_late, late[0], A);
    B = SG_CHOOSE(is_late, late[1], B);
    C = SG_CHOOSE(is_late, late[2], C);
    D = SG_CHOOSE(is_late, late[3], D);
    E = SG_CHOOSE(is_late, late[4], E);
    SG_FORTH_RUN(SG_PARITY, 0xCA62C1D6u, v, SG_MIDDLE_LATE, 80)
    out[0] -= A; out[1] -= B; out[2] -= C; out[3] -= D; out[4] -= E;
    /* and back from there. */
    SG_RECALL(late)
    SG_BACK_RUN(SG_PARITY, 0xCA62C1D6u, v, SG_MIDDLE_LATE, 60)
    SG_BACK_RUN(SG_MAJ, 0x8F1BBCDCu, v, 60, SG_MIDDLE)
    A = SG_CHOOSE(is_late, A, early[0]);
    B = SG_CHOOSE(is_late, B, early[1]);
    C = SG_CHOOSE(is_late, C, early[2]);
    D = SG_CHOOSE(is_late, D, early[3]);
    E = SG_CHOOSE(is_late, E, early[4]);
    SG_BACK_RUN(SG_MAJ, 0x8F1BBCDCu, v, SG_MIDDLE, 40)
    SG_BACK_RUN(SG_PARITY, 0x6ED9EBA1u, v, 40, 20)
    SG_BACK_RUN(SG_CH, 0x5A827999u, v, 20, 0)
    differ = (out[0] ^ A) | (out[1] ^ B) | (out[2] ^ C) | (out[3] ^ D) | (out[4] ^ E);
    memcpy(result, &differ, sizeof result);
    for (int j = 0; j < SG_LANES_WIDE; j++)
        if (result[j] == 0) guilty |= 1u << (first + j);
    return guilty;
}
SG_TARGET static uint32_t SG_NAME(sg_judge)(const sg_detector *d) {
    uint32_t guilty = 0;
    for (int first = 0; first < d->suspects; first += SG_LANES_WIDE) guilty |= SG_NAME(sg_judge_some)(d, first);
    return guilty & ((2u << (d->suspects - 1)) - 1);
}
#undef SG_WORDS
#undef SG_BYTES
#undef SG_LANES_WIDE
#undef SG_NAME
#undef SG_TARGET
#undef SG_WIDTH
#undef SG_GATHER
#undef SG_PACK
