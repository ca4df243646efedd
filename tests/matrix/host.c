// SPDX-License-Identifier: GPL-2.0-only
/*
 * A wall clock, disks and directories of one's own, for LD_PRELOAD. The file COLO_TEST_HOST holds
 * four 64-bit numbers, which may change at any time: seconds that the wall clock is ahead of the
 * machine's, whether writes to the images of disks fail, in which directories nothing can be
 * changed (1: COLO_TEST_DIR1, 2: COLO_TEST_DIR2), and with which errno. No other clock and no other
 * file is touched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct host {
	int64_t ahead_s;
	int64_t disk_fails;
	int64_t files_fail;
	int64_t files_errno;
};

static const volatile struct host *host;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("COLO_TEST_HOST");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *page;

	if (fd < 0)
		return;
	page = mmap(NULL, sizeof(*host), PROT_READ, MAP_SHARED, fd, 0);
	if (page != MAP_FAILED)
		host = page;
	close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	int failed;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
	failed = real(clock, now);
	if (!failed && host && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += host->ahead_s;
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void)zone;
	if (clock_gettime(CLOCK_REALTIME, &precise))
		return -1;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *where)
{
	struct timespec now;

	if (clock_gettime(CLOCK_REALTIME, &now))
		return -1;
	if (where)
		*where = now.tv_sec;
	return now.tv_sec;
}

static int fails(int fd)
{
	struct stat file;

	return host && host->disk_fails && !fstat(fd, &file) && S_ISREG(file.st_mode);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
	static ssize_t (*real)(int, const void *, size_t, off64_t);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "pwrite64");
	if (!fails(fd))
		return real(fd, data, size, at);
	errno = EIO;
	return -1;
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at)
{
	static ssize_t (*real)(int, const struct iovec *, int, off64_t);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "pwritev64");
	if (!fails(fd))
		return real(fd, parts, count, at);
	errno = EIO;
	return -1;
}

static int below(const char *path, const char *variable)
{
	const char *directory = getenv(variable);
	size_t size = directory ? strlen(directory) : 0;

	return size && !strncmp(path, directory, size) && path[size] == '/';
}

static int refused(const char *path)
{
	int64_t where = host ? host->files_fail : 0;

	if (!(where & 1 && below(path, "COLO_TEST_DIR1")) &&
	    !(where & 2 && below(path, "COLO_TEST_DIR2")))
		return 0;
	errno = host->files_errno;
	return 1;
}

int open64(const char *path, int flags, ...)
{
	static int (*real)(const char *, int, ...);
	va_list more;
	mode_t mode;

	va_start(more, flags);
	mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
	va_end(more);
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "open64");
	if (flags & (O_WRONLY | O_RDWR | O_CREAT) && refused(path))
		return -1;
	return real(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	static int (*real)(const char *, int, ...);
	va_list more;
	mode_t mode;

	va_start(more, flags);
	mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
	va_end(more);
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "open");
	if (flags & (O_WRONLY | O_RDWR | O_CREAT) && refused(path))
		return -1;
	return real(path, flags, mode);
}

int unlink(const char *path)
{
	static int (*real)(const char *);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "unlink");
	return refused(path) ? -1 : real(path);
}

int rename(const char *from, const char *to)
{
	static int (*real)(const char *, const char *);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "rename");
	return refused(from) || refused(to) ? -1 : real(from, to);
}

int truncate64(const char *path, off64_t size)
{
	static int (*real)(const char *, off64_t);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "truncate64");
	return refused(path) ? -1 : real(path, size);
}
