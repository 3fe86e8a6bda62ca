/* What a disk may keep at the least, when the power goes: for each file the bytes it had when it was last synced, for each
 * directory the names it had when it was last synced. Loaded into a program with LD_PRELOAD, this writes both down under
 * TUNESMITH_SHADOW at every fsync and fdatasync:
 *
 *   files/<inode>   the bytes
 *   names/<inode>   lines of "<f|d> <inode> <name>"
 *
 * A name whose inode was never synced is an empty file, or an empty directory. Files under another folder than
 * TUNESMITH_SHADOW_OF are left alone. Inodes are not reused while a test runs as long as nothing is taken away, and what
 * is made again is synced again. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *shadow(void) { return getenv("TUNESMITH_SHADOW"); }

static int real_fsync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}

/* Writes under a name of its own first, so that a kill in the middle leaves the old copy. */
static void finish(FILE *out, const char *temporary, const char *kind, unsigned long inode) {
    char path[4096];
    fclose(out);
    snprintf(path, sizeof path, "%s/%s/%lu", shadow(), kind, inode);
    rename(temporary, path);
}

static FILE *begin(char *temporary, size_t size) {
    snprintf(temporary, size, "%s/tmp-%d-%lx", shadow(), (int)getpid(), (unsigned long)pthread_self());
    return fopen(temporary, "w");
}

static void keep_file(const char *path, unsigned long inode) {
    char temporary[4096], buffer[65536];
    size_t n;
    FILE *in = fopen(path, "r");
    if (!in) return;
    FILE *out = begin(temporary, sizeof temporary);
    if (out) {
        while ((n = fread(buffer, 1, sizeof buffer, in)) > 0) fwrite(buffer, 1, n, out);
        finish(out, temporary, "files", inode);
    }
    fclose(in);
}

static void keep_names(const char *path, unsigned long inode) {
    char temporary[4096], child[8192];
    struct dirent *entry;
    struct stat about;
    DIR *dir = opendir(path);
    if (!dir) return;
    FILE *out = begin(temporary, sizeof temporary);
    if (out) {
        while ((entry = readdir(dir))) {
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
            snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
            if (lstat(child, &about)) continue;
            fprintf(out, "%c %lu %s\n", S_ISDIR(about.st_mode) ? 'd' : 'f', (unsigned long)about.st_ino,
                    entry->d_name);
        }
        finish(out, temporary, "names", inode);
    }
    closedir(dir);
}

static void keep(int fd) {
    char link[64], path[4096], copy[64];
    struct stat about;
    const char *of = getenv("TUNESMITH_SHADOW_OF");
    if (!shadow() || !of || fstat(fd, &about)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return;
    path[n] = 0;
    if (strncmp(path, of, strlen(of))) return;
    /* Through the descriptor: the name may belong to another file by now. */
    snprintf(copy, sizeof copy, "%s", link);
    if (S_ISDIR(about.st_mode)) keep_names(path, about.st_ino);
    else if (S_ISREG(about.st_mode)) keep_file(copy, about.st_ino);
}

int fsync(int fd) {
    int rc = real_fsync(fd);
    if (!rc) keep(fd);
    return rc;
}

int fdatasync(int fd) {
    int rc = real_fsync(fd);
    if (!rc) keep(fd);
    return rc;
}
