/* SPDX-License-Identifier: GPL-2.0-only */
/* What the guests of the benchmarks serve: the same bytes every time, whoever asks. */
#include <netinet/tcp.h>
#include <stdint.h>
#include <sys/socket.h>

enum kind { ANSWER, ANSWER_ONCE, DOWNLOAD, UPLOAD };

struct service {
	uint16_t port;
	enum kind kind;
	uint32_t bytes;		/* of a request, and of its answer */
};

static const struct service services[] = {
	{ 7001, ANSWER, 1 },
	{ 7002, ANSWER, 1024 },
	{ 7003, ANSWER, 65536 },
	{ 7004, ANSWER, 100 },
	{ 7005, ANSWER_ONCE, 100 },	/* and the server closes */
	{ 7010, DOWNLOAD, 0 },		/* a count in 8 bytes, little endian; so many bytes back */
	{ 7011, UPLOAD, 0 },		/* a count, so many bytes; one byte back */
};

#define SERVICES (sizeof(services) / sizeof(services[0]))
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
