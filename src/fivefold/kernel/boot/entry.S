# What Python cannot say: the entries, the changes of mode, and the instructions that are symbols.
#
# Everything before `high_entry` runs at the address where the loader put the image and finds
# itself relative to the instruction. Sections: .head comes first in the image, .lowbss holds
# what must survive the clearing of .bss.

        .set    CR0_PE, 1
        .set    CR0_WP_BIT, 16
        .set    CR0_PG_BIT, 31
        .set    CR4_PAE, 0x20
        .set    CR4_LA57, 0x1000
        .set    MSR_EFER, 0xc0000080
        .set    EFER_LME_BIT, 8

# A place that an engine polices: the name of the instruction that follows.
        .macro  site name
        .globl  \name
        .hidden \name
\name:
        .endm

        .section .rodata, "a", @progbits
        .p2align 12
        .globl  _rodata
        .hidden _rodata
_rodata:

        .section .head, "ax", @progbits
        .globl  _text
        .hidden _text
_text:

# ---- 32-bit entry: protected mode, flat segments, no paging. EBX: start information. ----
# There is no stack yet. The four bytes of the magic number serve as one, to learn where we are.
        .code32
        .macro  find_image                      # EBP: where `_text` is, ESP: our stack
        cli
        cld
        movl    (%ebx), %eax
        leal    4(%ebx), %esp
        call    1f
1:      popl    %ebp
        movl    %eax, (%ebx)
        subl    $(1b - _text), %ebp
        leal    (boot_stack_top - _text)(%ebp), %esp
        .endm
        .globl  pvh_entry
        .hidden pvh_entry
pvh_entry:
        xorl    %esi, %esi                      # ESI: 0 for the mode that is decided here
entry_32:
        find_image
        call    check_cpu
with_stack:
        pushl   $0                              # i386 C calling convention, 64-bit arguments
        pushl   %esi
        pushl   $0
        leal    (boot_tables - _text)(%ebp), %eax
        pushl   %eax
        pushl   $0
        pushl   %ebx
        call    startup_32_blob                 # EAX: root, EDX: reason
        addl    $24, %esp
        movl    %eax, %edi
        leal    (head_gdt - _text)(%ebp), %eax
        movl    %eax, (head_gdt_pointer + 2 - _text)(%ebp)
        site    site_head_lgdt
        lgdt    (head_gdt_pointer - _text)(%ebp)
        pushl   $0x08
        leal    (2f - _text)(%ebp), %eax
        pushl   %eax
        lretl
2:      movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $CR4_PAE, %eax
        cmpl    $1, %edx                        # detect.REASON_CPU_HAS_LA57
        jne     3f
        orl     $CR4_LA57, %eax
3:
        site    site_head_cr4
        movl    %eax, %cr4
        site    site_head_cr3
        movl    %edi, %cr3
        movl    $MSR_EFER, %ecx
        rdmsr
        btsl    $EFER_LME_BIT, %eax
        site    site_head_efer
        wrmsr
        movl    %cr0, %eax
        btsl    $CR0_PG_BIT, %eax
        btsl    $CR0_WP_BIT, %eax
        site    site_head_cr0
        movl    %eax, %cr0
        pushl   $0x18
        leal    (from_32bit - _text)(%ebp), %eax
        pushl   %eax
        lretl

# ---- The same, for loaders that start in 32 bits only: go on to the 64-bit entry in a given mode. ----
# ESI: the number of levels that paging gets, whatever the CPU and the command line say.
        .globl  stub_long48
        .hidden stub_long48
stub_long48:
        movl    $4, %esi
        jmp     entry_32
        .globl  stub_long57
        .hidden stub_long57
stub_long57:
        movl    $5, %esi
        jmp     entry_32

# ---- The same, for multiboot2 loaders. EAX: their magic number, EBX: their information, which is made PVH's. ----
        .globl  multiboot2_entry
        .hidden multiboot2_entry
multiboot2_entry:
        cmpl    $0x36d76289, %eax
        jne     2f                              # EBX is not known to hold anything: halt without a report
        find_image
        call    check_cpu
        .irp    bound, _end, _text, multiboot2_info
        leal    (\bound - _text)(%ebp), %eax
        pushl   $0
        pushl   %eax
        .endr
        pushl   $0
        pushl   %ebx
        call    take_multiboot2_blob            # start information, or what `startup.py` says is wrong with it
        addl    $32, %esp
        leal    (multiboot2_info - _text)(%ebp), %ebx
        xorl    %esi, %esi
        jmp     with_stack
2:      hlt
        jmp     2b
        .p2align 3
        .globl  multiboot2_header
        .hidden multiboot2_header
multiboot2_header:
        .fill   128, 1, 0                       # written by who places the image (boot/image/multiboot2.py)

        .p2align 4
head_gdt:
        .quad   0
        .quad   0x00cf9b000000ffff              # 0x08: 32-bit code
        .quad   0x00cf93000000ffff              # 0x10: data
        .quad   0x00af9b000000ffff              # 0x18: 64-bit code
head_gdt_pointer:
        .word   31
        .quad   0

        .code64
from_32bit:
        movl    %ebx, %ebx                      # start information, now 64 bits wide
        testl   %esi, %esi
        movq    %rbx, %rsi
        jnz     entry_64
        call    load_early_descriptors
        call    clear_bss
        xorl    %r12d, %r12d                    # entered with no levels
        jmp     common_64

# ---- 64-bit entry: long mode with paging on in either depth. RSI: start information. ----
# The image, the start information and what it points to are in an identity map.
        .p2align 4
        .globl  entry_64
        .hidden entry_64
entry_64:
        cli
        cld
        leaq    boot_stack_top(%rip), %rsp
        movq    %rsi, %rbx
        call    load_early_descriptors
        call    clear_bss
        movq    %cr4, %rax
        movl    $4, %r12d
        btl     $12, %eax
        adcl    $0, %r12d                       # entered with 4 or 5 levels
        movq    %rbx, %rdi
        leaq    _text(%rip), %rsi
        leaq    _end(%rip), %rdx
        call    switch_mode
        testq   %rax, %rax
        jz      common_64
        call    trampoline_call
common_64:
        movq    %rbx, %rdi
        leaq    _text(%rip), %rsi
        leaq    _end(%rip), %rdx
        call    choose_place                    # kaslr: the image may go on somewhere else
        leaq    _text(%rip), %rsi
        cmpq    %rsi, %rax
        je      placed_64
        movq    %rax, %r13
        movq    %rsi, %r14                      # where it was
        movq    %rax, %rdi
        leaq    _end(%rip), %rcx
        subq    %rsi, %rcx
        shrq    $3, %rcx
        # The copy takes all but the registers: code, variables, and the stack that this runs on. The tables that
        # map both places (identity map) are walked until the early ones are loaded; choose_place has seen to it
        # that the copy does not lie on them, on what the loader says, or on an earlier kernel (in_use.py).
        # An NMI in the middle is counted in the old image only: the GDT and IDT in use are still its own.
        rep movsq
        leaq    _text(%rip), %rdx
        leaq    boot_stack_top(%rip), %rcx
        subq    %rdx, %rcx
        leaq    (%rcx, %r13), %rsp
        leaq    moved_64(%rip), %rax
        subq    %rdx, %rax
        addq    %r13, %rax
        jmp     *%rax
moved_64:
        movq    early_nmi_count(%rip), %r15
        call    load_early_descriptors          # the early tables will not map the old image, nor its GDT and IDT
        leaq    _text(%rip), %rdx
        leaq    early_nmi_count(%rip), %rax
        subq    %rdx, %rax
        movq    (%rax, %r14), %rax              # NMIs that the old image counted after that word was copied
        subq    %r15, %rax
        addq    %rax, early_nmi_count(%rip)
placed_64:
        movq    %rbx, %rdi
        leaq    _text(%rip), %rsi
        leaq    _end(%rip), %rdx
        movq    %r12, %rcx
        call    startup_64
        site    site_early_cr3
        movq    %rax, %cr3
        movq    $high_entry, %rax
        jmp     *%rax

clear_bss:
        leaq    __bss_start(%rip), %rdi
        leaq    __bss_end(%rip), %rcx
        subq    %rdi, %rcx
        addq    $7, %rcx
        shrq    $3, %rcx
        xorl    %eax, %eax
        rep stosq
        ret

# RAX: the two low pages. Upper halves of registers do not survive 32-bit code; memory does.
        .globl  trampoline_call
        .hidden trampoline_call
trampoline_call:
        movq    %rbx, saved_rbx(%rip)
        movq    %r12, saved_r12(%rip)
        movq    %rsp, saved_rsp(%rip)
        movl    %eax, %edi
        leaq    trampoline_return(%rip), %rcx
        movq    %rcx, (4096 + trampoline_back - trampoline_start)(%rax)
        addq    $4096, %rax
        jmp     *%rax
trampoline_return:
        movq    saved_rsp(%rip), %rsp
        movq    saved_rbx(%rip), %rbx
        movq    saved_r12(%rip), %r12
        call    load_early_descriptors
        jmp     take_trampoline_count

# ---- The trampoline: changes CR4.LA57, which needs paging off and so code below 4 GiB. ----
# Copied to the second borrowed page; EDI: the first, which holds the other mode's root.
# An NMI may arrive anywhere: one IDT serves both halves of the window, since vector 2 lies at
# byte 32 with the 16-byte gates of long mode and at byte 16 with the 8-byte gates after it.
        .p2align 4
        .globl  trampoline_start
        .hidden trampoline_start
trampoline_start:
        leaq    trampoline_stack(%rip), %rsp
        leaq    trampoline_start(%rip), %rbp
        leaq    trampoline_gdt(%rip), %rax
        movq    %rax, trampoline_gdt_pointer + 2(%rip)
        lgdt    trampoline_gdt_pointer(%rip)
        leaq    trampoline_nmi64(%rip), %rax
        movw    %ax, trampoline_idt + 32(%rip)
        shrl    $16, %eax
        movw    %ax, trampoline_idt + 38(%rip)
        leaq    trampoline_nmi32(%rip), %rax
        movw    %ax, trampoline_idt + 16(%rip)
        shrl    $16, %eax
        movw    %ax, trampoline_idt + 22(%rip)
        leaq    trampoline_idt(%rip), %rax
        movq    %rax, trampoline_idt_pointer + 2(%rip)
        lidt    trampoline_idt_pointer(%rip)
        pushq   $0x08
        leaq    trampoline_32(%rip), %rax
        pushq   %rax
        lretq
        .code32
trampoline_32:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %cr0, %eax
        btrl    $CR0_PG_BIT, %eax
        movl    %eax, %cr0
        movl    %edi, %cr3
        movl    $MSR_EFER, %ecx
        rdmsr
        btsl    $EFER_LME_BIT, %eax             # a hypervisor may have lost it; some refuse to see it written
        jc      1f
        wrmsr
1:      movl    %cr4, %eax
        xorl    $CR4_LA57, %eax
        movl    %eax, %cr4
        movl    %cr0, %eax
        btsl    $CR0_PG_BIT, %eax
        movl    %eax, %cr0
        pushl   $0x18
        leal    (trampoline_64 - trampoline_start)(%ebp), %eax
        pushl   %eax
        lretl
        .code64
trampoline_64:
        movl    %esi, %esi                      # what kexec hands on; its upper half is undefined here
        jmp     *trampoline_back(%rip)
trampoline_nmi64:
        incl    trampoline_nmi_count(%rip)
        iretq
        .code32
trampoline_nmi32:
        incl    (trampoline_nmi_count - trampoline_start)(%ebp)
        iretl
        .code64
        .p2align 3
        .globl  trampoline_back
        .hidden trampoline_back
trampoline_back:
        .quad   0
trampoline_nmi_count:
        .long   0, 0
trampoline_gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00af9b000000ffff
trampoline_gdt_pointer:
        .word   31
        .quad   0
        .p2align 3
trampoline_idt:
        .quad   0, 0
        .quad   0x00008e0000080000              # vector 2 as 8-byte gate, 32-bit code
        .quad   0
        .quad   0x00008e0000180000              # vector 2 as 16-byte gate, 64-bit code
        .quad   0
trampoline_idt_pointer:
        .word   47
        .quad   0
        .p2align 4
        .fill   256, 1, 0
trampoline_stack:
        .globl  trampoline_end
        .hidden trampoline_end
trampoline_end:

# ---- At the linked address, on the early tables. ----
        .section .text, "ax", @progbits
high_entry:
        leaq    boot_stack_top(%rip), %rsp
        xorl    %ebp, %ebp
        leaq    kernel_gdt(%rip), %rdi
        movl    $80, %esi
        call    load_gdt
        leaq    startup.table(%rip), %rdi
        movq    %cr4, %rax
        btl     $12, %eax
        jc      1f
        call    la48_start_kernel
        ud2
1:      call    la57_start_kernel
        ud2

# ---- Instructions that change how memory is seen. ----
        .macro  function name
        .p2align 4
        .globl  \name
        .hidden \name
\name:
        .endm

        function write_cr0
        site    site_cr0
        movq    %rdi, %cr0
        ret
        function write_cr3
        site    site_cr3
        movq    %rdi, %cr3
        ret
        function write_cr4
        site    site_cr4
        movq    %rdi, %cr4
        ret
        function write_msr
        movl    %edi, %ecx
        movl    %esi, %eax
        movq    %rsi, %rdx
        shrq    $32, %rdx
        site    site_msr
        wrmsr
        ret
        function load_idt
        subq    $24, %rsp
        decl    %esi
        movw    %si, 6(%rsp)
        movq    %rdi, 8(%rsp)
        site    site_lidt
        lidt    6(%rsp)
        addq    $24, %rsp
        ret
        function load_gdt
        subq    $24, %rsp
        decl    %esi
        movw    %si, 6(%rsp)
        movq    %rdi, 8(%rsp)
        site    site_lgdt
        lgdt    6(%rsp)
        addq    $24, %rsp
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        popq    %rax
        pushq   $0x18
        pushq   %rax
        lretq
        function load_task_register
        ltr     %di
        ret

# ---- The last jump of this kernel (kexec.py). RDI: root, RSI: entry, RDX: start information, RCX: low pages. ----
# Global pages go, LA57 stays.
        .macro  leave_tables which
        cli
        movq    %cr4, %rax
        andq    $~0x80, %rax
        site    site_kexec_cr4\which
        movq    %rax, %cr4
        site    site_kexec_cr3\which
        movq    %rdi, %cr3
        .endm
        function kexec_jump
        leave_tables
        movq    %rsi, %rax
        movq    %rdx, %rsi
        jmp     *%rax
        function kexec_jump_down
        leave_tables _down
        movq    %rdx, %rsi
        movl    %ecx, %edi
        leaq    4096(%rcx), %rax
        jmp     *%rax

# ---- Probes: accesses that may fault (traps.py). RAX: 0, or what the handler put there. ----
        function probe_read
        xorl    %eax, %eax
        .globl  probe_read_site
        .hidden probe_read_site
probe_read_site:
        movq    (%rdi), %rdx
        movq    %rdx, (%rsi)
        .globl  probe_end
        .hidden probe_end
probe_end:
        ret
        function probe_write
        xorl    %eax, %eax
        .globl  probe_write_site
        .hidden probe_write_site
probe_write_site:
        lock orb $0, (%rdi)
        ret
        function probe_execute
        xorl    %eax, %eax
        movq    %rdi, probe_target(%rip)
        .globl  probe_execute_site
        .hidden probe_execute_site
probe_execute_site:
        call    *%rdi
        movq    $0, probe_target(%rip)
        xorl    %eax, %eax
        ret
        .globl  probe_execute_end
        .hidden probe_execute_end
probe_execute_end:
        movq    $0, probe_target(%rip)
        addq    $8, %rsp
        ret
        function module_stub
        ret

# ---- Memory of the program whose root is loaded, read on purpose: only here may ring 0 see pages of ring 3. ----
        function user_read
        xorl    %eax, %eax
        cmpb    $0, smap_on(%rip)
        je      user_read_site
        stac
        .globl  user_read_site
        .hidden user_read_site
user_read_site:
        movq    (%rdi), %rdx
        movq    %rdx, (%rsi)
        .globl  user_read_end
        .hidden user_read_end
user_read_end:
        cmpb    $0, smap_on(%rip)
        je      1f
        clac
1:      ret

# ---- Vectors that have stacks of their own, raised on purpose; the handler notes where its frame lies. ----
        .globl  raise_start
        .hidden raise_start
raise_start:
        function raise_debug
        int     $1
        ret
        function raise_nmi
        int     $2
        ret
        function raise_machine_check
        int     $18
        ret
        .globl  raise_end
        .hidden raise_end
raise_end:

# What traps.py finds in a frame below the vector: all registers but RSP.
        .macro  save_registers
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rbx
        pushq   %rbp
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        .endm
        .macro  restore_registers
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rbp
        popq    %rbx
        popq    %rdx
        popq    %rcx
        popq    %rax
        .endm

# ---- Exceptions: a stub of 16 bytes for each vector; the CPU pushes an error code for some. ----
        .p2align 4
        .globl  trap_stubs
        .hidden trap_stubs
trap_stubs:
        .set    vector, 0
        .rept   32
        .p2align 4
        .if     vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
        .else
        pushq   $0
        .endif
        pushq   $vector
        jmp     trap_common
        .set    vector, vector + 1
        .endr
trap_common:
        save_registers
        cld
        # The CPU clears AC for system calls (FMASK), but not for exceptions: a program could switch SMAP off for us.
        cmpb    $0, smap_on(%rip)
        je      1f
        clac
1:
        movq    %rsp, %rdi
        movq    %rsp, %rbp
        andq    $-16, %rsp
        call    *trap_handler(%rip)
        movq    %rbp, %rsp
        restore_registers
        addq    $16, %rsp
        iretq

# ---- Ring 3 (syscall.py). RDI: where to, RSI: its stack, RDX: its argument. ----
        function enter_user
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, kernel_rsp(%rip)
        pushq   $0x43
        pushq   %rsi
        pushq   $0x2                            # interrupts off: no controller is set up
        pushq   $0x4b
        pushq   %rdi
        movq    %rdx, %rdi
        iretq
        .globl  enter_user_end
        .hidden enter_user_end
enter_user_end:
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret

# SYSCALL leaves the program's stack in RSP. The frame is laid out as a trap's.
        function syscall_entry
        movq    %rsp, user_rsp(%rip)
        leaq    trap_stack_top(%rip), %rsp
        pushq   $0x43
        pushq   user_rsp(%rip)
        pushq   %r11
        pushq   $0x4b
        pushq   %rcx
        pushq   $0
        pushq   $-1
        save_registers
        cld
        movq    %rsp, %rdi
        movq    %rsp, %rbp
        andq    $-16, %rsp
        call    *syscall_handler(%rip)          # RAX: 1 for SYSRET, 0 for IRET
        movq    %rbp, %rsp
        testl   %eax, %eax
        restore_registers
        leaq    16(%rsp), %rsp
        jz      iret_site
        movq    (%rsp), %rcx
        movq    16(%rsp), %r11
        movq    24(%rsp), %rsp
        sysretq
        .globl  iret_site
        .hidden iret_site
iret_site:
        iretq

# A program, copied to where a process runs it. RDI: how many system calls to make before it exits.
# It exits with the sum of what they returned; each returns its argument plus one.
        .section .rodata, "a", @progbits
        .p2align 3
        .globl  user_program
        .hidden user_program
user_program:
        movq    %rdi, %rbx
        xorl    %ebp, %ebp
        pushq   %rbx
1:      testq   %rbx, %rbx
        jz      2f
        movl    $1, %eax
        movq    %rbx, %rdi
        syscall
        addq    %rax, %rbp
        decq    %rbx
        jmp     1b
2:      popq    %rax
        movq    %rbp, %rdi
        xorl    %eax, %eax
        syscall
        .p2align 3
        .globl  user_jumper
        .hidden user_jumper
user_jumper:                                    # returns from a system call to its argument
        movl    $2, %eax
        syscall
        ud2
        .p2align 3
        .globl  user_touch
        .hidden user_touch
user_touch:                                     # reads its argument
        movq    (%rdi), %rax
        jmp     user_allowed
        .p2align 3
        .globl  user_store
        .hidden user_store
user_store:                                     # writes to its argument
        movb    $0, (%rdi)
        jmp     user_allowed
        .p2align 3
        .globl  user_jump
        .hidden user_jump
user_jump:                                      # goes to its argument
        jmp     *%rdi
        .p2align 3
        .globl  user_reader
        .hidden user_reader
user_reader:                                    # has the kernel read its argument, and exits with that
        movl    $3, %eax
        syscall
        movq    %rax, %rdi
        xorl    %eax, %eax
        syscall
        .p2align 3
        .globl  user_aligner
        .hidden user_aligner
user_aligner:                                   # sets AC, then raises an exception
        pushfq
        orl     $0x40000, (%rsp)
        popfq
        ud2
        .p2align 3
        .globl  user_flags
        .hidden user_flags
user_flags:                                     # exits with what it could set of IF and IOPL
        pushfq
        orl     $0x3200, (%rsp)
        popfq
        pushfq
        popq    %rdi
        andl    $0x3200, %edi
        xorl    %eax, %eax
        syscall
        .p2align 3
user_allowed:
        xorl    %edi, %edi
        xorl    %eax, %eax
        syscall
        ud2

# What ring 3 must not do, each in a slot of 32 bytes, grouped by how the CPU refuses it. RDI: memory of the program's.
        .macro  group name
        .p2align 5
        .globl  \name
        .hidden \name
\name:
        .endm
        .macro  refused instructions:vararg
        .p2align 5
        \instructions
        jmp     user_allowed
        .endm
        group   user_privileged                 # #GP(0)
        refused hlt
        refused cli
        refused sti
        refused clts
        refused invlpg (%rdi)
        refused lgdt (%rdi)
        refused lidt (%rdi)
        refused lldt %ax
        refused ltr %ax
        refused lmsw %ax
        refused swapgs
        group   user_sysret                     # #GP(0), and that or #UD on a CPU without it
        refused sysretq
        group   user_caches                     # #GP(0)
        refused invd
        refused wbinvd
        group   user_registers                  # #GP(0)
        .irp    number, 0, 2, 3, 4, 8
        refused movq %cr\number, %rax
        refused movq %rax, %cr\number
        .endr
        .irp    number, 0, 1, 2, 3, 6, 7
        refused movq %db\number, %rax
        refused movq %rax, %db\number
        .endr
        .irp    number, 0x1b, 0x10, 0xc0000080, 0xc0000082, 0xc0000102
        .p2align 5
        movl    $\number, %ecx
        rdmsr
        jmp     user_allowed
        .p2align 5
        movl    $\number, %ecx
        wrmsr
        jmp     user_allowed
        .endr
        group   user_port_beyond                # the last port, which no map in a TSS of this size could open
        movl    $0xffff, %edx
        inb     %dx, %al
        jmp     user_allowed
        group   user_ports                      # #GP(0): the I/O map lies beyond the TSS
        .irp    number, 0x20, 0x60, 0x64, 0x70, 0x71, 0x80, 0x92
        refused inb $\number, %al
        refused outb %al, $\number
        .endr
        .irp    number, 0, 0x2f8, 0x310, 0x337, 0x338, 0x3f8, 0xcf8, 0xcf9
        .p2align 5
        movl    $\number, %edx
        inb     %dx, %al
        jmp     user_allowed
        .p2align 5
        movl    $\number, %edx
        outb    %al, %dx
        jmp     user_allowed
        .endr
        .p2align 5
        movl    $0x64, %edx
        insb
        jmp     user_allowed
        .p2align 5
        movl    $0x64, %edx
        movq    %rdi, %rsi
        outsb
        jmp     user_allowed
        .p2align 5
        movl    $0xcf8, %edx
        inl     %dx, %eax
        jmp     user_allowed
        group   user_undefined                  # #UD
        refused ud2
        refused .byte 0x0f, 0x01, 0xca          # CLAC
        refused .byte 0x0f, 0x01, 0xcb          # STAC
        refused .byte 0xf3, 0x48, 0x0f, 0xae, 0xc0      # RDFSBASE, which CR4 does not allow
        group   user_selectors                  # #GP with the selector
        .p2align 5
        movl    $0x10, %eax
        movl    %eax, %ds
        jmp     user_allowed
        .p2align 5
        movl    $0x20, %eax
        movl    %eax, %ss
        jmp     user_allowed
        .p2align 5
        movl    $0x28, %eax
        movl    %eax, %es
        jmp     user_allowed
        group   user_returns                    # #GP with the kernel's selector
        pushq   $0x18
        pushq   %rdi
        lretq
        .p2align 5
        pushq   $0x43
        pushq   %rsp
        pushq   $2
        pushq   $0x18
        pushq   %rdi
        iretq
        group   user_gates                      # #GP with the gate's number
        refused int $2
        refused int3
        refused int $14
        refused int $0x80
        group   user_table_registers            # #GP(0) with UMIP, else allowed
        refused sgdt (%rdi)
        refused sidt (%rdi)
        refused sldt %eax
        refused str %eax
        refused smsw %eax
        group   user_refused_end
        .p2align 3
        .globl  user_program_end
        .hidden user_program_end
