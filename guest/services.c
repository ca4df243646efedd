// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the default guest serves, in one process and one poll loop, so that the order of
 * events inside the guest is simple to follow: services [--no-http] [DISK...]
 *
 *   80/tcp    GET /blob?size=N   N bytes of a fixed pattern (byte i = (k*k*7 + k) % 256, k = i % 251)
 *   7/tcp     echo
 *   7/udp     echo
 *   7001/tcp  ledger: "ADD n text"  -> "OK count sum"   after the entry is on the disk
 *                     "GET n"       -> "ENTRY n text"
 *                     "SUM"         -> "SUM count sum"
 *   7002/tcp  dice:   "ROLL"        -> "index value"    random, remembered
 *                     "GET index"   -> "index value"
 *   7003/tcp  life:   "REBOOT", "POWEROFF", "PANIC n" (reboot n seconds after it; 0: never); no answer
 *
 * Entry n of the ledger is the 512-byte block n of a disk (numbers start at 1): magic, n,
 * length, chained sum, text. Several disks take turns. The sum is FNV-1a over (sum before, n,
 * text). An ADD of a number that is there already answers as the first time if the text is the
 * same.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define CONNECTIONS	512
#define BLOCK		512
#define TEXT_MAX	(BLOCK - 32)
#define ROLLS		65536
#define PATTERN		251
#define DISKS		8
#define LEDGER_MAGIC	0x4745444c4f4c4f43ULL	/* "COLOLDEG" on the disk */

enum service { HTTP, ECHO_TCP, LEDGER, DICE, LIFE, SERVICES };
static const int ports[SERVICES] = { 80, 7, 7001, 7002, 7003 };

struct block {
	uint64_t magic;
	uint64_t number;
	uint64_t sum;
	uint64_t length;
	char text[TEXT_MAX];
};

struct connection {
	int fd;
	enum service service;
	char in[4096];
	size_t in_used;
	char out[8192];
	size_t out_used, out_sent;
	uint64_t blob_at, blob_left;	/* HTTP body still to be sent */
	int close_after;
};

static struct connection connections[CONNECTIONS];
static char pattern[PATTERN * 64];
static int disks[DISKS];
static unsigned int disk_count;
static uint64_t ledger_count, ledger_sum = 1469598103934665603ULL;
static uint64_t rolls[ROLLS];
static unsigned int roll_count;

static uint64_t fnv(uint64_t sum, const void *data, size_t size)
{
	const unsigned char *byte = data;

	while (size--)
		sum = (sum ^ *byte++) * 1099511628211ULL;
	return sum;
}

static uint64_t chain(uint64_t sum, uint64_t number, const char *text, size_t length)
{
	sum = fnv(sum, &number, sizeof(number));
	return fnv(sum, text, length);
}

static int disk_of(uint64_t number)
{
	return number && disk_count ? disks[(number - 1) % disk_count] : -1;
}

static int ledger_read(uint64_t number, struct block *block)
{
	if (pread(disk_of(number), block, BLOCK, number * BLOCK) != BLOCK)
		return -1;
	if (block->magic != LEDGER_MAGIC || block->number != number || block->length > TEXT_MAX)
		return -1;
	return 0;
}

/* Find what is on the disks: the ledger outlives the guest. */
static void ledger_open(char **paths, int count)
{
	struct block block;
	int fd;

	while (count-- > 0 && disk_count < DISKS) {
		fd = open(*paths++, O_RDWR | O_DSYNC | O_CLOEXEC);
		if (fd >= 0)
			disks[disk_count++] = fd;
	}
	while (!ledger_read(ledger_count + 1, &block)) {
		ledger_count++;
		ledger_sum = block.sum;
	}
}

static int ledger_add(uint64_t number, const char *text, size_t length, char *reply, size_t size)
{
	struct block block;

	if (number <= ledger_count && number > 0) {
		if (ledger_read(number, &block) || block.length != length ||
		    memcmp(block.text, text, length))
			return snprintf(reply, size, "ERR %llu is another entry\n",
					(unsigned long long)number);
		return snprintf(reply, size, "OK %llu %016llx\n", (unsigned long long)number,
				(unsigned long long)block.sum);
	}
	if (number != ledger_count + 1 || length > TEXT_MAX)
		return snprintf(reply, size, "ERR next is %llu\n",
				(unsigned long long)ledger_count + 1);
	memset(&block, 0, sizeof(block));
	block.magic = LEDGER_MAGIC;
	block.number = number;
	block.length = length;
	block.sum = chain(ledger_sum, number, text, length);
	memcpy(block.text, text, length);
	if (pwrite(disk_of(number), &block, BLOCK, number * BLOCK) != BLOCK)
		return snprintf(reply, size, "ERR disk: %s\n", strerror(errno));
	ledger_count = number;
	ledger_sum = block.sum;
	return snprintf(reply, size, "OK %llu %016llx\n", (unsigned long long)number,
			(unsigned long long)ledger_sum);
}

static int ledger_line(char *line, char *reply, size_t size)
{
	struct block block;
	char *text;
	uint64_t number;

	if (!strcmp(line, "SUM"))
		return snprintf(reply, size, "SUM %llu %016llx\n",
				(unsigned long long)ledger_count, (unsigned long long)ledger_sum);
	number = strlen(line) > 4 ? strtoull(line + 4, &text, 10) : 0;
	if (!strncmp(line, "ADD ", 4) && *text == ' ')
		return ledger_add(number, text + 1, strlen(text + 1), reply, size);
	if (!strncmp(line, "GET ", 4) && !ledger_read(number, &block))
		return snprintf(reply, size, "ENTRY %llu %.*s\n", (unsigned long long)number,
				(int)block.length, block.text);
	return snprintf(reply, size, "ERR\n");
}

/*
 * Two VMs with the same memory draw the same random numbers for a while; the time stamp
 * counter and the clock are never the same in both.
 */
static uint64_t roll(void)
{
	struct timespec now;
	uint64_t value = 0, tsc = __rdtsc();

	if (getrandom(&value, sizeof(value), 0) != sizeof(value))
		value = 0;
	clock_gettime(CLOCK_MONOTONIC, &now);
	value = fnv(value ^ 1469598103934665603ULL, &tsc, sizeof(tsc));
	return fnv(value, &now, sizeof(now));
}

static int dice_line(char *line, char *reply, size_t size)
{
	unsigned int index = roll_count;

	if (!strcmp(line, "ROLL") && roll_count < ROLLS)
		rolls[roll_count++] = roll();
	else if (sscanf(line, "GET %u", &index) != 1 || index >= roll_count)
		return snprintf(reply, size, "ERR\n");
	return snprintf(reply, size, "%u %016llx\n", index, (unsigned long long)rolls[index]);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		perror(path);
	close(fd);
}

/* The ledger is on the disk before each answer: there is nothing to sync. */
static void life_line(char *line)
{
	if (!strcmp(line, "REBOOT"))
		reboot(RB_AUTOBOOT);
	if (!strcmp(line, "POWEROFF"))
		reboot(RB_POWER_OFF);
	if (!strncmp(line, "PANIC ", 6)) {
		put("/proc/sys/kernel/panic", line + 6);
		put("/proc/sysrq-trigger", "c");
	}
}

static void http_line(struct connection *c, char *line)
{
	unsigned long long size;

	if (sscanf(line, "GET /blob?size=%llu", &size) == 1) {
		c->blob_left = size;
		c->blob_at = 0;
		c->close_after = 1;
	} else if (!*line || *line == '\r') {	/* end of the request's head */
		c->out_used += snprintf(c->out + c->out_used, sizeof(c->out) - c->out_used,
					"HTTP/1.0 200 OK\r\nContent-Length: %llu\r\n\r\n",
					(unsigned long long)c->blob_left);
		c->close_after = 1;
	}
}

static void one_line(struct connection *c, char *line)
{
	size_t room = sizeof(c->out) - c->out_used;

	if (c->service == LEDGER)
		c->out_used += ledger_line(line, c->out + c->out_used, room);
	else if (c->service == DICE)
		c->out_used += dice_line(line, c->out + c->out_used, room);
	else if (c->service == LIFE)
		life_line(line);
	else
		http_line(c, line);
}

static void lines(struct connection *c)
{
	char *end;

	while ((end = memchr(c->in, '\n', c->in_used)) && sizeof(c->out) - c->out_used > 1024) {
		size_t length = end - c->in + 1;

		*end = 0;
		one_line(c, c->in);
		memmove(c->in, c->in + length, c->in_used - length);
		c->in_used -= length;
	}
}

static void echo(struct connection *c)
{
	size_t room = sizeof(c->out) - c->out_used;
	size_t size = c->in_used < room ? c->in_used : room;

	memcpy(c->out + c->out_used, c->in, size);
	memmove(c->in, c->in + size, c->in_used - size);
	c->out_used += size;
	c->in_used -= size;
}

static void drop(struct connection *c)
{
	close(c->fd);
	c->fd = -1;
}

static void readable(struct connection *c)
{
	ssize_t got = read(c->fd, c->in + c->in_used, sizeof(c->in) - c->in_used);

	if (got <= 0) {
		if (got == 0 || errno != EAGAIN)
			drop(c);
		return;
	}
	c->in_used += got;
}

static void flush(struct connection *c)
{
	ssize_t sent;

	if (c->out_sent == c->out_used && c->blob_left) {
		size_t at = c->blob_at % PATTERN;
		size_t size = sizeof(pattern) - PATTERN;

		if (size > c->blob_left)
			size = c->blob_left;
		sent = write(c->fd, pattern + at, size);
		if (sent > 0) {
			c->blob_at += sent;
			c->blob_left -= sent;
		}
	} else {
		sent = write(c->fd, c->out + c->out_sent, c->out_used - c->out_sent);
		if (sent > 0)
			c->out_sent += sent;
		if (c->out_sent == c->out_used)
			c->out_sent = c->out_used = 0;
	}
	if ((sent < 0 && errno != EAGAIN) || (c->close_after && !c->blob_left && !c->out_used))
		drop(c);
}

static void serve(struct connection *c, short events)
{
	if (events & (POLLIN | POLLERR | POLLHUP))
		readable(c);
	if (c->fd < 0)
		return;
	if (c->service == ECHO_TCP)
		echo(c);
	else
		lines(c);
	if (c->out_used || c->blob_left)
		flush(c);
}

static void accept_one(int listener, enum service service)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	int i, one = 1;

	if (fd < 0)
		return;
	for (i = 0; i < CONNECTIONS && connections[i].fd >= 0; i++)
		;
	if (i == CONNECTIONS) {
		close(fd);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	memset(&connections[i], 0, sizeof(connections[i]));
	connections[i].fd = fd;
	connections[i].service = service;
}

static int listen_on(int type, int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
	    (type == SOCK_STREAM && listen(fd, 128))) {
		perror("listen");
		exit(1);
	}
	return fd;
}

static void echo_datagram(int fd)
{
	struct sockaddr_in from;
	socklen_t size = sizeof(from);
	char data[2048];
	ssize_t got;

	while ((got = recvfrom(fd, data, sizeof(data), 0, (struct sockaddr *)&from, &size)) >= 0)
		sendto(fd, data, got, 0, (struct sockaddr *)&from, size);
}

int main(int argc, char **argv)
{
	struct pollfd polls[SERVICES + 1 + CONNECTIONS];
	int listeners[SERVICES], udp, i;
	int no_http = argc > 1 && !strcmp(argv[1], "--no-http");	/* another server has port 80 */

	signal(SIGPIPE, SIG_IGN);
	ledger_open(argv + 1 + no_http, argc - 1 - no_http);
	for (i = 0; i < (int)sizeof(pattern); i++) {
		unsigned int k = i % PATTERN;

		pattern[i] = (k * k * 7 + k) % 256;
	}
	for (i = 0; i < CONNECTIONS; i++)
		connections[i].fd = -1;
	for (i = 0; i < SERVICES; i++)
		listeners[i] = no_http && i == HTTP ? -1 : listen_on(SOCK_STREAM, ports[i]);
	udp = listen_on(SOCK_DGRAM, 7);
	puts("colo-guest: serving");
	fflush(stdout);
	for (;;) {
		for (i = 0; i < SERVICES; i++)
			polls[i] = (struct pollfd){ .fd = listeners[i], .events = POLLIN };
		polls[SERVICES] = (struct pollfd){ .fd = udp, .events = POLLIN };
		for (i = 0; i < CONNECTIONS; i++) {
			struct connection *c = &connections[i];
			short events = c->in_used < sizeof(c->in) ? POLLIN : 0;

			if (c->out_used || c->blob_left)
				events |= POLLOUT;
			polls[SERVICES + 1 + i] = (struct pollfd){ .fd = c->fd, .events = events };
		}
		if (poll(polls, SERVICES + 1 + CONNECTIONS, -1) < 0)
			continue;
		for (i = 0; i < SERVICES; i++)
			if (polls[i].revents)
				accept_one(listeners[i], i);
		if (polls[SERVICES].revents)
			echo_datagram(udp);
		for (i = 0; i < CONNECTIONS; i++)
			if (connections[i].fd >= 0 && polls[SERVICES + 1 + i].revents)
				serve(&connections[i], polls[SERVICES + 1 + i].revents);
	}
}
