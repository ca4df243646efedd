// SPDX-License-Identifier: GPL-2.0-only
/*
 * relay ADDRESS PORT[,PORT...] SERVER [SERVER]: listens at ADDRESS; every connection there is one to
 * the same port of each SERVER. All servers are told what the client says. The client is told what the
 * first one says, and of that only as many bytes as every server has said: no answer leaves before the
 * slowest has given its own. It has an end when all servers have ended; one that fails, or ends before
 * another has said its last byte, resets the connection. Says "ready" and runs until its parent is gone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define SERVERS 2
#define ROOM (1u << 20)			/* for what one side has said and another has not been told */
#define EVENTS 256
#define BACKLOG 1024

struct line;

struct end {
	struct line *line;		/* none: it listens */
	int fd;
	uint16_t port;			/* network order */
	int opened, readable, writable;
	int final;			/* nothing comes after what can be read now */
	int ended;			/* it says no more */
	int shut;			/* it was told that nothing follows */
	uint64_t said, heard;		/* bytes */
};

struct line {
	struct end client, servers[SERVERS];
	int broken, over;
	struct line *next;		/* of those that are over, or free */
	uint8_t requests[ROOM], answers[ROOM];
};

static struct sockaddr_in targets[SERVERS];
static int count;
static int loop;
static struct line *over, *spare;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* With one server it is the first and the last. */
static struct end *last(struct line *l)
{
	return &l->servers[count - 1];
}

static uint64_t all_heard(struct line *l)
{
	return least(l->servers[0].heard, last(l)->heard);
}

static uint64_t all_said(struct line *l)
{
	return least(l->servers[0].said, last(l)->said);
}

/* Into a ring whose bytes before `from` are no longer needed; without one they are only counted. */
static int take(struct end *e, uint8_t *ring, uint64_t from)
{
	size_t at = e->said % ROOM, room = ROOM - (e->said - from);
	ssize_t n;

	if (!e->readable || e->ended || !room)
		return 0;
	if (ring && room > ROOM - at)
		room = ROOM - at;
	n = recv(e->fd, ring ? ring + at : NULL, room, ring ? 0 : MSG_TRUNC);
	if (n < 0) {
		e->readable = 0;
		e->line->broken |= errno != EAGAIN;
		return 0;
	}
	e->ended = !n;
	e->said += n;
	if ((size_t)n < room && !e->final)
		e->readable = 0;
	return 1;
}

/* Of a ring, up to the byte `to`. */
static int give(struct end *e, const uint8_t *ring, uint64_t to)
{
	size_t at = e->heard % ROOM, size = least(to - e->heard, ROOM - at);
	ssize_t n;

	if (!e->writable || !size)
		return 0;
	n = send(e->fd, ring + at, size, MSG_NOSIGNAL);
	if (n < 0) {
		e->writable = 0;
		e->line->broken |= errno != EAGAIN;
		return 0;
	}
	e->heard += n;
	return 1;
}

static void shut(struct end *e)
{
	if (!e->shut)
		shutdown(e->fd, SHUT_WR);
	e->shut = 1;
}

/* What has ended passes on its end, once all it said has arrived. */
static void pass_ends(struct line *l)
{
	int told = 1;

	for (int i = 0; i < count; i++) {
		struct end *s = &l->servers[i];

		if (l->client.ended && s->opened && s->heard == l->client.said)
			shut(s);
		told &= s->shut;
		/* Its answer is over, another's goes on: the rest can never leave. */
		l->broken |= s->ended && (l->servers[0].said > s->said || last(l)->said > s->said);
	}
	if (l->servers[0].ended && last(l)->ended && l->client.heard == all_said(l))
		shut(&l->client);
	l->over = l->broken || (l->client.ended && l->client.shut && told);
}

static void hang_up(struct end *e, int reset)
{
	struct linger none = { .l_onoff = 1 };

	if (e->fd < 0)
		return;
	if (reset)
		setsockopt(e->fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
	close(e->fd);
}

/* What is small stays in the same lines of the cache. */
static void rewind_rings(struct line *l)
{
	if (all_heard(l) == l->client.said)
		l->client.said = l->servers[0].heard = last(l)->heard = 0;
	if (l->servers[0].said == l->client.heard && last(l)->said == l->client.heard)
		l->client.heard = l->servers[0].said = last(l)->said = 0;
}

/* As far as it goes. */
static void go_on(struct line *l)
{
	int opened = l->servers[0].opened && last(l)->opened, moved;

	do {
		moved = take(&l->client, l->requests, all_heard(l));
		for (int i = 0; i < count && opened; i++)
			moved |= give(&l->servers[i], l->requests, l->client.said);
		for (int i = 0; i < count; i++)
			moved |= take(&l->servers[i], i ? NULL : l->answers, l->client.heard);
		moved |= give(&l->client, l->answers, all_said(l));
	} while (moved && !l->broken);
	rewind_rings(l);
	pass_ends(l);
	if (!l->over)
		return;
	hang_up(&l->client, l->broken);
	for (int i = 0; i < count; i++)
		hang_up(&l->servers[i], l->broken);
	l->next = over;			/* events of this turn may still name it */
	over = l;
}

static void watch(struct end *e, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = e };

	if (epoll_ctl(loop, EPOLL_CTL_ADD, e->fd, &event))
		fail("epoll_ctl");
}

static void begin(struct end *e, struct line *l, int fd)
{
	int on = 1;

	*e = (struct end){ .line = l, .fd = fd };
	if (fd < 0) {
		l->broken = 1;
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	watch(e, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

/* Connects; -1 if that cannot even begin. */
static int call(struct sockaddr_in to, uint16_t port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	to.sin_port = port;
	if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS) {
		close(fd);
		return -1;
	}
	return fd;
}

static void welcome(struct end *listener)
{
	struct line *l;
	int fd;

	while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		l = spare;
		if (l)
			spare = l->next;
		else if (!(l = malloc(sizeof(*l))))
			fail("malloc");
		l->broken = l->over = 0;
		begin(&l->client, l, fd);
		for (int i = 0; i < count; i++)
			begin(&l->servers[i], l, call(targets[i], listener->port));
		if (l->broken)
			go_on(l);
	}
	if (errno != EAGAIN && errno != ECONNABORTED)
		fail("accept4");
}

static void happened(struct end *e, uint32_t events)
{
	struct line *l = e->line;

	if (l->over)
		return;
	if (events & EPOLLERR)
		l->broken = 1;
	if (events & (EPOLLRDHUP | EPOLLHUP))
		e->final = 1;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP))
		e->readable = 1;
	if (events & EPOLLOUT)
		e->opened = e->writable = 1;
	go_on(l);
}

static void open_port(struct sockaddr_in at, uint16_t port)
{
	struct end *e = calloc(1, sizeof(*e));
	int on = 1;

	if (!e)
		fail("calloc");
	e->port = at.sin_port = htons(port);
	e->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (e->fd < 0)
		fail("socket");
	setsockopt(e->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(e->fd, (struct sockaddr *)&at, sizeof(at)))
		fail("bind");
	if (listen(e->fd, BACKLOG))
		fail("listen");
	watch(e, EPOLLIN);
}

static struct sockaddr_in address(const char *text)
{
	struct sockaddr_in made = { .sin_family = AF_INET };

	if (inet_pton(AF_INET, text, &made.sin_addr) != 1) {
		fprintf(stderr, "%s: no IPv4 address\n", text);
		exit(2);
	}
	return made;
}

static void reuse(void)
{
	while (over) {
		struct line *l = over;

		over = l->next;
		l->next = spare;
		spare = l;
	}
}

int main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];

	if (argc < 4 || argc > 3 + SERVERS)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	count = argc - 3;
	for (int i = 0; i < count; i++)
		targets[i] = address(argv[3 + i]);
	loop = epoll_create1(EPOLL_CLOEXEC);
	for (char *port = argv[2], *end; *port; port = *end ? end + 1 : end)
		open_port(address(argv[1]), strtoul(port, &end, 10));
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(loop, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			struct end *e = events[i].data.ptr;

			if (e->line)
				happened(e, events[i].events);
			else
				welcome(e);
		}
		reuse();
	}
}
