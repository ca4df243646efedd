// SPDX-License-Identifier: GPL-2.0-only
/*
 * For the lab under TCG only, with QEMU before 11.0: LD_PRELOAD for qemu-system-*.
 *
 * QEMU's checkpoint sends dirty memory without holding the big lock. Under TCG that path waits on a
 * condition with a mutex its thread does not own, and pthread_cond_wait() then never returns
 * in good order: the primary hangs at its first checkpoint. KVM does not take that path.
 *
 * So: if the caller does not own the mutex, take it first (with a deadline, should the owner be
 * waiting for us), wait with a time limit, and give the mutex back. The caller's own loop
 * looks at its condition again. Ownership is read from glibc's mutex, which QEMU's are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WAIT_NS	5000000L

typedef int (*wait_fn)(pthread_cond_t *, pthread_mutex_t *);

static void soon(struct timespec *when)
{
	clock_gettime(CLOCK_REALTIME, when);
	when->tv_nsec += WAIT_NS;
	if (when->tv_nsec >= 1000000000L) {
		when->tv_nsec -= 1000000000L;
		when->tv_sec++;
	}
}

int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	static wait_fn real;
	struct timespec when;

	if (!real)
		real = (wait_fn)dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");
	if (mutex->__data.__owner == (int)syscall(SYS_gettid))
		return real(cond, mutex);
	soon(&when);
	if (pthread_mutex_timedlock(mutex, &when))
		return 0;	/* a spurious wake-up is always allowed */
	soon(&when);
	pthread_cond_timedwait(cond, mutex, &when);
	pthread_mutex_unlock(mutex);
	return 0;
}
