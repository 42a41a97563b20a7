# What hibernation needs of the CPU (hibernate.py): a context that returns twice, a loop that may overwrite anything.

        .section .text, "ax", @progbits

# RDI: room for eight words. Returns 0 now, and 1 when it is resumed.
        function hibernate_context
        movq    %rbx, 0(%rdi)
        movq    %rbp, 8(%rdi)
        movq    %r12, 16(%rdi)
        movq    %r13, 24(%rdi)
        movq    %r14, 32(%rdi)
        movq    %r15, 40(%rdi)
        leaq    8(%rsp), %rax
        movq    %rax, 48(%rdi)
        movq    (%rsp), %rax
        movq    %rax, 56(%rdi)
        xorl    %eax, %eax
        ret

# The first instructions in the kernel that came back. RDI: its context, RSI: its root.
        function hibernate_return
        site    site_hibernate_return_cr3
        movq    %rsi, %cr3
        movq    0(%rdi), %rbx
        movq    8(%rdi), %rbp
        movq    16(%rdi), %r12
        movq    24(%rdi), %r13
        movq    32(%rdi), %r14
        movq    40(%rdi), %r15
        movq    48(%rdi), %rsp
        movl    $1, %eax
        jmp     *56(%rdi)

# RDI: temporary root, RSI: the copied loop, RDX: its list, RCX: where to go then, R8 and R9: what to hand on.
        function hibernate_jump
        cli
        movq    %cr4, %rax
        andq    $~0x80, %rax
        site    site_hibernate_cr4
        movq    %rax, %cr4
        site    site_hibernate_cr3
        movq    %rdi, %cr3
        movq    %rdx, %rdi
        jmp     *%rsi

# The loop: no stack, no data but the list of (to, from), each a page; it ends with a 0. Copied to a safe page.
        function hibernate_loop
        movq    %rdi, %rdx
        movq    %rcx, %rax
1:      movq    (%rdx), %rdi
        testq   %rdi, %rdi
        jz      2f
        movq    8(%rdx), %rsi
        movl    $512, %ecx
        rep movsq
        addq    $16, %rdx
        jmp     1b
2:      movq    %r8, %rdi
        movq    %r9, %rsi
        jmp     *%rax
        .globl  hibernate_loop_end
        .hidden hibernate_loop_end
hibernate_loop_end:
