/* SPDX-License-Identifier: GPL-2.0-only */
/* What the guests of the benchmarks serve: the same bytes every time, whoever asks. */
#include <netinet/tcp.h>
#include <stdint.h>
#include <sys/socket.h>

/*
 * A client port that has closed is not free for a minute: with one port of the server a client that has
 * opened 27,500 connections within that looks at all of its ports for each new one.
 */
#define MANY_PORT 7100
#define MANY_PORTS 8

enum kind { ANSWER, ANSWER_ONCE, REFUSE, DOWNLOAD, UPLOAD };

struct service {
	uint16_t port;
	uint16_t ports;		/* so many from there on */
	enum kind kind;
	uint32_t bytes;		/* of a request, and of its answer */
};

static const struct service services[] = {
	{ 7001, 1, ANSWER, 1 },
	{ 7002, 1, ANSWER, 1024 },
	{ 7003, 1, ANSWER, 65536 },
	{ 7005, 1, ANSWER_ONCE, 100 },	/* and the server closes */
	{ 7006, 1, REFUSE, 100 },	/* closes on a request it has not read: a reset */
	{ 7010, 1, DOWNLOAD, 0 },	/* a count in 8 bytes, little endian; so many bytes back */
	{ 7011, 1, UPLOAD, 0 },		/* a count, so many bytes; one byte back */
	{ MANY_PORT, MANY_PORTS, ANSWER, 100 },
};

#define SERVICES (sizeof(services) / sizeof(services[0]))
#define LISTENERS (SERVICES - 1 + MANY_PORTS)
#define UDP_PORT 7020			/* sends back what it is sent */
#define PATTERN (1u << 20)		/* content repeats after so many bytes */

/*
 * A namespace begins with the machine's choice, which differs from machine to machine, and may not
 * choose by sysctl. Returns -1 with errno.
 */
static inline int choose_cubic(int fd)
{
	return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
}

static inline void fill(uint8_t *pattern)
{
	uint32_t x = 1;

	for (uint32_t i = 0; i < PATTERN; i++) {
		x = x * 1664525u + 1013904223u;
		pattern[i] = x >> 24;
	}
}
