/* git's fsck of one object, over its bytes while they are hot: no allocation, no recursion, nothing read past n.
 *
 * Findings carry git's message ids and stop where git stops: at the first error of a commit or tag, at the end of a
 * tree. The checks are those of `git index-pack --strict`: mode 100664 is a bad file mode. What a .gitmodules or
 * .gitattributes blob holds is checked apart (fsck.py), for the blobs that `special` names. */
#ifndef SHARDGIT_FSCK_H
#define SHARDGIT_FSCK_H

#include "_kernel.h"
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { SG_FSCK_IGNORE = 0, SG_FSCK_INFO, SG_FSCK_WARN, SG_FSCK_ERROR, SG_FSCK_FATAL };

/* Every message id of git's fsck.h, in its order: constant, name, severity out of the box. The order is part of the
 * interface: a message is its place here. */
#define SG_FSCK_MESSAGES(M) \
    M(NUL_IN_HEADER, nulInHeader, FATAL) \
    M(UNTERMINATED_HEADER, unterminatedHeader, FATAL) \
    M(BAD_HEADER_CONTINUATION, badHeaderContinuation, ERROR) \
    M(BAD_DATE, badDate, ERROR) \
    M(BAD_DATE_OVERFLOW, badDateOverflow, ERROR) \
    M(BAD_EMAIL, badEmail, ERROR) \
    M(BAD_GPGSIG, badGpgsig, ERROR) \
    M(BAD_HEAD_TARGET, badHeadTarget, ERROR) \
    M(BAD_NAME, badName, ERROR) \
    M(BAD_OBJECT_SHA1, badObjectSha1, ERROR) \
    M(BAD_PACKED_REF_ENTRY, badPackedRefEntry, ERROR) \
    M(BAD_PACKED_REF_HEADER, badPackedRefHeader, ERROR) \
    M(BAD_PARENT_SHA1, badParentSha1, ERROR) \
    M(BAD_REFERENT_NAME, badReferentName, ERROR) \
    M(BAD_REF_CONTENT, badRefContent, ERROR) \
    M(BAD_REF_FILETYPE, badRefFiletype, ERROR) \
    M(BAD_REF_NAME, badRefName, ERROR) \
    M(BAD_REF_OID, badRefOid, ERROR) \
    M(BAD_TIMEZONE, badTimezone, ERROR) \
    M(BAD_TREE, badTree, ERROR) \
    M(BAD_TREE_SHA1, badTreeSha1, ERROR) \
    M(BAD_TYPE, badType, ERROR) \
    M(DUPLICATE_ENTRIES, duplicateEntries, ERROR) \
    M(GITATTRIBUTES_BLOB, gitattributesBlob, ERROR) \
    M(GITATTRIBUTES_LARGE, gitattributesLarge, ERROR) \
    M(GITATTRIBUTES_LINE_LENGTH, gitattributesLineLength, ERROR) \
    M(GITATTRIBUTES_MISSING, gitattributesMissing, ERROR) \
    M(GITMODULES_BLOB, gitmodulesBlob, ERROR) \
    M(GITMODULES_LARGE, gitmodulesLarge, ERROR) \
    M(GITMODULES_MISSING, gitmodulesMissing, ERROR) \
    M(GITMODULES_NAME, gitmodulesName, ERROR) \
    M(GITMODULES_PATH, gitmodulesPath, ERROR) \
    M(GITMODULES_SYMLINK, gitmodulesSymlink, ERROR) \
    M(GITMODULES_UPDATE, gitmodulesUpdate, ERROR) \
    M(GITMODULES_URL, gitmodulesUrl, ERROR) \
    M(MISSING_AUTHOR, missingAuthor, ERROR) \
    M(MISSING_COMMITTER, missingCommitter, ERROR) \
    M(MISSING_EMAIL, missingEmail, ERROR) \
    M(MISSING_NAME_BEFORE_EMAIL, missingNameBeforeEmail, ERROR) \
    M(MISSING_OBJECT, missingObject, ERROR) \
    M(MISSING_SPACE_BEFORE_DATE, missingSpaceBeforeDate, ERROR) \
    M(MISSING_SPACE_BEFORE_EMAIL, missingSpaceBeforeEmail, ERROR) \
    M(MISSING_TAG, missingTag, ERROR) \
    M(MISSING_TAG_ENTRY, missingTagEntry, ERROR) \
    M(MISSING_TREE, missingTree, ERROR) \
    M(MISSING_TYPE, missingType, ERROR) \
    M(MISSING_TYPE_ENTRY, missingTypeEntry, ERROR) \
    M(MULTIPLE_AUTHORS, multipleAuthors, ERROR) \
    M(PACKED_REF_ENTRY_NOT_TERMINATED, packedRefEntryNotTerminated, ERROR) \
    M(PACKED_REF_UNSORTED, packedRefUnsorted, ERROR) \
    M(TREE_NOT_SORTED, treeNotSorted, ERROR) \
    M(UNKNOWN_TYPE, unknownType, ERROR) \
    M(ZERO_PADDED_DATE, zeroPaddedDate, ERROR) \
    M(BAD_REFTABLE_TABLE_NAME, badReftableTableName, WARN) \
    M(EMPTY_NAME, emptyName, WARN) \
    M(FULL_PATHNAME, fullPathname, WARN) \
    M(HAS_DOT, hasDot, WARN) \
    M(HAS_DOTDOT, hasDotdot, WARN) \
    M(HAS_DOTGIT, hasDotgit, WARN) \
    M(LARGE_PATHNAME, largePathname, WARN) \
    M(NULL_SHA1, nullSha1, WARN) \
    M(NUL_IN_COMMIT, nulInCommit, WARN) \
    M(ZERO_PADDED_FILEMODE, zeroPaddedFilemode, WARN) \
    M(BAD_FILEMODE, badFilemode, INFO) \
    M(BAD_TAG_NAME, badTagName, INFO) \
    M(EMPTY_PACKED_REFS_FILE, emptyPackedRefsFile, INFO) \
    M(GITATTRIBUTES_SYMLINK, gitattributesSymlink, INFO) \
    M(GITIGNORE_SYMLINK, gitignoreSymlink, INFO) \
    M(GITMODULES_PARSE, gitmodulesParse, INFO) \
    M(MAILMAP_SYMLINK, mailmapSymlink, INFO) \
    M(MISSING_TAGGER_ENTRY, missingTaggerEntry, INFO) \
    M(REF_MISSING_NEWLINE, refMissingNewline, INFO) \
    M(SYMLINK_REF, symlinkRef, INFO) \
    M(SYMREF_TARGET_IS_NOT_A_REF, symrefTargetIsNotARef, INFO) \
    M(TRAILING_REF_CONTENT, trailingRefContent, INFO) \
    M(EXTRA_HEADER_ENTRY, extraHeaderEntry, IGNORE)

