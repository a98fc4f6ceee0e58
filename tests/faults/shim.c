/* Preloaded before the C library: counts the calls that touch files below $PLR_FAULT_HOME, and lets one of them fail.
 *
 * Every open, write, truncate, fsync, rename, link, chmod, unlink and mkdir of a path below the folder is a point, numbered
 * from 1. `fault_arm` starts the count: `log` is a file that lists the points, `at` the point where `kind` happens:
 *
 *   1 die before the call      2 die in its middle (half of the bytes of a write)      3 die after it
 *   4 this call fails          5 this call and every later one that needs room fails   6 every later one that changes anything
 *
 * Rust's and C++'s libraries go through the same functions as Python.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, BEFORE, MIDDLE, AFTER, ONCE, NO_ROOM, READ_ONLY };
enum { LOOKS = 0, CHANGES = 1, GROWS = 3 };

static char home[PATH_MAX];
static size_t home_length;
static int armed, kind, error_number, log_file = -1;
static long at, count;
static char below[65536]; /* by descriptor: opened below the folder */

void fault_arm(const char *folder, const char *log, long point, int what, int number) {
    snprintf(home, sizeof home, "%s", folder);
    home_length = strlen(home);
    log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    at = point, kind = what, error_number = number, count = 0, armed = 1;
}

static int is_below(const char *path) {
    return strncmp(path, home, home_length) == 0 && (path[home_length] == '/' || path[home_length] == 0);
}

