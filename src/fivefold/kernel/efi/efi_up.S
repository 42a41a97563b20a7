# For firmware that enters in four levels only: go to five before the application's own code runs, and stay a guest
# of the firmware: its descriptor tables, segments and stack are put back, so its services can be called as before.
# An NMI in this window is the firmware's, which is not ready for it; the kernel's own change of mode is (entry.S).

        .section .text, "ax", @progbits
        .code64
# RDI: a root below 4 GiB whose first entry leads to the active one, RSI: a page there with a copy of `efi_up_start`.
        .p2align 4
        .globl  efi_go_up
        .hidden efi_go_up
efi_go_up:
        pushfq
        cli
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        call    *%rsi
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        popfq
        ret

        .p2align 4
        .globl  efi_up_start
        .hidden efi_up_start
efi_up_start:
        movq    %rsp, efi_up_rsp(%rip)
        sgdt    efi_up_old_gdt(%rip)
        movw    %cs, efi_up_cs(%rip)
        movw    %ss, efi_up_ss(%rip)
        leaq    efi_up_start(%rip), %rbp
        leaq    efi_up_gdt(%rip), %rax
        movq    %rax, efi_up_new_gdt + 2(%rip)
        lgdt    efi_up_new_gdt(%rip)
        pushq   $0x08
        leaq    efi_up_32(%rip), %rax
        movl    %eax, %ebx
        pushq   %rax
        leaq    efi_up_64(%rip), %rax
        movl    %eax, efi_up_far(%rip)
        lretq
        .code32
efi_up_32:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %ss
        movl    %cr0, %eax
        btrl    $31, %eax
        movl    %eax, %cr0
        movl    %edi, %cr3
        movl    $0xc0000080, %ecx
        rdmsr
        btsl    $8, %eax
        jc      1f
        wrmsr
1:      movl    %cr4, %eax
        orl     $0x1000, %eax
        movl    %eax, %cr4
        movl    %cr0, %eax
        btsl    $31, %eax
        movl    %eax, %cr0
        ljmpl   *(efi_up_far - efi_up_start)(%ebp)
        .code64
efi_up_64:
        movq    efi_up_rsp(%rip), %rsp
        lgdt    efi_up_old_gdt(%rip)
        movzwl  efi_up_ss(%rip), %eax
        movl    %eax, %ss
        movl    %eax, %ds
        movl    %eax, %es
        movzwl  efi_up_cs(%rip), %eax
        pushq   %rax
        leaq    2f(%rip), %rax
        pushq   %rax
        lretq
2:      ret
        .p2align 3
efi_up_rsp:
        .quad   0
efi_up_old_gdt:
        .quad   0, 0
efi_up_new_gdt:
        .word   31
        .quad   0
efi_up_cs:
        .word   0
efi_up_ss:
        .word   0
        .p2align 3
efi_up_far:
        .long   0
        .word   0x18, 0
efi_up_gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00af9b000000ffff
        .globl  efi_up_end
        .hidden efi_up_end
efi_up_end:
