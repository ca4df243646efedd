// SPDX-License-Identifier: GPL-2.0-only
/*
 * serve CPU: the server of a guest, on one CPU. Content depends on nothing but the place in the
 * stream, so that two guests say the same. Says "ready" and runs until its parent is gone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "services.h"

#define BUFFER (256u << 10)
#define EVENTS 512

enum state { HEAD, BODY, SAY };		/* a count, the bytes it counts, the answer */

struct conn {
	int fd;
	const struct service *service;	/* of a listening socket, too */
	int listens;
	enum state state;
	uint64_t left;			/* bytes until the state ends */
	uint64_t at;			/* place in the answer */
	uint64_t head;
	int waits_to_write;
};

static uint8_t pattern[PATTERN];
static uint8_t buffer[BUFFER];
static int loop;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void await(struct conn *c, int op, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = c };

	if (epoll_ctl(loop, op, c->fd, &event))
		fail("epoll_ctl");
}

static void end(struct conn *c)
{
	close(c->fd);
	free(c);
}

static void begin(struct conn *c)
{
	const struct service *s = c->service;
	int counted = s->kind == DOWNLOAD || s->kind == UPLOAD;

	c->state = counted ? HEAD : BODY;
	c->left = counted ? sizeof(c->head) : s->bytes;
	c->head = 0;
}

/* The state has ended: which comes next? */
static void next(struct conn *c)
{
	const struct service *s = c->service;

	if (c->state == SAY) {
		begin(c);
	} else if (c->state == HEAD && s->kind == UPLOAD && c->head) {
		c->state = BODY;
		c->left = c->head;
	} else {
		c->state = SAY;
		c->at = 0;
		c->left = s->kind == DOWNLOAD ? c->head : s->kind == UPLOAD ? 1 : s->bytes;
	}
}

/* Returns 0 to go on, 1 to wait, -1 if the connection is over. */
static int say(struct conn *c)
{
	uint32_t from = c->at % PATTERN, most = PATTERN - from;
	ssize_t n;

	if (most > c->left)
		most = c->left;
	if (most > BUFFER)
		most = BUFFER;
	n = send(c->fd, pattern + from, most, MSG_NOSIGNAL);
	if (n < 0)
		return errno == EAGAIN ? 1 : -1;
	c->at += n;
	c->left -= n;
	if (c->left)
		return 0;
	if (c->service->kind == ANSWER_ONCE)
		return -1;
	next(c);
	return 0;
}

static int take(struct conn *c)
{
	uint64_t most = c->left < BUFFER ? c->left : BUFFER;
	ssize_t n = recv(c->fd, buffer, most, 0);

	if (n <= 0)
		return n < 0 && errno == EAGAIN ? 1 : -1;
	if (c->state == HEAD)
		memcpy((uint8_t *)&c->head + sizeof(c->head) - c->left, buffer, n);
	c->left -= n;
	if (!c->left)
		next(c);
	return 0;
}

static void go_on(struct conn *c)
{
	int turns, done = 0, waits;

	if (c->service->kind == REFUSE)
		return end(c);
	/* Not for ever: the others want their turn. */
	for (turns = 0; !done && turns < 64; turns++)
		done = c->state == SAY ? say(c) : take(c);
	if (done < 0)
		return end(c);
	waits = c->state == SAY;
	if (waits != c->waits_to_write)
		await(c, EPOLL_CTL_MOD, waits ? EPOLLOUT : EPOLLIN);
	c->waits_to_write = waits;
}

static void welcome(struct conn *listener)
{
	struct conn *c;
	int fd, on = 1;

	while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		c = calloc(1, sizeof(*c));
		if (!c)
			fail("calloc");
		c->fd = fd;
		c->service = listener->service;
		begin(c);
		await(c, EPOLL_CTL_ADD, EPOLLIN);
	}
}

static int open_port(int type, uint16_t port)
{
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
	int room = 4 << 20;

	if (fd < 0)
		fail("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (type == SOCK_DGRAM)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	if (type == SOCK_STREAM && choose_cubic(fd))	/* those it accepts inherit it */
		fail("cubic");
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)))
		fail("bind");
	if (type == SOCK_STREAM && listen(fd, 16384))
		fail("listen");
	return fd;
}

static void echo(int fd)
{
	struct sockaddr_in from;
	socklen_t size;
	ssize_t n;

	for (;;) {
		size = sizeof(from);
		n = recvfrom(fd, buffer, BUFFER, 0, (struct sockaddr *)&from, &size);
		if (n < 0)
			return;
		sendto(fd, buffer, n, 0, (struct sockaddr *)&from, size);
	}
}

int main(int argc, char **argv)
{
	struct conn listeners[LISTENERS], *listener = listeners, udp = { .listens = 1 };
	struct epoll_event events[EVENTS];
	struct rlimit files;
	cpu_set_t cpus;

	if (argc != 2)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		fail("sched_setaffinity");
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	fill(pattern);
	loop = epoll_create1(EPOLL_CLOEXEC);
	for (unsigned int i = 0; i < SERVICES; i++)
		for (unsigned int n = 0; n < services[i].ports; n++, listener++) {
			*listener = (struct conn){ .service = &services[i], .listens = 1 };
			listener->fd = open_port(SOCK_STREAM, services[i].port + n);
			await(listener, EPOLL_CTL_ADD, EPOLLIN);
		}
	udp.fd = open_port(SOCK_DGRAM, UDP_PORT);
	await(&udp, EPOLL_CTL_ADD, EPOLLIN);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(loop, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;

			if (c == &udp)
				echo(c->fd);
			else if (c->listens)
				welcome(c);
			else
				go_on(c);
		}
	}
}
