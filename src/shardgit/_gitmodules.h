/* What a .gitmodules file may not say: names and URLs with which a clone of it could be attacked, as git judges them.
 * Linear in the input, nothing allocated. */
#ifndef SHARDGIT_GITMODULES_H
#define SHARDGIT_GITMODULES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline int sg_is_separator(uint8_t c) { return c == '/' || c == '\\'; }
static inline int sg_is_alnum(uint8_t c) {
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
}
static inline int sg_hex_digit(uint8_t c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1;
}
static inline int sg_has_prefix(const uint8_t *s, size_t n, const char *word) {
    size_t length = strlen(word);
    return n >= length && memcmp(s, word, length) == 0;
}

/* The byte that "%XX" at i stands for, -1 when no two hex digits follow. */
static inline int sg_escaped(const uint8_t *s, size_t n, size_t i) {
    int high, low;
    if (n - i < 3) return -1;
    high = sg_hex_digit(s[i + 1]);
    low = sg_hex_digit(s[i + 2]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Whether a newline stands in text, as it is or as an escape. */
static inline int sg_has_newline(const uint8_t *s, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) {
        int c;
        if (s[i] == '\n') return 1;
        if (s[i] != '%' || (c = sg_escaped(s, n, i)) < 0) continue;
        if (c == '\n') return 1;
        i += 2;
    }
    return 0;
}

/* Whether two hex digits follow each percent sign. */
static inline int sg_whole_escapes(const uint8_t *s, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) {
        if (s[i] != '%') continue;
        if (sg_escaped(s, n, i) < 0) return 0;
        i += 2;
    }
    return 1;
}

/* Whether a submodule may have this name, which becomes a folder's: not empty, no ".." as a part of it. */
static inline int sg_submodule_name(const uint8_t *s, size_t n) {
    size_t i;
    for (i = 0; i + 1 < n; i++) {
        if (s[i] != '.' || s[i + 1] != '.' || (i > 0 && !sg_is_separator(s[i - 1]))) continue;
        if (i + 2 == n || sg_is_separator(s[i + 2])) return 0;
    }
    return n > 0;
}

/* How many dots a path segment is, escaped ones counted; 0 when it is anything else, or more than two. */
static inline int sg_dots(const uint8_t *s, size_t n) {
    size_t i = 0;
    int dots = 0;
    if (n > 6) return 0;
    while (i < n) {
        if (s[i] == '.') i++;
        else if (s[i] == '%' && sg_escaped(s, n, i) == '.') i += 3;
        else return 0;
        dots++;
    }
    return dots <= 2 ? dots : 0;
}

/* Whether a path stays below its root, and what is left without "." and ".." holds no newline. Segments are read from
 * the last to the first: each ".." takes away the next one that is neither. */
static inline int sg_plain_path(const uint8_t *s, size_t n) {
    size_t end = n, up = 0;
    if (n > 0 && s[0] == '/') {
        s++;
        end = --n;
    }
    for (;;) {
        size_t start = end;
        int dots;
        while (start > 0 && s[start - 1] != '/') start--;
        dots = sg_dots(s + start, end - start);
        if (dots == 2) up++;
        else if (dots == 0 && up > 0) up--;
        else if (dots == 0 && sg_has_newline(s + start, end - start)) return 0;
        if (start == 0) return up == 0;
        end = start - 1;
    }
}

/* Whether "name" or "name:port" is a host. Only a file's URL may leave it out, and has no port then. */
static inline int sg_plain_host(const uint8_t *s, size_t n, int is_file) {
    size_t colon = n, i;
    uint32_t port = 0;
    int missing = n == 0 || s[0] == ':';
    if (missing && !is_file) return 0;
    for (i = n; i > 0; i--)
        if (s[i - 1] == ':' || s[i - 1] == ']') {
            if (s[i - 1] == ':') colon = i - 1;
            break;
        }
    for (i = 0; i < colon; i++)
        if (!sg_is_alnum(s[i]) && (s[i] == 0 || !strchr(".-_[:]", s[i]))) return 0;
    if (colon == n || colon + 1 == n) return 1;
    if (missing) return 0;
    for (i = colon + 1; i < n; i++) {
        if (s[i] < '0' || s[i] > '9') return 0;
        port = port * 10 + (uint32_t)(s[i] - '0');
        if (port > 65535) return 0;
    }
    return port > 0;
}

/* Whether "scheme://user@host/path?rest" can be normalized (RFC 3986) and holds no newline then. */
static inline int sg_plain_url(const uint8_t *s, size_t n) {
    size_t i, at, end;
    int is_file;
    for (i = 0; i < n && (sg_is_alnum(s[i]) || s[i] == '+' || s[i] == '.' || s[i] == '-'); i++) {}
    if (i == 0 || (s[0] >= '0' && s[0] <= '9') || !sg_is_alnum(s[0]) || !sg_has_prefix(s + i, n - i, "://")) return 0;
    is_file = i == 4 && (s[0] | 0x20) == 'f' && (s[1] | 0x20) == 'i' && (s[2] | 0x20) == 'l' && (s[3] | 0x20) == 'e';
    s += i + 3;
    n -= i + 3;
    for (end = 0; end < n && s[end] != '/' && s[end] != '?' && s[end] != '#'; end++) {}
    for (at = 0; at < end && s[at] != '@'; at++) {}
    if (at < end) {
        if (!sg_whole_escapes(s, at) || sg_has_newline(s, at)) return 0;
        s += at + 1;
        n -= at + 1;
        end -= at + 1;
    }
    if (!sg_plain_host(s, end, is_file)) return 0;
    s += end;
    n -= end;
    for (end = 0; end < n && s[end] != '?' && s[end] != '#'; end++) {}
    return sg_whole_escapes(s, end) && sg_plain_path(s, end) && sg_whole_escapes(s + end, n - end) &&
           !sg_has_newline(s + end, n - end);
}

/* Whether a submodule may be cloned from this URL: no option of a command; no newline, however escaped, where a
 * credential helper would read it; no host that is missing or stands in the path of a relative URL. */
static inline int sg_submodule_url(const uint8_t *s, size_t n) {
    static const char *const schemes[] = {"http", "https", "ftp", "ftps"};
    size_t i, k, dots;
    int climbs = 0;
    if (n > 0 && s[0] == '-') return 0;
    for (i = 0;; i += dots + 1) { /* "./" and "../" that it starts with */
        dots = i < n && s[i] == '.' ? (i + 1 < n && s[i + 1] == '.' ? 2u : 1u) : 0u;
        if (dots == 0 || i + dots >= n || !sg_is_separator(s[i + dots])) break;
        climbs |= dots == 2;
    }
    if (i > 0 || sg_has_prefix(s, n, "git://")) {
        const uint8_t *colon = (const uint8_t *)memchr(s, ':', n);
        size_t raw = colon ? (size_t)(colon - s) : 0; /* up to there git decodes nothing */
        if ((raw > 0 && memchr(s, '\n', raw)) || sg_has_newline(s + raw, n - raw)) return 0;
        return !(climbs && i < n && (s[i] == ':' || s[i] == '/'));
    }
    for (k = 0; k < 4; k++) {
        size_t length = strlen(schemes[k]);
        if (!sg_has_prefix(s, n, schemes[k])) continue;
        if (sg_has_prefix(s + length, n - length, "::")) return sg_plain_url(s + length + 2, n - length - 2);
        if (sg_has_prefix(s + length, n - length, "://")) return sg_plain_url(s, n);
    }
    return 1;
}

#endif
