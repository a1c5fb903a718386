/* The programs that git's tests take for git's servers: each hands its arguments, environment, folder and standard
 * files to the suite's server (server.py) over a unix socket, and ends with the code that comes back.
 *
 * One binary, called by many names. "git" and "test-tool" stand before the real ones on the tests' path: they pass
 * through to them, except for the commands that are servers. SOCKET, REAL_GIT and REAL_TEST_TOOL are given by run.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

extern char **environ;

static void die(const char *what)
{
    fprintf(stderr, "fatal: suite shim: %s: %s\n", what, strerror(errno));
    exit(128);
}

static void put(char **out, size_t *used, size_t *room, const char *text)
{
    size_t n = strlen(text) + 1;

    if (*used + n > *room) {
        *room = 2 * (*used + n);
        *out = realloc(*out, *room);
        if (!*out)
            die("realloc");
    }
    memcpy(*out + *used, text, n);
    *used += n;
}

static int serve(const char *name, char **arguments)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
    int standard[3] = {0, 1, 2};
    char control[CMSG_SPACE(sizeof standard)] = {0};
    char number[32], cwd[8192], *out = NULL;
    size_t used = 0, room = 0, sent = 0;
    unsigned char code = 128;
    uint32_t length;
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof address) < 0)
        die("the suite's server does not answer");
    if (!getcwd(cwd, sizeof cwd))
        die("getcwd");
    snprintf(number, sizeof number, "%d", (int)getpid());
    put(&out, &used, &room, number);
    put(&out, &used, &room, name);
    put(&out, &used, &room, cwd);
    for (char **each = arguments; *each; each++) {
        put(&out, &used, &room, "a");
        put(&out, &used, &room, *each);
    }
    for (char **each = environ; *each; each++) {
        put(&out, &used, &room, "e");
        put(&out, &used, &room, *each);
    }
    length = (uint32_t)used;

    struct iovec head = {.iov_base = &length, .iov_len = sizeof length};
    struct msghdr message = {
        .msg_iov = &head, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof standard);
    memcpy(CMSG_DATA(rights), standard, sizeof standard);
    if (sendmsg(server, &message, 0) != sizeof length)
        die("sendmsg");
    while (sent < used) {
        ssize_t n = write(server, out + sent, used - sent);
        if (n < 0)
            die("write");
        sent += (size_t)n;
    }
    /* The server alone holds them now: its end of a pipe is the only one. */
    close(0);
    close(1);
    while (read(server, &code, 1) < 0)
        if (errno != EINTR)
            die("read");
    return code;
}

static const char *const servers[] = {"upload-pack", "receive-pack", "upload-archive", "http-backend", "daemon", NULL};

static int is_server(const char *command)
{
    for (const char *const *each = servers; *each; each++)
        if (!strcmp(command, *each))
            return 1;
    return 0;
}

/* Return whether git's option takes the word behind it. */
static int takes_a_word(const char *option)
{
    static const char *const those[] = {"-C", "-c", "--git-dir", "--work-tree", "--namespace", "--exec-path", NULL};

    for (const char *const *each = those; *each; each++)
        if (!strcmp(option, *each))
            return 1;
    return 0;
}

static int git(char **argv)
{
    char name[64];
    int at = 1;

    while (argv[at] && argv[at][0] == '-')
        at += takes_a_word(argv[at]) && argv[at + 1] ? 2 : 1;
    if (!argv[at] || !is_server(argv[at])) {
        execv(REAL_GIT, argv);
        die(REAL_GIT);
    }
    for (int each = 1; each < at; each++)
        if (!strcmp(argv[each], "-C") && chdir(argv[++each]) < 0)
            die(argv[each]);
    snprintf(name, sizeof name, "git-%s", argv[at]);
    return serve(name, argv + at + 1);
}

static int test_tool(char **argv)
{
    int at = 1;

    while (argv[at] && !strcmp(argv[at], "-C") && argv[at + 1])
        at += 2;
    if (!argv[at] || strcmp(argv[at], "serve-v2")) {
        execv(REAL_TEST_TOOL, argv);
        die(REAL_TEST_TOOL);
    }
    for (int each = 1; each < at; each += 2)
        if (chdir(argv[each + 1]) < 0)
            die(argv[each + 1]);
    return serve("serve-v2", argv + at + 1);
}

int main(int argc, char **argv)
{
    const char *name = argc ? strrchr(argv[0], '/') : NULL;

    name = name ? name + 1 : argc ? argv[0] : "git";
    if (!strcmp(name, "git"))
        return git(argv);
    if (!strcmp(name, "test-tool"))
        return test_tool(argv);
    return serve(name, argv + 1);
}
