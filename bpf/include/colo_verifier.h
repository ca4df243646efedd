/* SPDX-License-Identifier: GPL-2.0-only */
/* Two words to LLVM, so that the verifier sees what was written. */
#ifndef COLO_VERIFIER_H
#define COLO_VERIFIER_H

/*
 * LLVM merges neighbouring range checks into arithmetic the verifier cannot follow. Behind
 * this the value is opaque to LLVM, so the check that follows reaches the verifier as written.
 */
#define COLO_OPAQUE(x)	asm volatile("" : "+r"(x))

/* LLVM would keep a value it has just stored in its register: this makes it read the map again. */
#define COLO_FORGET()	asm volatile("" : : : "memory")

#endif /* COLO_VERIFIER_H */
