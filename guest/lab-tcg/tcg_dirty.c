// SPDX-License-Identifier: GPL-2.0-only
/*
 * For the lab under TCG only: LD_PRELOAD for qemu-system-*. KVM takes none of these paths.
 *
 * QEMU looks for dirty memory in migration_bitmap_sync(); under TCG it then waits, in
 * tcg_log_global_after_sync(), until each vCPU has run an empty work item. Two things are wrong
 * there:
 *
 * 1. Before QEMU 11.0 a checkpoint does so without the big lock, so that pthread_cond_wait() is called with a
 *    mutex its thread does not own, and the primary hangs. Here the mutex is taken first (with
 *    a deadline, should its owner be waiting for us), the wait has a time limit, and the mutex
 *    is given back. The caller's own loop looks at its condition again.
 * 2. The dirty bits are cleared, but not the TLB entries that let the vCPU write without
 *    setting them. Pages written through such an entry are never sent again: the secondary gets
 *    a mixture of old and new memory, and its guest crashes. Here every vCPU flushes its TLB
 *    before the wait ends, so before any page of this round is sent.
 *
 * A checkpoint without the big lock may not wait at all: a vCPU that is quick has done the empty
 * item before it is looked for. So its kick of the vCPU queues the flush, too. The VM stands then,
 * and a vCPU does all that is queued before it runs on. With the big lock no vCPU is as quick.
 *
 * The calls are told from all others by their thread: a waiter that is neither the main thread nor
 * a vCPU, and has the big lock or a mutex that is not its own, is QEMU's migration or COLO thread.
 * They are one thread, and it waits with the big lock before the first page of all.
 *
 * A QEMU in which it does not find what it calls ends before it starts, and says so: it would hang
 * at its first checkpoint, or lose pages. Programs that are no QEMU are let alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WAIT_NS	5000000L

struct CPUState;
typedef void (*work_fn)(struct CPUState *cpu, void *data);

static int (*real_wait)(pthread_cond_t *cond, pthread_mutex_t *mutex);
static int (*real_broadcast)(pthread_cond_t *cond);
static struct CPUState *(*get_cpu)(int index);
static void (*flush_tlb)(struct CPUState *cpu);
static void (*run_on)(struct CPUState *cpu, work_fn work, void *data);
static void (*run_later_on)(struct CPUState *cpu, work_fn work, void *data);
static bool (*have_big_lock)(void);
static bool (*in_vcpu_thread)(void);
static bool in_qemu;
static __thread bool nested;
static __thread bool migrates;

static void *need(const char *name, const char *old_name)
{
	void *found = dlsym(RTLD_DEFAULT, name);

	if (!found && old_name)
		found = dlsym(RTLD_DEFAULT, old_name);
	if (!found) {
		fprintf(stderr, "libtcgdirty: this QEMU has no %s: under TCG it does not survive "
			"its own checkpoints, and the helper cannot mend that\n", name);
		_exit(EXIT_FAILURE);
	}
	return found;
}

__attribute__((constructor)) static void find_symbols(void)
{
	real_wait = dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");
	real_broadcast = dlvsym(RTLD_NEXT, "pthread_cond_broadcast", "GLIBC_2.3.2");
	in_qemu = dlsym(RTLD_DEFAULT, "qemu_init") ||
		  !strncmp(program_invocation_short_name, "qemu-system-", 12);
	if (!in_qemu)
		return;
	get_cpu = need("qemu_get_cpu", NULL);
	flush_tlb = need("tlb_flush", NULL);
	run_on = need("run_on_cpu", NULL);
	run_later_on = need("async_run_on_cpu", NULL);
	have_big_lock = need("bql_locked", "qemu_mutex_iothread_locked");	/* until 8.2 */
	in_vcpu_thread = need("qemu_in_vcpu_thread", NULL);
}

static void flush_own_tlb(struct CPUState *cpu, void *data)
{
	(void)data;
	flush_tlb(cpu);
}

/* `run` is run_on_cpu(), which waits for the vCPU, or async_run_on_cpu() while it stands. */
static void flush_all(void (*run)(struct CPUState *, work_fn, void *))
{
	struct CPUState *cpu;
	int i;

	nested = true;
	for (i = 0; (cpu = get_cpu(i)); i++)
		run(cpu, flush_own_tlb, NULL);
	nested = false;
}

/* Not of the wall clock, as a plain timed wait is: who sets that back would stop the VM. */
static void soon(struct timespec *when)
{
	clock_gettime(CLOCK_MONOTONIC, when);
	when->tv_nsec += WAIT_NS;
	if (when->tv_nsec >= 1000000000L) {
		when->tv_nsec -= 1000000000L;
		when->tv_sec++;
	}
}

static void wait_without_lock(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	struct timespec when;

	soon(&when);
	if (pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &when))
		return;		/* a spurious wake-up is always allowed */
	soon(&when);
	pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, &when);
	pthread_mutex_unlock(mutex);
}

int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	pid_t self = syscall(SYS_gettid);
	bool owner = mutex->__data.__owner == (int)self;	/* glibc's mutex, which QEMU's are */

	if (nested || self == getpid() || !in_qemu || in_vcpu_thread())
		return real_wait(cond, mutex);
	if (owner && !have_big_lock())
		return real_wait(cond, mutex);
	migrates = true;
	flush_all(owner ? run_on : run_later_on);
	if (!owner)
		wait_without_lock(cond, mutex);
	return 0;		/* the caller looks at its condition again */
}

int pthread_cond_broadcast(pthread_cond_t *cond)
{
	if (migrates && !nested && !have_big_lock())
		flush_all(run_later_on);
	return real_broadcast(cond);
}
