/* What this machine can do at most, with nothing of Python between: one mode a run, figures on stdout.
 *
 *   limits inflate PACK BYTES    inflate a pack's entries in their order, the first BYTES of the file
 *   limits sha1                  one long message by OpenSSL
 *   limits memcpy                from one big buffer to another
 *   limits fsync FILE COUNT      append 4 KiB and fdatasync, COUNT times
 *   limits loopback BYTES        stream over TCP to another process that throws it away
 *
 * Each prints lines "name value"; CPU seconds are of this process alone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>
#ifdef WITH_LIBDEFLATE
#include <libdeflate.h>
#endif

static void die(const char *why) {
    perror(why);
    exit(1);
}

static double clock_s(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double cpu_s(void) { return clock_s(CLOCK_PROCESS_CPUTIME_ID); }
static double wall_s(void) { return clock_s(CLOCK_MONOTONIC); }

static void *room(size_t size) {
    void *p = malloc(size);
    if (!p) die("malloc");
    return p;
}

/* Walk entries; `inflate_one` returns how many bytes of input an entry took, 0 if it is no zlib stream. */
typedef size_t (*inflate_one)(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size);

static size_t by_zlib(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size) {
    static z_stream stream;
    static int made;
    if (!made++ && inflateInit(&stream) != Z_OK) die("inflateInit");
    if (inflateReset(&stream) != Z_OK) die("inflateReset");
    uint8_t none;
    stream.next_in = (Bytef *)in;
    stream.avail_in = in_size > UINT32_MAX ? UINT32_MAX : (uInt)in_size;
    stream.next_out = out_size ? out : &none;
    stream.avail_out = (uInt)out_size;
    return inflate(&stream, Z_FINISH) == Z_STREAM_END ? stream.total_in : 0;
}

#ifdef WITH_LIBDEFLATE
static size_t by_libdeflate(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size) {
    static struct libdeflate_decompressor *one;
    if (!one && !(one = libdeflate_alloc_decompressor())) die("libdeflate");
    size_t took, made;
    if (libdeflate_zlib_decompress_ex(one, in, in_size, out, out_size, &took, &made)) return 0;
    return made == out_size ? took : 0;
}
#endif

static void walk(const char *name, const uint8_t *pack, size_t size, size_t most, inflate_one one) {
    size_t at = 12, out_size = 1 << 20, made = 0, entries = 0;
    uint8_t *out = room(out_size);
    double begun = cpu_s();
    while (at + 20 < size && at < most) {
        int type = pack[at] >> 4 & 7, shift = 4;
        size_t length = pack[at] & 15;
        while (pack[at++] & 0x80) {
            length |= (size_t)(pack[at] & 0x7f) << shift;
            shift += 7;
        }
        if (type == 6)
            while (pack[at++] & 0x80) {
            }
        if (type == 7) at += 20;
        if (length > out_size) {
            free(out);
            out = room(out_size = length * 2);
        }
        size_t took = one(pack + at, size - at, out, length);
        if (!took) die("a broken entry");
        at += took;
        made += length;
        entries++;
    }
    printf("%s_bytes %zu\n%s_entries %zu\n%s_cpu_s %.6f\n", name, made, name, entries, name, cpu_s() - begun);
    free(out);
}

static void inflating(const char *path, size_t most) {
    int file = open(path, O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about)) die(path);
    size_t size = (size_t)about.st_size;
    uint8_t *pack = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (pack == MAP_FAILED) die("mmap");
#ifdef WITH_LIBDEFLATE
    walk("libdeflate", pack, size, most, by_libdeflate);
#endif
    walk("zlib", pack, size, most, by_zlib);
}

static void hashing(void) {
    size_t size = 64 << 20;
    uint8_t *data = room(size), id[EVP_MAX_MD_SIZE];
    memset(data, 7, size);
    double begun = cpu_s();
    for (int i = 0; i < 8; i++)
        if (!EVP_Digest(data, size, id, NULL, EVP_sha1(), NULL)) die("sha1");
    printf("bytes %zu\ncpu_s %.6f\n", 8 * size, cpu_s() - begun);
}

static void copying(void) {
    size_t size = 256 << 20;
    uint8_t *from = room(size), *to = room(size);
    memset(from, 7, size);
    memset(to, 8, size);
    double begun = cpu_s();
    for (int i = 0; i < 8; i++) {
        memcpy(to, from, size);
        __asm__ volatile("" : : "r"(to) : "memory");
    }
    printf("bytes %zu\ncpu_s %.6f\n", 8 * size, cpu_s() - begun);
}

static void syncing(const char *path, int count) {
    static char piece[4096];
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0) die(path);
    double begun = wall_s();
    for (int i = 0; i < count; i++)
        if (write(file, piece, sizeof piece) != sizeof piece || fdatasync(file)) die("fdatasync");
    printf("count %d\nwall_s %.6f\n", count, wall_s() - begun);
    unlink(path);
}

static void streaming(size_t bytes) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t at_size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1)) die("listen");
    if (getsockname(listener, (struct sockaddr *)&at, &at_size)) die("getsockname");
    size_t piece = 1 << 20;
    uint8_t *data = room(piece);
    memset(data, 7, piece);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        int reader = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(reader, (struct sockaddr *)&at, sizeof at)) die("connect");
        while (read(reader, data, piece) > 0) {
        }
        _exit(0);
    }
    int writer = accept(listener, NULL, NULL);
    if (writer < 0) die("accept");
    double begun = wall_s(), cpu = cpu_s();
    for (size_t sent = 0; sent < bytes;) {
        ssize_t n = write(writer, data, piece);
        if (n < 0) die("write");
        sent += (size_t)n;
    }
    close(writer);
    int status;
    if (waitpid(child, &status, 0) < 0 || status) die("reader");
    printf("bytes %zu\nwall_s %.6f\ncpu_s %.6f\n", bytes, wall_s() - begun, cpu_s() - cpu);
}

int main(int count, char **words) {
    const char *mode = count > 1 ? words[1] : "";
    if (!strcmp(mode, "inflate") && count == 4) inflating(words[2], strtoull(words[3], NULL, 10));
    else if (!strcmp(mode, "sha1")) hashing();
    else if (!strcmp(mode, "memcpy")) copying();
    else if (!strcmp(mode, "fsync") && count == 4) syncing(words[2], atoi(words[3]));
    else if (!strcmp(mode, "loopback") && count == 3) streaming(strtoull(words[2], NULL, 10));
    else return fprintf(stderr, "limits: see the comment at the top of limits.c\n"), 2;
    return 0;
}
