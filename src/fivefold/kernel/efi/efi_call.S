# Calls of the firmware, which uses the Microsoft calling convention: from the application and from the kernel.

        .section .text, "ax", @progbits
# RDI: the service, RSI, RDX, RCX, R8, R9: its arguments. Returns its status.
        .p2align 4
        .globl  efi_call
        .hidden efi_call
efi_call:
        pushq   %rbp
        movq    %rsp, %rbp
        subq    $48, %rsp                       # four argument homes, the fifth argument, alignment
        andq    $-16, %rsp
        movq    %rdi, %rax
        movq    %r9, 32(%rsp)
        movq    %r8, %r9
        movq    %rcx, %r8
        movq    %rsi, %rcx
        cld
        call    *%rax
        movq    %rbp, %rsp
        popq    %rbp
        ret
