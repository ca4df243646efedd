// SPDX-License-Identifier: GPL-2.0-only
/*
 * The client of the benchmarks.
 *
 *   load rr ADDRESS PORT BYTES CONNECTIONS MS	each with one request outstanding
 *   load connect ADDRESS AT_ONCE MS ATTEMPTS	connect, 100 bytes each way, close; 0: no limit
 *   load refused ADDRESS AT_ONCE MS ATTEMPTS	connect, 100 bytes, which the server answers by a reset
 *   load down|up ADDRESS CHUNK_BYTES MS	chunk after chunk over one connection
 *   load udp ADDRESS BYTES OUTSTANDING MS	echo
 *
 * Says what it found in a line of JSON; behind it the time of each operation in ns, in 32 bits.
 * Waits GRACE_MS longer for what is under way, then gives it up as stalled.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "services.h"

#define MS 1000000ull
#define GRACE_MS 2000
#define LOST_MS 200		/* a datagram that was not echoed until then */
#define OPEN_MS 20000		/* for all connections to be there */
#define OPENING 128		/* at once */
#define BUFFER (1u << 20)
#define EVENTS 512
#define ONCE_BYTES 100

struct conn {
	int fd;
	int open;
	uint64_t since;		/* the operation under way began; 0: there is none */
	uint32_t to_send;
	uint32_t to_take;
	uint32_t events;
};

static struct sockaddr_in server = { .sin_family = AF_INET };
static uint8_t pattern[PATTERN];
static uint8_t buffer[BUFFER];
static uint32_t *times;
static uint64_t done, room, failed, stalled, moved;
static int loop;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void note(uint64_t since, uint64_t now)
{
	uint64_t took = now - since;

	if (done == room) {
		room = room ? 2 * room : 1 << 16;
		times = realloc(times, room * sizeof(*times));
		if (!times)
			fail("realloc");
	}
	times[done++] = took > UINT32_MAX ? UINT32_MAX : took;
}

static void report(uint64_t ns, uint64_t opened)
{
	printf("{\"operations\":%llu,\"ns\":%llu,\"bytes\":%llu,\"failed\":%llu,\"stalled\":%llu,"
	       "\"opened\":%llu}\n",
	       (unsigned long long)done, (unsigned long long)ns, (unsigned long long)moved,
	       (unsigned long long)failed, (unsigned long long)stalled,
	       (unsigned long long)opened);
	fwrite(times, sizeof(*times), done, stdout);
	if (fflush(stdout))
		fail("stdout");
}

static void await(struct conn *c, int op, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = c };

	if (op == EPOLL_CTL_MOD && c->events == events)
		return;
	c->events = events;
	if (epoll_ctl(loop, op, c->fd, &event))
		fail("epoll_ctl");
}

/* Returns -1 if there is no port for it, or the like. */
static int begin_connect(struct conn *c, uint16_t port)
{
	int on = 1;

	server.sin_port = htons(port);
	c->open = 0;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		fail("socket");
	if (choose_cubic(c->fd))
		fail("cubic");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (connect(c->fd, (struct sockaddr *)&server, sizeof(server)) && errno != EINPROGRESS) {
		close(c->fd);
		c->fd = -1;
		return -1;
	}
	await(c, EPOLL_CTL_ADD, EPOLLOUT);
	return 0;
}

static void drop(struct conn *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->open = 0;
	c->since = 0;
}