#define SG_FSCK_ENUM(id, name, severity) SG_FSCK_##id,
enum { SG_FSCK_MESSAGES(SG_FSCK_ENUM) SG_FSCK_COUNT };
#undef SG_FSCK_ENUM

static inline const char *sg_fsck_name(int message) {
#define SG_FSCK_STRING(id, name, severity) #name,
    static const char *const names[] = {SG_FSCK_MESSAGES(SG_FSCK_STRING)};
#undef SG_FSCK_STRING
    return message >= 0 && message < SG_FSCK_COUNT ? names[message] : NULL;
}

static inline int sg_fsck_default(int message) {
#define SG_FSCK_SEVERITY(id, name, severity) SG_FSCK_##severity,
    static const uint8_t severities[] = {SG_FSCK_MESSAGES(SG_FSCK_SEVERITY)};
#undef SG_FSCK_SEVERITY
    return message >= 0 && message < SG_FSCK_COUNT ? severities[message] : SG_FSCK_IGNORE;
}

/* The table a check is given: one severity a message, zeros, and at SG_FSCK_NAME_MAX_AT the longest path name that is
 * not too large, u32 little-endian. */
enum { SG_FSCK_NAME_MAX_AT = 92, SG_FSCK_TABLE = 96, SG_FSCK_NAME_MAX = 4096 };
_Static_assert((int)SG_FSCK_COUNT <= (int)SG_FSCK_NAME_MAX_AT, "the severities fit before the limit");

/* Told of each finding whose severity is not "ignore"; `offset` is where in the object. At most one call a message and
 * object: the first place counts. */
typedef void (*sg_fsck_sink)(void *ctx, int message, size_t offset);
/* Told of each tree entry whose blob has to be checked as a .gitmodules (1) or .gitattributes (2) file. */
typedef void (*sg_fsck_special)(void *ctx, int kind, const uint8_t *oid);
enum { SG_FSCK_GITMODULES = 1, SG_FSCK_GITATTRIBUTES = 2 };

typedef struct {
    const uint8_t *data;
    size_t n;
    const uint8_t *severity;
    sg_fsck_sink sink;
    sg_fsck_special special;
    void *ctx;
    size_t hash_size;
    uint8_t told[SG_FSCK_COUNT];
} sg_fsck_job;

/* Report a finding; 1 when it is an error, where git stops with a commit or tag. */
static inline int sg_fsck_report(sg_fsck_job *job, int message, size_t offset) {
    uint8_t severity = job->severity[message];
    if (severity != SG_FSCK_IGNORE && !job->told[message]) {
        job->told[message] = 1;
        job->sink(job->ctx, message, offset);
    }
    return severity >= SG_FSCK_ERROR;
}

/* ---- commits and tags ---- */

/* Where the next line starts: after the newline at or after `at`, n without one. */
static inline size_t sg_fsck_next_line(const sg_fsck_job *job, size_t at) {
    const uint8_t *nl = at < job->n ? (const uint8_t *)memchr(job->data + at, '\n', job->n - at) : NULL;
    return nl ? (size_t)(nl - job->data) + 1 : job->n;
}

static inline int sg_fsck_starts(const sg_fsck_job *job, size_t at, const char *word, size_t length) {
    return job->n - at >= length && memcmp(job->data + at, word, length) == 0;
}
#define SG_FSCK_STARTS(job, at, word) sg_fsck_starts(job, at, word, sizeof(word) - 1)

/* Headers hold no NUL and end with an empty line or with the object's last byte. Returns 0 when they do not, which
 * no severity lets pass: what follows relies on every header line having its newline. */
