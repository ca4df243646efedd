// SPDX-License-Identifier: GPL-2.0-only
/*
 * Appends numbered records to files on a mounted file system, each flushed to the disk before its
 * number is told: writer DIRECTORY
 *
 *   7004/tcp  "n\n" for every record that is on the disk, in order. A new connection is first told
 *             the last one so far. Without one nothing is written.
 *
 * A record is 512 bytes: magic, number, FNV-1a over all the rest, 488 pseudo-random bytes made
 * from the number. A file has 64 of them and is called by their place among all files.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PORT		7004
#define BYTES		512
#define PER_FILE	64
#define MAGIC		0x44524f4345524f4cULL	/* "LORECORD" on the disk */
#define PAUSE_NS	5000000

struct record {
	uint64_t magic;
	uint64_t number;
	uint64_t sum;
	uint64_t text[(BYTES - 24) / 8];
};

static uint64_t fnv(uint64_t sum, const void *data, size_t size)
{
	const unsigned char *byte = data;

	while (size--)
		sum = (sum ^ *byte++) * 1099511628211ULL;
	return sum;
}

static void fill(struct record *record, uint64_t number)
{
	uint64_t state = number;
	size_t i;

	record->magic = MAGIC;
	record->number = number;
	for (i = 0; i < sizeof(record->text) / 8; i++) {
		state = state * 6364136223846793005ULL + 1442695040888963407ULL;
		record->text[i] = state;
	}
	record->sum = fnv(1469598103934665603ULL, &record->number, sizeof(record->number));
	record->sum = fnv(record->sum, record->text, sizeof(record->text));
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void path_of(uint64_t number, char *path, size_t size)
{
	snprintf(path, size, "%08llu", (unsigned long long)((number - 1) / PER_FILE));
}

/* What an earlier run of the guest has written. */
static uint64_t count_records(void)
{
	struct record want, found;
	uint64_t number = 0;
	char path[32];
	int fd, good;

	do {
		fill(&want, number + 1);
		path_of(number + 1, path, sizeof(path));
		fd = open(path, O_RDONLY | O_CLOEXEC);
		good = fd >= 0 && pread(fd, &found, BYTES, number % PER_FILE * BYTES) == BYTES &&
		       !memcmp(&want, &found, BYTES);
		if (fd >= 0)
			close(fd);
		number += good;
	} while (good);
	return number;
}

/* On the disk when it returns, and so is the file's name. */
static void append(int directory, uint64_t number)
{
	struct record record;
	char path[32];
	int fd;

	fill(&record, number);
	path_of(number, path, sizeof(path));
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		fail(path);
	if (pwrite(fd, &record, BYTES, (number - 1) % PER_FILE * BYTES) != BYTES || fsync(fd))
		fail(path);
	close(fd);
	if ((number - 1) % PER_FILE == 0 && fsync(directory))
		fail("directory");
}

static int tell(int client, uint64_t number)
{
	char line[32];
	int size = snprintf(line, sizeof(line), "%llu\n", (unsigned long long)number);

	return send(client, line, size, 0) == size;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	struct timespec pause = { .tv_nsec = PAUSE_NS };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), directory, client, one = 1;
	uint64_t number;

	signal(SIGPIPE, SIG_IGN);
	if (argc != 2 || chdir(argv[1]))
		fail("writer DIRECTORY");
	directory = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	number = count_records();
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (directory < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, 1))
		fail("listen");
	for (;;) {
		client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (client < 0)
			continue;
		setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while (tell(client, number)) {
			append(directory, ++number);
			nanosleep(&pause, NULL);
		}
		close(client);
	}
}