static int send_some(struct conn *c, uint32_t bytes)
{
	while (c->to_send) {
		ssize_t n = send(c->fd, pattern + bytes - c->to_send, c->to_send, MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		c->to_send -= n;
	}
	return 0;
}

static int begin_request(struct conn *c, uint32_t bytes)
{
	c->since = now_ns();
	c->to_send = c->to_take = bytes;
	if (send_some(c, bytes))
		return -1;
	await(c, EPOLL_CTL_MOD, c->to_send ? EPOLLIN | EPOLLOUT : EPOLLIN);
	return 0;
}

/* Returns 1 once the answer is whole, 0 to wait, -1 if it is over or wrong. */
static int take_some(struct conn *c, uint32_t bytes)
{
	while (c->to_take) {
		ssize_t n = recv(c->fd, buffer, c->to_take, 0);

		if (n <= 0)
			return n < 0 && errno == EAGAIN ? 0 : -1;
		if (memcmp(buffer, pattern + bytes - c->to_take, n))
			return -1;
		c->to_take -= n;
	}
	return 1;
}

/* ---- request and response ---- */

static uint16_t port_of(uint16_t port, uint32_t number)
{
	return port == MANY_PORT ? port + number % MANY_PORTS : port;
}

static uint64_t open_all(struct conn *conns, uint32_t count, uint16_t port)
{
	uint64_t until = now_ns() + OPEN_MS * MS, opened = 0;
	uint32_t begun = 0, pending = 0;
	struct epoll_event events[EVENTS];

	while (opened + failed < count && now_ns() < until) {
		for (; begun < count && pending < OPENING; begun++) {
			if (begin_connect(&conns[begun], port_of(port, begun)))
				failed++;
			else
				pending++;
		}
		for (int i = 0, n = epoll_wait(loop, events, EVENTS, 100); i < n; i++) {
			struct conn *c = events[i].data.ptr;

			pending--;
			if (events[i].events & (EPOLLERR | EPOLLHUP)) {
				drop(c);
				failed++;
				continue;
			}
			c->open = 1;
			await(c, EPOLL_CTL_MOD, 0);
			opened++;
		}
	}
	for (uint32_t i = 0; i < count; i++)
		if (conns[i].fd >= 0 && !conns[i].open)
			drop(&conns[i]);
	failed = count - opened;	/* those there was no time for, too */
	return opened;
}

static void go_on(struct conn *c, uint32_t events, uint32_t bytes, uint64_t end, uint32_t *busy)
{
	int found = 0;

	if (c->fd < 0)
		return;
	if (c->to_send && events & EPOLLOUT) {
		found = send_some(c, bytes);
		if (!found)
			await(c, EPOLL_CTL_MOD, c->to_send ? EPOLLIN | EPOLLOUT : EPOLLIN);
	}
	if (!found && events & (EPOLLIN | EPOLLERR | EPOLLHUP))
		found = take_some(c, bytes);
	if (found > 0) {
		uint64_t now = now_ns();

		note(c->since, now);
		moved += bytes;
		c->since = 0;
		(*busy)--;
		if (now < end && !begin_request(c, bytes))
			(*busy)++;
	} else if (found < 0) {
		failed++;
		(*busy)--;
		drop(c);
	}
}

static void requests(uint16_t port, uint32_t bytes, uint32_t count, uint64_t ms)
{
	struct conn *conns = calloc(count, sizeof(*conns));
	uint64_t begun, end, opened;
	struct epoll_event events[EVENTS];
	uint32_t busy = 0;

	if (!conns)
		fail("calloc");
	for (uint32_t i = 0; i < count; i++)
		conns[i].fd = -1;
	opened = open_all(conns, count, port);
	begun = now_ns();
	end = begun + ms * MS;
	for (uint32_t i = 0; i < count; i++)
		if (conns[i].open && !begin_request(&conns[i], bytes))
			busy++;
	while (busy && now_ns() < end + GRACE_MS * MS)
		for (int i = 0, n = epoll_wait(loop, events, EVENTS, 100); i < n; i++)
			go_on(events[i].data.ptr, events[i].events, bytes, end, &busy);
	stalled = busy;
	report((busy ? end : now_ns()) - begun, opened);
}

/* ---- connections that come and go ---- */

/* What it says to the request. Returns 1 once it is over as it should, 0 to wait, -1 otherwise. */
static int answer(struct conn *c, int refused)
{
	int found;

	if (refused)
		return recv(c->fd, buffer, 1, 0) >= 0 ? -1 :
		       errno == ECONNRESET ? 1 : errno == EAGAIN ? 0 : -1;
	found = take_some(c, ONCE_BYTES);
	if (found > 0)		/* and the server closes */
		found = recv(c->fd, buffer, 1, 0) ? errno == EAGAIN ? 0 : -1 : 1;
	return found;
}

static void connects(uint32_t at_once, uint64_t ms, uint64_t attempts, int refused)
{
	struct conn *conns = calloc(at_once, sizeof(*conns));
	uint64_t begun = now_ns(), end = begun + ms * MS, tried = 0;
	struct epoll_event events[EVENTS];
	uint32_t busy;

	if (!conns)
		fail("calloc");
	for (uint32_t i = 0; i < at_once; i++)
		conns[i].fd = -1;
	for (;;) {
		uint64_t now = now_ns();

		busy = 0;
		for (uint32_t i = 0; i < at_once; i++) {
			struct conn *c = &conns[i];

			if (c->fd < 0 && now < end && (!attempts || tried < attempts)) {
				tried++;
				c->since = now_ns();
				if (begin_connect(c, refused ? 7006 : 7005))
					failed++;
			}
			busy += c->fd >= 0;
		}
		if ((!busy && (now >= end || tried == attempts)) || now > end + GRACE_MS * MS)
			break;
		for (int i = 0, n = epoll_wait(loop, events, EVENTS, 20); i < n; i++) {
			struct conn *c = events[i].data.ptr;
			uint64_t since = c->since;
			int found = 0;

			if (!c->open && !(events[i].events & (EPOLLERR | EPOLLHUP))) {
				c->open = 1;
				found = begin_request(c, ONCE_BYTES);
				c->since = since;
			} else {
				found = answer(c, refused);
			}
			if (!found)
				continue;
			if (found > 0) {
				note(since, now_ns());
				moved += ONCE_BYTES;
			} else {
				failed++;
			}
			drop(c);
		}
	}
	stalled = busy;
	report((busy ? end : now_ns()) - begun, tried);
}

/* ---- one stream ---- */

/* One chunk, blocking with a timeout. Returns -1 if it does not end before `last`. */
static int chunk(int fd, int up, uint64_t count, uint64_t last)
{
	uint64_t out = up ? count : 0, in = up ? 1 : count;
	struct pollfd waits = { .fd = fd };
	ssize_t n;

	if (send(fd, &count, sizeof(count), MSG_NOSIGNAL) != sizeof(count))
		return -1;
	while (out || in) {
		uint64_t now = now_ns();
		uint32_t most = out < BUFFER ? out : BUFFER;

		if (now >= last)
			return -1;
		waits.events = out ? POLLOUT : POLLIN;
		if (poll(&waits, 1, (last - now) / MS + 1) <= 0)
			continue;
		n = out ? send(fd, pattern, most, MSG_NOSIGNAL | MSG_DONTWAIT) :
			  recv(fd, buffer, in < BUFFER ? in : BUFFER, MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0)
			return -1;
		if (out)
			out -= n;
		else
			in -= n;
		if (!up)
			moved += n;
	}
	if (up)
		moved += count;
	return 0;
}

static void stream(int up, uint64_t bytes, uint64_t ms)
{
	uint64_t begun = now_ns(), end = begun + ms * MS, last = end + GRACE_MS * MS, since;
	struct conn c = { 0 };
	struct pollfd waits;

	if (begin_connect(&c, up ? 7011 : 7010))
		fail("connect");
	waits = (struct pollfd){ .fd = c.fd, .events = POLLOUT };
	if (poll(&waits, 1, ms + GRACE_MS) != 1 || waits.revents & (POLLERR | POLLHUP)) {
		stalled = 1;
		return report(now_ns() - begun, 0);
	}
	while (!stalled && (since = now_ns()) < end) {
		if (chunk(c.fd, up, bytes, last))
			stalled = 1;
		else
			note(since, now_ns());
	}
	report(now_ns() - begun, 1);
}

/* ---- datagrams ---- */

#define SLOTS (1u << 17)	/* more than are sent within LOST_MS */

static struct { uint32_t number; uint64_t since; } sent[SLOTS];

/* An echo came. Returns 0 if it is that of a datagram under way. */
static int echoed(void)
{
	uint32_t number;

	memcpy(&number, buffer, sizeof(number));
	if (sent[number % SLOTS].number != number || !sent[number % SLOTS].since)
		return -1;
	note(sent[number % SLOTS].since, now_ns());
	sent[number % SLOTS].since = 0;
	return 0;
}

/* Those before *first are answered or lost. Returns how many more are lost by now. */
static uint32_t lost(uint32_t *first, uint32_t number, uint64_t now)
{
	uint32_t gone = 0;

	for (; *first != number; (*first)++) {
		uint64_t since = sent[*first % SLOTS].since;

		if (since && now < since + LOST_MS * MS)
			break;
		gone += since != 0;
		sent[*first % SLOTS].since = 0;
	}
	return gone;
}

static void datagrams(uint32_t bytes, uint32_t outstanding, uint64_t ms)
{
	uint64_t begun = now_ns(), end = begun + ms * MS;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct pollfd polled = { .fd = fd, .events = POLLIN };
	uint32_t number = 0, first = 0, busy = 0, gone;

	server.sin_port = htons(UDP_PORT);
	if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof(server)))
		fail("udp");
	while (now_ns() < end) {
		for (; busy < outstanding; busy++, number++) {
			memcpy(buffer, pattern, bytes);
			memcpy(buffer, &number, sizeof(number));
			sent[number % SLOTS].number = number;
			sent[number % SLOTS].since = now_ns();
			send(fd, buffer, bytes, MSG_NOSIGNAL);
		}
		poll(&polled, 1, LOST_MS);
		while (busy && recv(fd, buffer, BUFFER, MSG_DONTWAIT) == bytes)
			if (!echoed()) {
				moved += bytes;
				busy--;
			}
		gone = lost(&first, number, now_ns());
		failed += gone;
		busy -= gone;
	}
	report(now_ns() - begun, 1);
}

static uint64_t number(const char *text)
{
	return strtoull(text, NULL, 10);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[1] : "";
	struct rlimit files;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	fill(pattern);
	loop = epoll_create1(EPOLL_CLOEXEC);
	if (argc < 5 || inet_pton(AF_INET, argv[2], &server.sin_addr) != 1)
		return 2;
	else if (argc == 7 && !strcmp(mode, "rr"))
		requests(number(argv[3]), number(argv[4]), number(argv[5]), number(argv[6]));
	else if (argc == 6 && (!strcmp(mode, "connect") || !strcmp(mode, "refused")))
		connects(number(argv[3]), number(argv[4]), number(argv[5]), !strcmp(mode, "refused"));
	else if (argc == 5 && (!strcmp(mode, "up") || !strcmp(mode, "down")))
		stream(!strcmp(mode, "up"), number(argv[3]), number(argv[4]));
	else if (argc == 6 && !strcmp(mode, "udp"))
		datagrams(number(argv[3]), number(argv[4]), number(argv[5]));
	else
		return 2;
	return 0;
}