/* Write the absolute path of `path` at `folder` (a descriptor or AT_FDCWD); tell whether it is below the folder. */
static int resolved(int folder, const char *path, char *whole) {
    if (path == NULL) return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
        return is_below(whole);
    }
    char link[64], base[PATH_MAX];
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return 0;
    base[length] = 0;
    if ((size_t)snprintf(whole, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    return is_below(whole);
}

static int of_descriptor(int file, char *whole) {
    char link[64];
    if (file < 0 || file >= (int)sizeof below || !below[file]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, whole, PATH_MAX - 1);
    whole[length < 0 ? 0 : length] = 0;
    return 1;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count one call; tell whether it has to fail. */
static int fails(const char *call, const char *path, int effect) {
    char line[PATH_MAX + 64];
    count++;
    int length = snprintf(line, sizeof line, "%ld %s %d %s\n", count, call, effect, path);
    if (log_file >= 0) syscall(SYS_write, log_file, line, (size_t)length);
    if (count == at && kind == BEFORE) die();
    if (count == at && kind == ONCE) return 1;
    if (count >= at && at && kind == NO_ROOM && effect == GROWS) return 1;
    if (count >= at && at && kind == READ_ONLY && effect != LOOKS) return 1;
    return 0;
}

static void after(void) {
    if (count == at && (kind == AFTER || kind == MIDDLE)) die();
}

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)
#define GUARDED(result_type, call, is_inside, effect, real)        \
    char whole[PATH_MAX];                                          \
    int inside = armed && (is_inside);                             \
    if (inside && fails(call, whole, effect)) {                    \
        errno = error_number;                                      \
        return -1;                                                 \
    }                                                              \
    result_type result = real;                                     \
    if (inside) {                                                  \
        int kept = errno;                                          \
        after();                                                   \
        errno = kept;                                              \
    }

static int open_effect(int flags) {
    return (flags & (O_CREAT | O_TMPFILE)) ? GROWS : (flags & (O_WRONLY | O_RDWR | O_TRUNC)) ? CHANGES : LOOKS;
}

#define OPENED                                                     \
    if (armed && result >= 0 && result < (int)sizeof below) below[result] = (char)inside; \
    return result;

#define MODE                                                       \
    mode_t mode = 0;                                               \
    if (flags & (O_CREAT | O_TMPFILE)) {                           \
        va_list more;                                              \
        va_start(more, flags);                                     \
        mode = va_arg(more, mode_t);                               \
        va_end(more);                                              \
    }

int open(const char *path, int flags, ...) {
    MODE
    GUARDED(int, "open", resolved(AT_FDCWD, path, whole), open_effect(flags), REAL(open, path, flags, mode))
    OPENED
}
int open64(const char *path, int flags, ...) {
    MODE
    GUARDED(int, "open", resolved(AT_FDCWD, path, whole), open_effect(flags), REAL(open64, path, flags, mode))
    OPENED
}
int openat(int folder, const char *path, int flags, ...) {
    MODE
    GUARDED(int, "open", resolved(folder, path, whole), open_effect(flags), REAL(openat, folder, path, flags, mode))
    OPENED
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE
    GUARDED(int, "open", resolved(folder, path, whole), open_effect(flags), REAL(openat64, folder, path, flags, mode))
    OPENED
}

/* stdio opens without a call that can be caught: it goes through ours. */
static FILE *stream(const char *path, const char *mode) {
    int flags = strchr(mode, '+') ? O_RDWR : mode[0] == 'r' ? O_RDONLY : O_WRONLY;
    if (mode[0] == 'w') flags |= O_CREAT | O_TRUNC;
    if (mode[0] == 'a') flags |= O_CREAT | O_APPEND;
    int file = open(path, flags | O_CLOEXEC, 0666);
    return file < 0 ? NULL : fdopen(file, mode);
}
FILE *fopen(const char *path, const char *mode) {
    char whole[PATH_MAX];
    return armed && resolved(AT_FDCWD, path, whole) ? stream(path, mode) : REAL(fopen, path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    char whole[PATH_MAX];
    return armed && resolved(AT_FDCWD, path, whole) ? stream(path, mode) : REAL(fopen64, path, mode);
}

static size_t part(size_t length) { return kind == MIDDLE && count == at ? length / 2 : length; }

ssize_t write(int file, const void *bytes, size_t length) {
    GUARDED(ssize_t, "write", of_descriptor(file, whole), GROWS, REAL(write, file, bytes, inside ? part(length) : length))
    return result;
}
ssize_t pwrite(int file, const void *bytes, size_t length, off_t offset) {
    GUARDED(ssize_t, "write", of_descriptor(file, whole), GROWS,
            REAL(pwrite, file, bytes, inside ? part(length) : length, offset))
    return result;
}
ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset) {
    GUARDED(ssize_t, "write", of_descriptor(file, whole), GROWS,
            REAL(pwrite64, file, bytes, inside ? part(length) : length, offset))
    return result;
}
ssize_t writev(int file, const struct iovec *parts, int number) {
    GUARDED(ssize_t, "write", of_descriptor(file, whole), GROWS, REAL(writev, file, parts, number))
    return result;
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t length) {
    GUARDED(ssize_t, "write", of_descriptor(to, whole), GROWS, syscall(SYS_sendfile, to, from, offset, inside ? part(length) : length))
    return result;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t length) { return sendfile64(to, from, (off64_t *)offset, length); }
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned flags) {
    GUARDED(ssize_t, "write", of_descriptor(to, whole), GROWS,
            REAL(copy_file_range, from, from_at, to, to_at, inside ? part(length) : length, flags))
    return result;
}
int ftruncate(int file, off_t length) {
    GUARDED(int, "truncate", of_descriptor(file, whole), CHANGES, REAL(ftruncate, file, length))
    return result;
}
int ftruncate64(int file, off64_t length) {
    GUARDED(int, "truncate", of_descriptor(file, whole), CHANGES, REAL(ftruncate64, file, length))
    return result;
}
int fsync(int file) {
    GUARDED(int, "fsync", of_descriptor(file, whole), CHANGES, REAL(fsync, file))
    return result;
}
int fdatasync(int file) {
    GUARDED(int, "fsync", of_descriptor(file, whole), CHANGES, REAL(fdatasync, file))
    return result;
}
int rename(const char *from, const char *to) {
    GUARDED(int, "rename", resolved(AT_FDCWD, to, whole), CHANGES, REAL(rename, from, to))
    return result;
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    GUARDED(int, "rename", resolved(to_folder, to, whole), CHANGES, REAL(renameat, from_folder, from, to_folder, to))
    return result;
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    GUARDED(int, "rename", resolved(to_folder, to, whole), CHANGES,
            REAL(renameat2, from_folder, from, to_folder, to, flags))
    return result;
}
int link(const char *from, const char *to) {
    GUARDED(int, "link", resolved(AT_FDCWD, to, whole), GROWS, REAL(link, from, to))
    return result;
}
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    GUARDED(int, "link", resolved(to_folder, to, whole), GROWS, REAL(linkat, from_folder, from, to_folder, to, flags))
    return result;
}
int symlink(const char *from, const char *to) {
    GUARDED(int, "link", resolved(AT_FDCWD, to, whole), GROWS, REAL(symlink, from, to))
    return result;
}
int chmod(const char *path, mode_t mode) {
    GUARDED(int, "chmod", resolved(AT_FDCWD, path, whole), CHANGES, REAL(chmod, path, mode))
    return result;
}
int fchmod(int file, mode_t mode) {
    GUARDED(int, "chmod", of_descriptor(file, whole), CHANGES, REAL(fchmod, file, mode))
    return result;
}
int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    GUARDED(int, "chmod", resolved(folder, path, whole), CHANGES, REAL(fchmodat, folder, path, mode, flags))
    return result;
}
int unlink(const char *path) {
    GUARDED(int, "unlink", resolved(AT_FDCWD, path, whole), CHANGES, REAL(unlink, path))
    return result;
}
int unlinkat(int folder, const char *path, int flags) {
    GUARDED(int, "unlink", resolved(folder, path, whole), CHANGES, REAL(unlinkat, folder, path, flags))
    return result;
}
int rmdir(const char *path) {
    GUARDED(int, "unlink", resolved(AT_FDCWD, path, whole), CHANGES, REAL(rmdir, path))
    return result;
}
int mkdir(const char *path, mode_t mode) {
    GUARDED(int, "mkdir", resolved(AT_FDCWD, path, whole), GROWS, REAL(mkdir, path, mode))
    return result;
}
int mkdirat(int folder, const char *path, mode_t mode) {
    GUARDED(int, "mkdir", resolved(folder, path, whole), GROWS, REAL(mkdirat, folder, path, mode))
    return result;
}
int close(int file) {
    if (file >= 0 && file < (int)sizeof below) below[file] = 0;
    return REAL(close, file);
}
