// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes to memory on request, so that a checkpoint has so much to carry:
 *
 *   7005/tcp  "DIRTY n" -> "DONE n"  after a word was written into each page of n MiB
 *
 * One connection at a time. The memory is kept: from the second request on no page is new.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT		7005
#define MOST_MIB	256
#define MIB		(1UL << 20)
#define PAGE		4096UL

static char *memory;
static uint64_t round_number;

static void dirty(size_t mib)
{
	size_t at;

	round_number++;
	for (at = 0; at < mib * MIB; at += PAGE)
		*(volatile uint64_t *)(memory + at) = round_number;
}

static void serve(int fd)
{
	FILE *requests = fdopen(fd, "r");
	char line[64];
	unsigned int mib;

	if (!requests) {
		close(fd);
		return;
	}
	while (fgets(line, sizeof(line), requests)) {
		if (sscanf(line, "DIRTY %u", &mib) != 1 || mib > MOST_MIB)
			break;
		dirty(mib);
		dprintf(fd, "DONE %u\n", mib);
	}
	fclose(requests);
}

int main(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd, one = 1;

	signal(SIGPIPE, SIG_IGN);
	memory = mmap(NULL, MOST_MIB * MIB, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (memory == MAP_FAILED || bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, 8)) {
		perror("dirty");
		return 1;
	}
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		serve(fd);
	}
	return 1;
}
