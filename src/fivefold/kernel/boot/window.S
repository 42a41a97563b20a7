# An NMI may arrive at any instruction between the loader's tables and the kernel's, and nothing holds it off.
#
# These descriptor tables lie in the image and are used at its physical address, where the loader's tables, the
# trampoline's return and the early tables all map it. In the trampoline itself its own take over.

        .section .head, "ax", @progbits
        .code64
# Changes RAX, RCX, RDX and RDI; the stack is the boot stack. All other exceptions end in one line (startup.py).
load_early_descriptors:
        leaq    head_gdt(%rip), %rax
        movq    %rax, head_gdt_pointer + 2(%rip)
        site    site_window_lgdt
        lgdt    head_gdt_pointer(%rip)
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        pushq   $0x18                           # CS first: a handler returns to the selector it was called from
        leaq    1f(%rip), %rax
        pushq   %rax
        lretq
1:      leaq    early_exception_entry(%rip), %rax
        movq    %rax, trap_handler(%rip)
        leaq    early_idt(%rip), %rdi
        leaq    trap_stubs(%rip), %rdx
        movl    $32, %ecx
2:      movq    %rdx, %rax
        call    early_gate
        addq    $16, %rdx                       # stubs and gates have the same size
        decl    %ecx
        jnz     2b
        leaq    early_nmi(%rip), %rax
        leaq    early_idt + 32(%rip), %rdi
        call    early_gate
        leaq    early_idt(%rip), %rax
        movq    %rax, early_idt_pointer + 2(%rip)
        site    site_window_lidt
        lidt    early_idt_pointer(%rip)
        .globl  window_start
        .hidden window_start
window_start:
        ret
# Writes the gate at RDI for the handler at RAX, bits 0 to 15, 16 to 31 and 32 to 63 apart; RDI: the next gate.
early_gate:
        movw    %ax, (%rdi)
        movw    $0x18, 2(%rdi)
        movw    $0x8e00, 4(%rdi)                # 64-bit interrupt gate
        shrq    $16, %rax
        movw    %ax, 6(%rdi)
        shrq    $16, %rax
        movl    %eax, 8(%rdi)
        addq    $16, %rdi
        ret
early_exception_entry:
        jmp     early_exception
early_nmi:
        incq    early_nmi_count(%rip)
        iretq

# After the trampoline: what its handler counted, before the page is given back.
take_trampoline_count:
        movq    trampoline_used(%rip), %rax
        movl    (4096 + trampoline_nmi_count - trampoline_start)(%rax), %eax
        addq    %rax, early_nmi_count(%rip)
        ret

        .section .data, "aw", @progbits
        .p2align 4
early_idt:
        .fill   32 * 16, 1, 0
early_idt_pointer:
        .word   32 * 16 - 1
        .quad   0
        .p2align 3
        .globl  early_nmi_count
        .hidden early_nmi_count
early_nmi_count:
        .quad   0
