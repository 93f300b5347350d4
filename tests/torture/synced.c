/* Loaded into a daemon (LD_PRELOAD): notes how long each file was when it was last made durable, so that the rig can take
 * away what a power cut would. Lines of "<length> <path>", appended to the file that TORTURE_SYNCED names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void note(long long len, int fd)
{
    char link[64], path[PATH_MAX], line[PATH_MAX + 32];
    const char *log = getenv("TORTURE_SYNCED");
    if (log == NULL)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t path_len = readlink(link, path, sizeof path - 1);
    if (path_len < 0)
        return;
    path[path_len] = 0;
    int line_len = snprintf(line, sizeof line, "%lld %s\n", len, path);
    int out = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (out < 0)
        return;
    /* One write for a line: other threads' lines stay whole. */
    if (write(out, line, line_len) != line_len)
        abort();
    close(out);
}

static int synced(const char *name, int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat status;
    /* Before: what is appended meanwhile may not be in it. */
    int is_file = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    int result = real(fd);
    if (result == 0 && is_file)
        note(status.st_size, fd);
    return result;
}

int fsync(int fd)
{
    return synced("fsync", fd);
}

int fdatasync(int fd)
{
    return synced("fdatasync", fd);
}