static inline int sg_fsck_headers(sg_fsck_job *job) {
    const uint8_t *data = job->data, *nul;
    size_t at = 0, end;
    while (at < job->n) {
        const uint8_t *nl = (const uint8_t *)memchr(data + at, '\n', job->n - at);
        if (!nl) break;
        at = (size_t)(nl - data) + 1;
        if (at < job->n && data[at] == '\n') break;
    }
    /* `at` is after a newline or 0: what lies before it is headers, and so is the rest when no empty line came. */
    end = at && at < job->n && data[at] == '\n' ? at : job->n;
    nul = end ? (const uint8_t *)memchr(data, 0, end) : NULL;
    if (nul) {
        (void)sg_fsck_report(job, SG_FSCK_NUL_IN_HEADER, (size_t)(nul - data));
        return 0;
    }
    if (end == job->n && (job->n == 0 || data[job->n - 1] != '\n')) {
        (void)sg_fsck_report(job, SG_FSCK_UNTERMINATED_HEADER, job->n);
        return 0;
    }
    return 1;
}

static inline int sg_fsck_digit(uint8_t c) { return c >= '0' && c <= '9'; }

/* Check "name <email> date zone" from *at to the newline; *at goes past it. 1 on an error. */
static inline int sg_fsck_ident(sg_fsck_job *job, size_t *at) {
    const uint8_t *data = job->data;
    size_t p = *at, start = p, nl, i;
    uint64_t date = 0;
    *at = sg_fsck_next_line(job, p);
    nl = *at - 1; /* headers end with a newline */
#define SG_FSCK_AT(i) (data[(i) < nl ? (i) : nl])
    if (SG_FSCK_AT(p) == '<') return sg_fsck_report(job, SG_FSCK_MISSING_NAME_BEFORE_EMAIL, p);
    while (p < nl && data[p] != '<' && data[p] != '>') p++;
    if (p >= nl) return sg_fsck_report(job, SG_FSCK_MISSING_EMAIL, p);
    if (data[p] == '>') return sg_fsck_report(job, SG_FSCK_BAD_NAME, p);
    if (p == start || data[p - 1] != ' ') return sg_fsck_report(job, SG_FSCK_MISSING_SPACE_BEFORE_EMAIL, p);
    p++;
    while (p < nl && data[p] != '<' && data[p] != '>') p++;
    if (SG_FSCK_AT(p) != '>') return sg_fsck_report(job, SG_FSCK_BAD_EMAIL, p);
    p++;
    if (SG_FSCK_AT(p) != ' ') return sg_fsck_report(job, SG_FSCK_MISSING_SPACE_BEFORE_DATE, p);
    p++;
    while (p < nl && (data[p] == ' ' || data[p] == '\t')) p++;
    if (!sg_fsck_digit(SG_FSCK_AT(p))) return sg_fsck_report(job, SG_FSCK_BAD_DATE, p);
    if (data[p] == '0' && SG_FSCK_AT(p + 1) != ' ') return sg_fsck_report(job, SG_FSCK_ZERO_PADDED_DATE, p);
    for (i = p; sg_fsck_digit(SG_FSCK_AT(i)); i++) {
        if (date > (UINT64_C(0x7FFFFFFFFFFFFFFF) - (uint64_t)(data[i] - '0')) / 10)
            return sg_fsck_report(job, SG_FSCK_BAD_DATE_OVERFLOW, p);
        date = date * 10 + (uint64_t)(data[i] - '0');
    }
    p = i;
    if (SG_FSCK_AT(p) != ' ') return sg_fsck_report(job, SG_FSCK_BAD_DATE, p);
    p++;
    if ((SG_FSCK_AT(p) != '+' && SG_FSCK_AT(p) != '-') || nl - p != 5 || !sg_fsck_digit(data[p + 1]) ||
        !sg_fsck_digit(data[p + 2]) || !sg_fsck_digit(data[p + 3]) || !sg_fsck_digit(data[p + 4]))
        return sg_fsck_report(job, SG_FSCK_BAD_TIMEZONE, p);
#undef SG_FSCK_AT
    return 0;
}

/* Whether a full hex id and a newline stand at `at`. */
static inline int sg_fsck_hex_line(const sg_fsck_job *job, size_t at) {
    size_t i, length = 2 * job->hash_size;
    if (job->n - at <= length || job->data[at + length] != '\n') return 0;
    for (i = 0; i < length; i++) {
        uint8_t c = job->data[at + i], low = (uint8_t)(c | 0x20);
        if (!sg_fsck_digit(c) && !(low >= 'a' && low <= 'f')) return 0;
    }
    return 1;
}

static inline void sg_fsck_commit(sg_fsck_job *job) {
    size_t at = 0, n = job->n;
    size_t authors = 0;
    const uint8_t *nul;
    if (!sg_fsck_headers(job)) return;
    if (!SG_FSCK_STARTS(job, at, "tree ")) {
        (void)sg_fsck_report(job, SG_FSCK_MISSING_TREE, at);
        return;
    }
    if (!sg_fsck_hex_line(job, at + 5) && sg_fsck_report(job, SG_FSCK_BAD_TREE_SHA1, at + 5)) return;
    at = sg_fsck_next_line(job, at);
    while (SG_FSCK_STARTS(job, at, "parent ")) {
        if (!sg_fsck_hex_line(job, at + 7) && sg_fsck_report(job, SG_FSCK_BAD_PARENT_SHA1, at + 7)) return;
        at = sg_fsck_next_line(job, at);
    }
    while (SG_FSCK_STARTS(job, at, "author ")) {
        authors++;
        at += 7;
        if (sg_fsck_ident(job, &at)) return;
    }
    if (authors == 0 && sg_fsck_report(job, SG_FSCK_MISSING_AUTHOR, at)) return;
    if (authors > 1 && sg_fsck_report(job, SG_FSCK_MULTIPLE_AUTHORS, at)) return;
    if (!SG_FSCK_STARTS(job, at, "committer ")) {
        (void)sg_fsck_report(job, SG_FSCK_MISSING_COMMITTER, at);
        return;
    }
    at += 10;
    if (sg_fsck_ident(job, &at)) return;
    nul = (const uint8_t *)memchr(job->data, 0, n);
    if (nul) (void)sg_fsck_report(job, SG_FSCK_NUL_IN_COMMIT, (size_t)(nul - job->data));
}

/* Whether "refs/tags/" and this name make a ref name (git check-ref-format). */
static inline int sg_fsck_tag_name(const uint8_t *name, size_t n) {
    size_t i, part = 0; /* where the component starts */
    if (n == 0 || name[n - 1] == '.' || name[n - 1] == '/') return 0;
    for (i = 0; i <= n; i++) {
        uint8_t c = i < n ? name[i] : '/';
        if (c == '/') {
            if (i == part || name[part] == '.') return 0;
            if (i - part >= 5 && memcmp(name + i - 5, ".lock", 5) == 0) return 0;
            part = i + 1;
        } else if (c <= ' ' || c == 0x7F || c == '~' || c == '^' || c == ':' || c == '?' || c == '*' || c == '[' ||
                   c == '\\') {
            return 0;
        } else if (i > part && ((c == '.' && name[i - 1] == '.') || (c == '{' && name[i - 1] == '@'))) {
            return 0;
        }
    }
    return 1;
}

static inline int sg_fsck_is_type(const uint8_t *word, size_t n) {
    return (n == 6 && memcmp(word, "commit", 6) == 0) || (n == 4 && memcmp(word, "tree", 4) == 0) ||
           (n == 4 && memcmp(word, "blob", 4) == 0) || (n == 3 && memcmp(word, "tag", 3) == 0);
}

static inline void sg_fsck_tag(sg_fsck_job *job) {
    size_t at = 0, n = job->n, next;
    if (!sg_fsck_headers(job)) return;
    if (!SG_FSCK_STARTS(job, at, "object ")) {
        (void)sg_fsck_report(job, SG_FSCK_MISSING_OBJECT, at);
        return;
    }
    if (!sg_fsck_hex_line(job, at + 7) && sg_fsck_report(job, SG_FSCK_BAD_OBJECT_SHA1, at + 7)) return;
    at = sg_fsck_next_line(job, at);
    if (!SG_FSCK_STARTS(job, at, "type ")) {
        (void)sg_fsck_report(job, SG_FSCK_MISSING_TYPE_ENTRY, at);
        return;
    }
    next = sg_fsck_next_line(job, at);
    if (job->data[next - 1] != '\n') {
        (void)sg_fsck_report(job, SG_FSCK_MISSING_TYPE, at);
        return;
    }
    if (!sg_fsck_is_type(job->data + at + 5, next - 1 - (at + 5)) && sg_fsck_report(job, SG_FSCK_BAD_TYPE, at + 5))
        return;
    at = next;
    if (!SG_FSCK_STARTS(job, at, "tag ")) {
        (void)sg_fsck_report(job, SG_FSCK_MISSING_TAG_ENTRY, at);
        return;
    }
    next = sg_fsck_next_line(job, at);
    if (job->data[next - 1] != '\n') {
        (void)sg_fsck_report(job, SG_FSCK_MISSING_TAG, at);
        return;
    }
    if (!sg_fsck_tag_name(job->data + at + 4, next - 1 - (at + 4)) &&
        sg_fsck_report(job, SG_FSCK_BAD_TAG_NAME, at + 4))
        return;
    at = next;
    if (SG_FSCK_STARTS(job, at, "tagger ")) {
        at += 7;
        (void)sg_fsck_ident(job, &at); /* git looks at what follows even so */
    } else if (sg_fsck_report(job, SG_FSCK_MISSING_TAGGER_ENTRY, at)) {
        return;
    }
    if (SG_FSCK_STARTS(job, at, "gpgsig ") || SG_FSCK_STARTS(job, at, "gpgsig-sha256 ")) {
        at = sg_fsck_next_line(job, at);
        if (job->data[at - 1] != '\n') {
            (void)sg_fsck_report(job, SG_FSCK_BAD_GPGSIG, at);
            return;
        }
        while (at < n && job->data[at] == ' ') {
            at = sg_fsck_next_line(job, at);
            if (job->data[at - 1] != '\n') {
                (void)sg_fsck_report(job, SG_FSCK_BAD_HEADER_CONTINUATION, at);
                return;
            }
        }
    }
    if (at < n && job->data[at] != '\n') (void)sg_fsck_report(job, SG_FSCK_EXTRA_HEADER_ENTRY, at);
}

/* ---- names that some file system takes for .git and its kin; `s` ends with a NUL ---- */

static inline uint8_t sg_fsck_lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? (uint8_t)(c | 0x20) : c; }

