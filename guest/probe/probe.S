# SPDX-License-Identifier: GPL-2.0-only
# What any 64-bit operating system does in its first moments, one step after the other: a guest of
# its own for finding out whether an accelerator works (colo_ebpf/control/qemu/boot_probe.py).
#
# A multiboot image. Each step that works writes its letter to QEMU's debug console (port 0xe9); the
# end is a word to isa-debug-exit (port 0xf4). A step that does not work ends in a triple fault, at
# which QEMU ends too, in a halt, or says '?'.

	.set	BASE, 0x100000
	.set	UNMAPPED, 0x40000000
	.set	LAPIC, 0xfee00000
	.set	COPIED, 0x600000

	.macro	say letter
	movb	$\letter, %al
	outb	%al, $0xe9
	.endm

	.code32
	.text
	.globl	_start
_start:
	jmp	protected
	.balign	4, 0xcc
header:	.long	0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
	.long	header, BASE, 0, end, BASE

fail32:	movb	$'?', %al
	outb	%al, $0xe9
	hlt

# A: 32 bits without paging, as the loader leaves it; the old interrupt controllers are silenced
protected:
	cli
	cld
	movl	$stack, %esp
	movb	$0xff, %al
	outb	%al, $0x21
	outb	%al, $0xa1
	movl	$0x80000000, %eax
	cpuid
	cmpl	$0x80000001, %eax
	jb	fail32
	movl	$0x80000001, %eax
	cpuid
	btl	$29, %edx
	jnc	fail32
	say	'A'

# B: four levels of page tables, the first 1 GiB and the local APIC; long mode
	movl	$pml4, %edi
	movl	$(end - pml4) / 4, %ecx
	xorl	%eax, %eax
	rep stosl
	movl	$pdpt + 7, pml4
	movl	$low + 7, pdpt
	movl	$high + 7, pdpt + 3 * 8
	movl	$low, %edi
	movl	$0x87, %eax
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	cmpl	$UNMAPPED, %eax
	jb	1b
	movl	$LAPIC + 0x9b, high + ((LAPIC >> 21) & 511) * 8
	movl	$0x6b0, %eax			# PAE, PGE, OSFXSR, OSXMMEXCPT, PSE
	movl	%eax, %cr4
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x101, %eax			# long mode, SYSCALL
	wrmsr
	movl	%cr0, %eax
	andl	$~4, %eax
	orl	$0x80010003, %eax
	movl	%eax, %cr0
	lgdt	gdtr
	ljmp	$8, $long
	.code64
long:	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$stack, %esp
	say	'B'

# C: an exception of a page that is not there, which the handler maps
	leaq	idt + 14 * 16(%rip), %rdi
	leaq	fault(%rip), %rax
	call	gate
	leaq	idt + 0x40 * 16(%rip), %rdi
	leaq	tick(%rip), %rax
	call	gate
	lidt	idtr(%rip)
	movl	$UNMAPPED, %ebx
	movq	$0x5a, 8(%rbx)
	cmpq	$0x5a, 0x200008			# it is the second 2 MiB by another name
	jne	fail
	cmpl	$1, faults(%rip)
	jne	fail
	say	'C'

# D: SSE, and its state saved and restored
	movabsq	$0x0123456789abcdef, %rax
	movq	%rax, %xmm0
	paddq	%xmm0, %xmm0
	fxsave	fpu(%rip)
	pxor	%xmm0, %xmm0
	fxrstor	fpu(%rip)
	movq	%xmm0, %rbx
	addq	%rax, %rax
	cmpq	%rax, %rbx
	jne	fail
	say	'D'

# E: to user mode and back by a system call, with a GS of the kernel's own
	movl	$0xc0000102, %ecx
	leaq	mine(%rip), %rax
	xorl	%edx, %edx
	wrmsr
	movl	$0xc0000081, %ecx
	xorl	%eax, %eax
	movl	$0x00180008, %edx
	wrmsr
	incl	%ecx
	leaq	called(%rip), %rax
	xorl	%edx, %edx
	wrmsr
	movl	$0xc0000084, %ecx
	movl	$0x700, %eax
	wrmsr
	leaq	user(%rip), %rcx
	movl	$2, %r11d
	sysretq
user:	movl	%cs, %ebx
	syscall
	hlt					# not allowed to a user
called:	swapgs
	movq	%gs:0, %rax
	swapgs
	movl	$stack, %esp
	cmpq	mine(%rip), %rax
	jne	fail
	cmpl	$0x2b, %ebx
	jne	fail
	say	'E'

# F: the local APIC's timer ends a halt, three times
	movl	$LAPIC, %ebx
	movl	$0x1ff, 0xf0(%rbx)
	movl	$0x3, 0x3e0(%rbx)
	movl	$0x40, 0x320(%rbx)
2:	movl	$100000, 0x380(%rbx)
	sti
	hlt
	cli
	cmpl	$3, ticks(%rip)
	jb	2b
	say	'F'

# G: memory is written, copied and read, and the time stamp counter goes on
	rdtsc
	shlq	$32, %rdx
	leaq	(%rax, %rdx), %rbp
	movl	$COPIED, %edi
	movl	$0x200000, %ecx
	movabsq	$0xa5a5a5a5a5a5a5a5, %rax
	rep stosq
	movl	$COPIED, %esi
	movl	$COPIED + 0x600000, %edi
	movl	$0x40000, %ecx
	rep movsq
	lock incq COPIED + 0x600000
	cmpq	%rax, COPIED + 0x7ffff8
	jne	fail
	rdtsc
	shlq	$32, %rdx
	addq	%rdx, %rax
	cmpq	%rbp, %rax
	jbe	fail
	say	'G'

	movl	$0x20, %eax
	outl	%eax, $0xf4
3:	hlt
	jmp	3b

fail:	movb	$'?', %al
	outb	%al, $0xe9
	cli
	hlt

# An interrupt gate at %rdi for the handler at %rax, below 4 GiB
gate:	movw	%ax, (%rdi)
	movl	$0x8e000008, 2(%rdi)
	shrl	$16, %eax
	movw	%ax, 6(%rdi)
	movw	$0x8e00, 4(%rdi)
	ret

fault:	pushq	%rax
	movq	%cr2, %rax
	cmpq	$UNMAPPED + 8, %rax
	jne	fail
	movl	$second + 7, pdpt + 8
	movl	$0x200087, second
	invlpg	(%rax)
	incl	faults(%rip)
	popq	%rax
	addq	$8, %rsp
	iretq

tick:	pushq	%rbx
	movl	$LAPIC, %ebx
	movl	$0, 0xb0(%rbx)
	incl	ticks(%rip)
	popq	%rbx
	iretq

	.balign	8, 0xcc
gdt:	.quad	0
	.quad	0x00af9a000000ffff		# 08: kernel, code
	.quad	0x00cf92000000ffff		# 10: kernel, data
	.quad	0
	.quad	0x00cff2000000ffff		# 20: user, data
	.quad	0x00affa000000ffff		# 28: user, code
gdtr:	.word	gdtr - gdt - 1
	.quad	gdt
idtr:	.word	0x41 * 16 - 1
	.quad	idt
	.balign	8, 0xcc
mine:	.quad	0x636f6c6f2d676f21

	.bss
	.balign	4096
	.skip	4096
stack:
pml4:	.skip	4096
pdpt:	.skip	4096
low:	.skip	4096
high:	.skip	4096
second:	.skip	4096
idt:	.skip	4096
fpu:	.skip	512
faults:	.skip	4
ticks:	.skip	4
end:
