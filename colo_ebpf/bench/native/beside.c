// SPDX-License-Identifier: GPL-2.0-only
/*
 * What goes on beside a load, until the parent is gone.
 *
 *   beside spin CPU		keep it awake
 *   beside count SOCKET	count the bytes that come
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char buffer[1 << 16];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* Keeps a CPU from sleeping, and gives way to everything else. */
static void spin(int cpu)
{
	struct sched_param none = { 0 };
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) || sched_setscheduler(0, SCHED_IDLE, &none))
		fail("spin");
	for (;;)
		__asm__ volatile("pause");
}

/* Counts the bytes a unix socket brings; says how many at each line of the standard input. */
static void count(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct pollfd polled[2] = { { .events = POLLIN }, { .events = POLLIN } };
	unsigned long long bytes = 0;
	ssize_t n;

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	polled[1].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (polled[1].fd < 0 || connect(polled[1].fd, (void *)&address, sizeof(address)))
		fail(path);
	while (poll(polled, 2, -1) > 0) {
		if (polled[1].revents) {
			n = recv(polled[1].fd, buffer, sizeof(buffer), 0);
			if (n <= 0)
				return;
			bytes += n;
		} else if (polled[0].revents) {
			if (read(0, buffer, 1) <= 0)
				return;
			printf("%llu\n", bytes);
			fflush(stdout);
		}
	}
}

int main(int argc, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc == 3 && !strcmp(argv[1], "spin"))
		spin(atoi(argv[2]));
	if (argc == 3 && !strcmp(argv[1], "count"))
		count(argv[2]);
	return 2;
}
