/* SPDX-License-Identifier: GPL-2.0-only */
/* Words to LLVM, so that the verifier sees what was written. */
#ifndef COLO_VERIFIER_H
#define COLO_VERIFIER_H

/*
 * LLVM merges neighbouring range checks into arithmetic the verifier cannot follow. Behind
 * this the value is opaque to LLVM, so the check that follows reaches the verifier as written.
 */
#define COLO_OPAQUE(x)	asm volatile("" : "+r"(x))

/*
 * Whether `x` is above `most`, or not in `least`..`most`. It is compared in the register that is
 * used later. Of two comparisons in C, LLVM makes one, of `x - least`, or it compares a copy from
 * the stack. Linux 6.12 and before learn nothing about `x` from either. The upper bound comes
 * first: of a value that might be negative Linux 7.3 forgets the lower one.
 */
#define colo_above(x, most) ({							\
	__u64 above_ = 1;							\
										\
	asm volatile("if %[value] > %[high] goto +1; %[is] = 0"			\
		     : [value] "+r"(x), [is] "+r"(above_) : [high] "i"(most));	\
	above_;									\
})
#define colo_outside(x, least, most) ({						\
	__u64 outside_ = 1;							\
										\
	asm volatile("if %[value] > %[high] goto +2; if %[value] < %[low] goto +1; %[is] = 0" \
		     : [value] "+r"(x), [is] "+r"(outside_)			\
		     : [low] "i"(least), [high] "i"(most));			\
	outside_;								\
})

/* LLVM would keep a value it has just stored in its register: this makes it read the map again. */
#define COLO_FORGET()	asm volatile("" : : : "memory")

/* a < b ? a : b, without a branch; both below 2^32. */
static __always_inline __u64 colo_min(__u64 a, __u64 b)
{
	__u64 less = (__s64)(a - b) >> 63;

	COLO_OPAQUE(less);
	return b + ((a - b) & less);
}

/* The bits of a word's bytes from number `bytes` (0 to 8) on; by 64, a shift does nothing. */
static __always_inline __u64 colo_from_byte(__u64 bytes)
{
	return (~0ULL << bytes * 4) << bytes * 4;
}

#endif /* COLO_VERIFIER_H */