/* Skip the code points that HFS+ leaves out of comparisons: U+200C..200F, 202A..202E, 206A..206F, FEFF. */
static inline const uint8_t *sg_fsck_hfs_skip(const uint8_t *s) {
    for (;;) {
        if (s[0] == 0xE2 && s[1] == 0x80 && ((s[2] >= 0x8C && s[2] <= 0x8F) || (s[2] >= 0xAA && s[2] <= 0xAE))) s += 3;
        else if (s[0] == 0xE2 && s[1] == 0x81 && s[2] >= 0xAA && s[2] <= 0xAF) s += 3;
        else if (s[0] == 0xEF && s[1] == 0xBB && s[2] == 0xBF) s += 3;
        else return s;
    }
}

/* Whether the bytes at `s` start no UTF-8 sequence: overlong forms, surrogates, U+FFFE, U+FFFF and beyond U+10FFFF. */
static inline int sg_fsck_utf8_bad(const uint8_t *s) {
    uint8_t c = s[0];
    if (c < 0x80) return 0;
    if (c < 0xC2 || c > 0xF4) return 1;
    if ((s[1] & 0xC0) != 0x80) return 1;
    if (c < 0xE0) return 0;
    if ((s[2] & 0xC0) != 0x80) return 1;
    if (c < 0xF0)
        return (c == 0xE0 && s[1] < 0xA0) || (c == 0xED && s[1] >= 0xA0) || (c == 0xEF && s[1] == 0xBF && s[2] >= 0xBE);
    if ((s[3] & 0xC0) != 0x80) return 1;
    return (c == 0xF0 && s[1] < 0x90) || (c == 0xF4 && s[1] > 0x8F);
}

/* Whether HFS+ takes `s` for "." and `word`: folding case, leaving code points out, up to the end or a slash. After
 * the word git's decoder takes bytes that are no UTF-8 for the end, and so does this. */
static inline int sg_fsck_hfs(const uint8_t *s, const char *word) {
    s = sg_fsck_hfs_skip(s);
    if (*s != '.') return 0;
    s++;
    for (; *word; word++, s++) {
        s = sg_fsck_hfs_skip(s);
        if (sg_fsck_lower(*s) != (uint8_t)*word) return 0;
    }
    s = sg_fsck_hfs_skip(s);
    return *s == 0 || *s == '/' || sg_fsck_utf8_bad(s);
}

/* Whether NTFS takes `s`, up to a separator, a stream's colon or its end, for .git or for its short name git~1. */
static inline int sg_fsck_ntfs_git(const uint8_t *s) {
    if (s[0] == '.') {
        if (sg_fsck_lower(s[1]) != 'g' || sg_fsck_lower(s[2]) != 'i' || sg_fsck_lower(s[3]) != 't') return 0;
        s += 4;
    } else {
        if (sg_fsck_lower(s[0]) != 'g' || sg_fsck_lower(s[1]) != 'i' || sg_fsck_lower(s[2]) != 't' || s[3] != '~' ||
            s[4] != '1')
            return 0;
        s += 5;
    }
    while (*s == '.' || *s == ' ') s++;
    return *s == 0 || *s == '/' || *s == '\\' || *s == ':';
}

/* How many bytes of `word` stand at `s`, case folded. */
static inline size_t sg_fsck_common(const uint8_t *s, const char *word) {
    size_t i = 0;
    while (word[i] && sg_fsck_lower(s[i]) == (uint8_t)word[i]) i++;
    return i;
}

/* Whether NTFS takes `s` for "." and `word`, for its short names WORD~1 to 4, or for the hashed short name that starts
 * with `hashed` (six characters). */
static inline int sg_fsck_ntfs(const uint8_t *s, const char *word, size_t length, const char *hashed) {
    size_t i, tilde;
    if (s[0] == '.' && sg_fsck_common(s + 1, word) == length) {
        i = length + 1;
    } else if (sg_fsck_common(s, word) >= 6 && s[6] == '~' && s[7] >= '1' && s[7] <= '4') {
        i = 8;
    } else {
        tilde = sg_fsck_common(s, hashed); /* at most six of the hash, a tilde, a digit not 0, digits: eight in all */
        if (s[tilde] != '~' || s[tilde + 1] < '1' || s[tilde + 1] > '9') return 0;
        for (i = tilde + 2; i < 8; i++)
            if (!sg_fsck_digit(s[i])) return 0;
    }
    while (s[i] == '.' || s[i] == ' ') i++;
    return s[i] == 0 || s[i] == ':';
}

/* ---- trees ---- */

enum { SG_FSCK_SYMLINK = 0120000, SG_FSCK_DIRECTORY = 0040000, SG_FSCK_FORMAT = 0170000 };
enum { SG_FSCK_PREFIXES = 65536 }; /* of the lengths in a run's bitset */

/* The files met so far whose names are proper prefixes of the present name, next byte below "/": each may come again
 * as a directory, though not beside itself ("a", "a.b", "a/"). A set of lengths; what is longer than the set is found by
 * reading the names again from `far`. */
typedef struct {
    size_t top;   /* the longest, 0 without any */
    size_t words; /* of `bits` that were ever cleared */
    size_t far;   /* where the first name of SG_FSCK_PREFIXES bytes or more stands, SIZE_MAX without */
    uint64_t bits[SG_FSCK_PREFIXES / 64];
} sg_fsck_run;

static inline void sg_fsck_run_add(sg_fsck_run *run, size_t length, size_t at) {
    size_t word = length / 64;
    if (length >= SG_FSCK_PREFIXES) {
        if (run->far == SIZE_MAX) run->far = at;
        if (run->top < SG_FSCK_PREFIXES) run->top = SG_FSCK_PREFIXES;
        return;
    }
    while (run->words <= word) run->bits[run->words++] = 0;
    run->bits[word] |= UINT64_C(1) << (length % 64);
    if (run->top < length) run->top = length;
}

/* Forget the files whose names are longer than what this name shares with the last. */
static inline void sg_fsck_run_cut(sg_fsck_run *run, size_t shared) {
    size_t word = run->top / 64;
    if (shared >= SG_FSCK_PREFIXES) return;
    run->far = SIZE_MAX;
    run->top = 0;
    if (run->words == 0) return;
    if (word >= run->words) word = run->words - 1;
    for (; word > shared / 64; word--) run->bits[word] = 0;
    if (word == shared / 64 && shared % 64 != 63) run->bits[word] &= (UINT64_C(1) << (shared % 64 + 1)) - 1;
    while (word > 0 && run->bits[word] == 0) word--;
    if (run->bits[word]) run->top = word * 64 + 63 - (size_t)__builtin_clzll(run->bits[word]);
}

/* Whether a file of `length` bytes of `name` came earlier in the run. */
static inline int sg_fsck_run_has(const sg_fsck_job *job, const sg_fsck_run *run, const uint8_t *name, size_t length) {
    size_t at = run->far, end = (size_t)(name - job->data);
    if (length < SG_FSCK_PREFIXES)
        return length / 64 < run->words && (run->bits[length / 64] >> (length % 64) & 1) != 0;
    while (at < end) { /* names, one after another: `at` is where one starts */
        const uint8_t *other = job->data + at;
        const uint8_t *stop = (const uint8_t *)memchr(other, 0, job->n - at);
        const uint8_t *space;
        if ((size_t)(stop - other) == length && memcmp(other, name, length) == 0) return 1;
        stop += 1 + job->hash_size;
        if (stop >= name) return 0;
        space = (const uint8_t *)memchr(stop, ' ', (size_t)(name - stop));
        if (!space) return 0;
        at = (size_t)(space - job->data) + 1;
    }
    return 0;
}

/* What a tree can be found guilty of, in the order of reporting; once each, at its first place. */
#define SG_FSCK_TREE_FINDINGS(M) \
    M(GITMODULES_SYMLINK) M(GITATTRIBUTES_SYMLINK) M(GITIGNORE_SYMLINK) M(MAILMAP_SYMLINK) M(BAD_TREE) M(NULL_SHA1) \
    M(FULL_PATHNAME) M(HAS_DOT) M(HAS_DOTDOT) M(HAS_DOTGIT) M(ZERO_PADDED_FILEMODE) M(BAD_FILEMODE) \
    M(DUPLICATE_ENTRIES) M(TREE_NOT_SORTED) M(LARGE_PATHNAME)
#define SG_FSCK_FINDING(id) SG_FSCK_TREE_##id,
enum { SG_FSCK_TREE_FINDINGS(SG_FSCK_FINDING) SG_FSCK_TREE_COUNT };
#undef SG_FSCK_FINDING

typedef struct {
    sg_fsck_job *job;
    unsigned found; /* bit set */
    size_t where[SG_FSCK_TREE_COUNT];
} sg_fsck_verdict;

static inline void sg_fsck_find(sg_fsck_verdict *v, int finding, const uint8_t *at) {
    if (v->found >> finding & 1) return;
    v->found |= 1u << finding;
    v->where[finding] = (size_t)(at - v->job->data);
}

/* Check a name that may be special, or the part of one after a backslash. */
static inline void sg_fsck_name_check(sg_fsck_verdict *v, const uint8_t *name, uint32_t mode, const uint8_t *oid,
                                      int whole) {
    int symlink = (mode & SG_FSCK_FORMAT) == SG_FSCK_SYMLINK;
    if (whole && name[0] == '.') {
        if (name[1] == 0) sg_fsck_find(v, SG_FSCK_TREE_HAS_DOT, name);
        else if (name[1] == '.' && name[2] == 0) sg_fsck_find(v, SG_FSCK_TREE_HAS_DOTDOT, name);
    }
    if (sg_fsck_ntfs_git(name) || (whole && sg_fsck_hfs(name, "git"))) sg_fsck_find(v, SG_FSCK_TREE_HAS_DOTGIT, name);
    if (sg_fsck_ntfs(name, "gitmodules", 10, "gi7eba") || (whole && sg_fsck_hfs(name, "gitmodules"))) {
        if (symlink) sg_fsck_find(v, SG_FSCK_TREE_GITMODULES_SYMLINK, name);
        else v->job->special(v->job->ctx, SG_FSCK_GITMODULES, oid);
    }
    if (!whole) return;
    if (sg_fsck_ntfs(name, "gitattributes", 13, "gi7d29") || sg_fsck_hfs(name, "gitattributes")) {
        if (symlink) sg_fsck_find(v, SG_FSCK_TREE_GITATTRIBUTES_SYMLINK, name);
        else v->job->special(v->job->ctx, SG_FSCK_GITATTRIBUTES, oid);
    }
    if (!symlink) return;
    if (sg_fsck_ntfs(name, "gitignore", 9, "gi250a") || sg_fsck_hfs(name, "gitignore"))
        sg_fsck_find(v, SG_FSCK_TREE_GITIGNORE_SYMLINK, name);
    if (sg_fsck_ntfs(name, "mailmap", 7, "maba30") || sg_fsck_hfs(name, "mailmap"))
        sg_fsck_find(v, SG_FSCK_TREE_MAILMAP_SYMLINK, name);
}

/* What a first byte can begin: 1 a name with a dot or an HFS+ code point to leave out, 2 an NTFS short name. */
static inline int sg_fsck_first(uint8_t c) {
    switch (c) {
    case '.': case 0xE2: case 0xEF: return 1;
    case 'g': case 'G': case 'm': case 'M': case '~': return 2;
    default: return 0;
    }
}

#define SG_FSCK_ONES UINT64_C(0x0101010101010101)
/* A bit in each byte of `w` that is `c`; exact up to the first such byte. */
static inline uint64_t sg_fsck_bytes(uint64_t w, uint8_t c) {
    w ^= SG_FSCK_ONES * c;
    return (w - SG_FSCK_ONES) & ~w & (SG_FSCK_ONES << 7);
}

enum { SG_FSCK_SLASH = 1, SG_FSCK_BACKSLASH = 2 };
/* The length of a name and whether it holds slashes, in one pass. May read 15 bytes past the NUL: an id is longer. */
static inline size_t sg_fsck_scan(const uint8_t *name, unsigned *slashes) {
    size_t i = 0;
    unsigned seen = 0;
#ifdef __SSE2__
    const __m128i zero = _mm_setzero_si128(), slash = _mm_set1_epi8('/'), back = _mm_set1_epi8('\\');
    for (;; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(name + i));
        unsigned z = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(v, zero));
        unsigned s = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(v, slash));
        unsigned b = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(v, back));
        unsigned before = z ? (z & (0u - z)) - 1 : 0xFFFFu;
        seen |= ((s & before) ? (unsigned)SG_FSCK_SLASH : 0u) | ((b & before) ? (unsigned)SG_FSCK_BACKSLASH : 0u);
        if (z) {
            i += (size_t)__builtin_ctz(z);
            break;
        }
    }
#else
    for (;; i += 8) {
        uint64_t w = sg_u64(name + i), z = sg_fsck_bytes(w, 0), before = z ? (z & (0 - z)) - 1 : UINT64_MAX;
        seen |= ((sg_fsck_bytes(w, '/') & before) ? (unsigned)SG_FSCK_SLASH : 0u) |
                ((sg_fsck_bytes(w, '\\') & before) ? (unsigned)SG_FSCK_BACKSLASH : 0u);
        if (z) {
            i += (size_t)__builtin_ctzll(z) / 8;
            break;
        }
    }
#endif
    *slashes = seen;
    return i;
}

/* Read "mode " at p, 23 bytes or more before a NUL's reach: the place of the name, NULL when malformed. */
static inline const uint8_t *sg_fsck_mode(const uint8_t *p, uint32_t *mode) {
    uint64_t w = sg_u64(p);
    uint32_t m = 0;
    if ((w & UINT64_C(0xFFFFFFFFFFFFFF)) == UINT64_C(0x20343436303031)) { /* "100644 " */
        *mode = 0100644;
        return p + 7;
    }
    if ((w & UINT64_C(0xFFFFFFFFFFFF)) == UINT64_C(0x203030303034)) { /* "40000 " */
        *mode = 0040000;
        return p + 6;
    }
    if (*p == ' ') return NULL;
    for (; *p != ' '; p++) {
        if (*p < '0' || *p > '7') return NULL;
        m = m << 3 | (uint32_t)(*p - '0');
    }
    *mode = m & 0xFFFF; /* git's own width */
    return p + 1;
}

/* How many bytes two names share, at most `most`, the shorter's length. */
static inline size_t sg_fsck_shared(const uint8_t *a, const uint8_t *b, size_t most) {
    size_t i = 0;
    while (i < most) {
        uint64_t x = sg_u64(a + i) ^ sg_u64(b + i);
        if (x) {
            i += (size_t)__builtin_ctzll(x) / 8;
            break;
        }
        i += 8;
    }
    return i < most ? i : most;
}

/* Check an entry against the one before it: order, and files that come again, as directories too. */
static inline void sg_fsck_order(sg_fsck_verdict *v, sg_fsck_run *run, const uint8_t *a, size_t a_length,
                                 uint32_t a_mode, const uint8_t *b, size_t b_length, uint32_t b_mode) {
    size_t least = a_length < b_length ? a_length : b_length;
    size_t shared = sg_fsck_shared(a, b, least);
    uint8_t x, y;
    if (run->top > shared) sg_fsck_run_cut(run, shared);
    if (shared < least) {
        if (a[shared] > b[shared]) sg_fsck_find(v, SG_FSCK_TREE_TREE_NOT_SORTED, b);
        return;
    }
    if (a_length == b_length) {
        sg_fsck_find(v, SG_FSCK_TREE_DUPLICATE_ENTRIES, b);
        return;
    }
    x = a[shared];
    y = b[shared];
    if (x == 0 && (a_mode & SG_FSCK_FORMAT) == SG_FSCK_DIRECTORY) x = '/';
    if (y == 0 && (b_mode & SG_FSCK_FORMAT) == SG_FSCK_DIRECTORY) y = '/';
    if (x == 0 && y < '/') {
        sg_fsck_run_add(run, a_length, (size_t)(a - v->job->data));
    } else if (y == '/' && x > 0 && x < '/' && b_length == shared &&
               sg_fsck_run_has(v->job, run, b, b_length)) {
        sg_fsck_find(v, SG_FSCK_TREE_DUPLICATE_ENTRIES, b);
        return;
    }
    if (x >= y) sg_fsck_find(v, SG_FSCK_TREE_TREE_NOT_SORTED, b);
}

static inline void sg_fsck_tree_report(const sg_fsck_verdict *v) {
#define SG_FSCK_FINDING(id) SG_FSCK_##id,
    static const uint8_t messages[] = {SG_FSCK_TREE_FINDINGS(SG_FSCK_FINDING)};
#undef SG_FSCK_FINDING
    int k;
    for (k = 0; k < SG_FSCK_TREE_COUNT; k++)
        if (v->found >> k & 1) (void)sg_fsck_report(v->job, messages[k], v->where[k]);
}

static inline void sg_fsck_tree(sg_fsck_job *job) {
    const size_t h = job->hash_size, name_max = sg_u32(job->severity + SG_FSCK_NAME_MAX_AT);
    const uint8_t *p = job->data, *const end = job->data + job->n;
    const uint8_t *last = NULL;
    size_t last_length = 0;
    uint32_t last_mode = 0;
    sg_fsck_verdict v;
    sg_fsck_run run;
    if (job->n == 0) return;
    v.job = job;
    v.found = 0;
    run.top = run.words = 0;
    run.far = SIZE_MAX;
    /* The NUL before the last id ends every search for the end of a mode or name, and an id follows it. */
    if (job->n < h + 3 || end[-(ptrdiff_t)h - 1] != 0) {
        sg_fsck_find(&v, SG_FSCK_TREE_BAD_TREE, p);
        p = end;
    }
    while (p < end) {
        const uint8_t *name, *oid;
        size_t length;
        unsigned slashes;
        uint32_t mode = 0;
        int first;
        if ((size_t)(end - p) < h + 3 || !(name = sg_fsck_mode(p, &mode)) || *name == 0) {
            sg_fsck_find(&v, SG_FSCK_TREE_BAD_TREE, p);
            break;
        }
        length = sg_fsck_scan(name, &slashes);
        oid = name + length + 1;
        if (*p == '0') sg_fsck_find(&v, SG_FSCK_TREE_ZERO_PADDED_FILEMODE, p);
        if (mode != 0100644 && mode != 0040000 && mode != 0100755 && mode != 0120000 && mode != 0160000)
            sg_fsck_find(&v, SG_FSCK_TREE_BAD_FILEMODE, p);
        if (length > name_max) sg_fsck_find(&v, SG_FSCK_TREE_LARGE_PATHNAME, name);
        first = sg_fsck_first(*name);
        if (first == 1 || (first == 2 && sg_fsck_bytes(sg_u64(name), '~')))
            sg_fsck_name_check(&v, name, mode, oid, 1);
        if (slashes) {
            const uint8_t *part = name;
            if (slashes & SG_FSCK_SLASH) sg_fsck_find(&v, SG_FSCK_TREE_FULL_PATHNAME, name);
            if (slashes & SG_FSCK_BACKSLASH)
                while ((part = (const uint8_t *)memchr(part, '\\', (size_t)(name + length - part))) != NULL)
                    sg_fsck_name_check(&v, ++part, mode, oid, 0);
        }
        if (sg_u64(oid) == 0) {
            size_t k = 8;
            while (k < h && oid[k] == 0) k++;
            if (k == h) sg_fsck_find(&v, SG_FSCK_TREE_NULL_SHA1, name);
        }
        if (last) sg_fsck_order(&v, &run, last, last_length, last_mode, name, length, mode);
        last = name;
        last_length = length;
        last_mode = mode;
        p = oid + h;
    }
    if (v.found) sg_fsck_tree_report(&v);
}

/* ---- the one way in ---- */

/* Check an object of `type` (1 commit, 2 tree, 3 blob, 4 tag) as git does. `severity` is a table of SG_FSCK_TABLE
 * bytes; `sink` is told of findings, `special` of tree entries whose blobs need a check of their own. */
static inline void sg_fsck_object(int hash_kind, int type, const uint8_t *data, size_t n, const uint8_t *severity,
                                  sg_fsck_sink sink, sg_fsck_special special, void *ctx) {
    sg_fsck_job job;
    job.data = data;
    job.n = n;
    job.severity = severity;
    job.sink = sink;
    job.special = special;
    job.ctx = ctx;
    job.hash_size = sg_hash_size(hash_kind);
    memset(job.told, 0, sizeof(job.told));
    switch (type) {
    case 1: sg_fsck_commit(&job); break;
    case 2: sg_fsck_tree(&job); break;
    case 3: break;
    case 4: sg_fsck_tag(&job); break;
    default: (void)sg_fsck_report(&job, SG_FSCK_UNKNOWN_TYPE, 0);
    }
}

#endif