user_program_end:

        .section .data, "aw", @progbits
        .p2align 4
        .globl  _data
        .hidden _data
_data:
        .globl  kernel_gdt
        .hidden kernel_gdt
kernel_gdt:
        .quad   0
        .quad   0x00cf9b000000ffff              # 0x08: 32-bit code
        .quad   0x00cf93000000ffff              # 0x10: data
        .quad   0x00af9b000000ffff              # 0x18: 64-bit code
        .quad   0x00cf93000000ffff              # 0x20: data again, where SYSCALL looks for it
        .quad   0, 0                            # 0x28: TSS
        .quad   0x00cffb000000ffff              # 0x38: user 32-bit code, which SYSRET counts from
        .quad   0x00cff3000000ffff              # 0x40: user data
        .quad   0x00affb000000ffff              # 0x48: user 64-bit code
        .globl  task_state
        .hidden task_state
task_state:
        .fill   104, 1, 0
        .p2align 3
        .globl  trap_handler
        .hidden trap_handler
trap_handler:
        .quad   0
        .globl  probe_target
        .hidden probe_target
probe_target:
        .quad   0
        .globl  trampoline_used
        .hidden trampoline_used
trampoline_used:
        .quad   0
        .globl  syscall_handler
        .hidden syscall_handler
syscall_handler:
        .quad   0
        .globl  kernel_rsp
        .hidden kernel_rsp
kernel_rsp:
        .quad   0
user_rsp:
        .quad   0
        .globl  smap_on
        .hidden smap_on
smap_on:
        .quad   0
saved_rbx:
        .quad   0
saved_r12:
        .quad   0
saved_rsp:
        .quad   0

# The stack has a page below it that the final tables leave out.
        .section .lowbss, "aw", @nobits
        .p2align 12
        .globl  stack_guard
        .hidden stack_guard
stack_guard:
        .fill   4096, 1, 0
boot_stack:
        .fill   16384, 1, 0
boot_stack_top:
        .globl  boot_tables
        .hidden boot_tables
boot_tables:
        .fill   7 * 4096, 1, 0
        .globl  boot_tables_end
        .hidden boot_tables_end
boot_tables_end:
multiboot2_info:
        .fill   0x5000, 1, 0                    # multiboot2.INFO_SIZE
        .globl  exception_stacks                # for layouts without an entry area (kernel_map.py)
        .hidden exception_stacks
        .p2align 12
exception_stacks:
        .fill   4 * 4096, 1, 0
trap_stack:
        .fill   16384, 1, 0
        .globl  trap_stack_top
        .hidden trap_stack_top
trap_stack_top:
