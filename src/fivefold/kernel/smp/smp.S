# Secondary CPUs: from the real mode that INIT and SIPI leave them in, to the mode of the first.
#
# `ap_trampoline` is copied to a page below 1 MiB, at whose number the startup IPI starts. It finds
# itself by CS. The words at its end are filled by smp.py; nothing in it depends on where it lies.
# The first CPU's CR4 is loaded before paging is on, so LA57 is copied and never decided again.
#
# An NMI may arrive at any instruction, in four modes. One table serves them all, since vector 2 lies
# at byte 8 of real mode's table, at byte 16 with the gates of protected mode, and at byte 32 with
# those of long mode. Every CPU takes a seat of its own in the page for the frame: all start at once.
# Until the third instruction a CPU has what INIT left it: firmware's table, and a stack at 0.

        .set    AP_SEATS, 64
        .set    AP_SEAT_SIZE, 48                # the largest frame has 40 bytes, and is aligned to 16

        .section .rodata, "a", @progbits
        .p2align 4
        .globl  ap_trampoline
        .hidden ap_trampoline
        .code16
ap_trampoline:
        lidtl   %cs:(ap_idt_pointer - ap_trampoline)
        cli
        cld
        movw    %cs, %ax
        movw    %ax, %ds
        movzwl  %ax, %esi
        shll    $4, %esi                        # ESI: where this page is
        movl    $1, %ecx
        lock xaddl %ecx, ap_seats - ap_trampoline
        movl    %ecx, %edx
        cmpl    ap_limit - ap_trampoline, %ecx
        jb      1f
        movl    $AP_SEATS - 1, %ecx
1:      imull   $-AP_SEAT_SIZE, %ecx, %ecx
        addl    $4096, %ecx                     # end of the seat, from the page's start
        movl    %ecx, -24(%ecx)                 # SS and ESP in one instruction: an NMI between two would use half
        movw    %ax, -20(%ecx)
        lssl    -24(%ecx), %esp
        cmpl    ap_limit - ap_trampoline, %edx
        jae     ap_not_wanted
        lgdtl   ap_gdt_pointer - ap_trampoline
        movl    $0x11, %eax                     # PE, and caches on again: INIT sets CD and NW
        movl    %eax, %cr0
        ljmpl   *(ap_far_32 - ap_trampoline)
ap_not_wanted:
        hlt
        jmp     ap_not_wanted
ap_nmi16:
        lock incl %cs:(ap_nmis - ap_trampoline)
        iretw
        .code32
        .globl  ap_32
        .hidden ap_32
ap_32:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        leal    (%esp, %esi), %edx              # the seat again, now that the stack's segment starts at 0
        movl    %edx, -24(%edx)
        movl    %eax, -20(%edx)
        lssl    -24(%edx), %esp
        movl    (ap_cr4 - ap_trampoline)(%esi), %edi
        btl     $12, %edi
        jnc     1f
        xorl    %eax, %eax                      # five levels: does this CPU have them, too?
        cpuid
        cmpl    $7, %eax
        jb      ap_refuse
        movl    $7, %eax
        xorl    %ecx, %ecx
        cpuid
        btl     $16, %ecx
        jnc     ap_refuse
1:      movl    %edi, %cr4
        movl    (ap_root - ap_trampoline)(%esi), %eax
        movl    %eax, %cr3
        movl    $MSR_EFER, %ecx
        movl    (ap_efer - ap_trampoline)(%esi), %eax
        xorl    %edx, %edx
        wrmsr
        movl    (ap_cr0 - ap_trampoline)(%esi), %eax
        movl    %eax, %cr0
        ljmpl   *(ap_far_64 - ap_trampoline)(%esi)
ap_refuse:
        lock incl (ap_refused - ap_trampoline)(%esi)
2:      cli
        hlt
        jmp     2b
ap_nmi32:                                       # DS may still be real mode's; ap_32 loads the same as this
        pushl   %eax
        movl    $0x10, %eax
        movl    %eax, %ds
        lock incl (ap_nmis - ap_trampoline)(%esi)
        cmpl    $0x08, 8(%esp)
        je      1f
        # Between CR0.PE and the far jump CS is real mode's, which IRET would look up in the GDT: go where the jump goes.
        movl    (ap_far_32 - ap_trampoline)(%esi), %eax
        movl    %eax, 4(%esp)
        movl    $0x08, 8(%esp)
1:      popl    %eax
        iretl
        .code64
ap_nmi64:
        lock incl ap_nmis(%rip)
        iretq
ap_64:
        movq    ap_entry(%rip), %rax
        jmp     *%rax
        .p2align 3
        .globl  ap_words
        .hidden ap_words
ap_words:
ap_cr4:
        .quad   0
ap_root:
        .quad   0
ap_efer:
        .quad   0
ap_cr0:
        .quad   0
ap_entry:
        .quad   0
ap_refused:
        .quad   0
                                                # smp.py adds to these three, and the IDT's, where the page is
ap_gdt_pointer:
        .word   31
        .long   ap_gdt - ap_trampoline
        .word   0
ap_far_32:
        .long   ap_32 - ap_trampoline
        .word   0x08, 0
ap_far_64:
        .long   ap_64 - ap_trampoline
        .word   0x18, 0
ap_idt_pointer:
        .word   47
        .long   ap_idt - ap_trampoline
        .word   0
ap_seats:                                       # seats taken
        .quad   0
        .globl  ap_nmis
        .hidden ap_nmis
ap_nmis:
        .quad   0
ap_limit:                                       # how many CPUs are wanted
        .quad   0
        .p2align 3
        .globl  ap_idt
        .hidden ap_idt
ap_idt:                                         # vector 2 at 8, 16 and 32
        .quad   0
        .word   ap_nmi16 - ap_trampoline, 0
        .long   0
        .word   ap_nmi32 - ap_trampoline, 0x08, 0x8e00, 0
        .quad   0
        .word   ap_nmi64 - ap_trampoline, 0x18, 0x8e00, 0
        .quad   0
ap_gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00af9b000000ffff
        .org    ap_trampoline + 4096 - AP_SEATS * AP_SEAT_SIZE  # the seats; no assembler lets this go back
        .globl  ap_trampoline_end
        .hidden ap_trampoline_end
ap_trampoline_end:

# In the kernel, on the trampoline's root. Every CPU takes a number, and with it an area whose end is its stack.
        .section .text, "ax", @progbits
        function ap_start
        movl    $1, %eax
        lock xaddq %rax, ap_taken(%rip)
        cmpq    ap_expected(%rip), %rax
        jae     ap_park
        movq    %rax, %rdi
        incq    %rax
        imulq   ap_area_size(%rip), %rax
        addq    ap_areas(%rip), %rax
        movq    %rax, %rsp
        xorl    %ebp, %ebp
        call    *ap_handler(%rip)
        function ap_park
        cli
        hlt
        jmp     ap_park

# Interrupts from other CPUs. RDI: the vector.
        .macro  interrupt name, vector
        function \name
        pushq   %rdi
        movl    $\vector, %edi
        jmp     interrupt_common
        .endm
        interrupt ipi_shoot_down, 0xf0
        interrupt ipi_spurious, 0xff
interrupt_common:
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %rbp
        movq    %rsp, %rbp
        andq    $-16, %rsp
        cld
        call    *ipi_handler(%rip)
        movq    %rbp, %rsp
        popq    %rbp
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        popq    %rdi
        iretq

        .section .data, "aw", @progbits
        .p2align 3
        .macro  variable name
        .globl  \name
        .hidden \name
\name:
        .quad   0
        .endm
        variable ap_taken
        variable ap_expected
        variable ap_area_size
        variable ap_areas
        variable ap_handler
        variable ipi_handler
