# The payload's entries, its change of mode, its exceptions, and the access itself.
# It is linked where it is loaded, below 4 GiB. Nothing is asked of a loader but flat 32-bit protected mode.

        .set    MSR_EFER, 0xc0000080
        .set    MSR_STAR, 0xc0000081
        .set    MSR_PKRS, 0x6e1
        .set    CS64, 0x08
        .set    DS0, 0x10
        .set    CS3, 0x1b
        .set    DS3, 0x23
        .set    TSS, 0x28
        .set    LDT, 0x38
        .set    CS32, 0x48

        .section .head, "ax", @progbits
        .globl  multiboot2_header
multiboot2_header:
        .p2align 3
mb2:    .long   0xe85250d6, 0, mb2_end - mb2, -(0xe85250d6 + 0 + (mb2_end - mb2))
        .word   3, 0                            # the entry
        .long   12, pvh_entry
        .p2align 3
        .word   0, 0
        .long   8
mb2_end:

        .code32
        .globl  pvh_entry
pvh_entry:
        cli
        cld
        movl    $boot_stack_top, %esp
        movl    $tables, %edi                   # 7 pages: PML5, PML4, PDPT, 4 x PD
        xorl    %eax, %eax
        movl    $7 * 1024, %ecx
        rep stosl
        movl    $tables + 0x1003, tables
        movl    $tables + 0x2003, tables + 0x1000
        movl    $tables + 0x3003, %eax
        movl    $tables + 0x2000, %edi
        movl    $4, %ecx
1:      movl    %eax, (%edi)
        addl    $0x1000, %eax
        addl    $8, %edi
        loop    1b
        movl    $0x83, %eax
        movl    $tables + 0x3000, %edi
        movl    $2048, %ecx
2:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    2b
        lgdt    gdt_pointer
        ljmpl   $CS32, $3f
3:      movl    $DS0, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $0x20, %eax                     # PAE
        movl    %eax, %cr4
        movl    $tables + 0x1000, %eax
        movl    %eax, %cr3
        movl    $MSR_EFER, %ecx                 # whatever firmware had set in it
        xorl    %edx, %edx
        movl    $0x900, %eax                    # NXE, LME
        wrmsr
        movl    $0x80000031, %eax               # PG, NE, ET, PE
        movl    %eax, %cr0
        ljmpl   $CS64, $start_64

# ---- UEFI: 64-bit code, RCX the image's handle, RDX the system table. The image is loaded where it is linked. ----
        .code64
        .globl  efi_entry
efi_entry:
        pushq   %rbx
        pushq   %rsi
        pushq   %rdi
        subq    $0x40, %rsp                     # room for the callee, a fifth argument; RSP is aligned
        movq    %rcx, %rsi
        movq    0x60(%rdx), %rbx                # BootServices
        movl    $8, %edi                        # attempts: the map may change until boot services end
1:      movq    $0x10000, efi_map_size
        movq    $efi_map_size, %rcx
        movq    $efi_map, %rdx
        movq    $efi_map_key, %r8
        movq    $efi_entry_size, %r9
        movq    $efi_version, %rax
        movq    %rax, 0x20(%rsp)
        call    *0x38(%rbx)                     # GetMemoryMap
        testq   %rax, %rax
        jnz     2f
        movq    %rsi, %rcx
        movq    efi_map_key, %rdx
        call    *0xe8(%rbx)                     # ExitBootServices
        testq   %rax, %rax
        jz      3f
        decl    %edi
        jnz     1b
2:      addq    $0x40, %rsp                     # the error is the firmware's to tell
        popq    %rdi
        popq    %rsi
        popq    %rbx
        ret
3:      cli
        lgdt    gdt_pointer
        movl    $boot_stack_top, %esp
        pushq   $CS32
        pushq   $4f
        lretq
        .code32
4:      movl    $DS0, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %cr0, %eax
        btrl    $31, %eax                       # paging ends, and with it long mode
        movl    %eax, %cr0
        jmp     pvh_entry

        .code64
start_64:
        movl    $boot_stack_top, %esp
        leaq    trap_stack_top(%rip), %rax
        movq    %rax, tss + 36(%rip)            # IST1, which every vector uses
        movq    %rax, tss + 4(%rip)
        leaq    tss(%rip), %rax
        call    load_tss
        leaq    idt(%rip), %rdi                 # 32 gates of DPL 3, so that level 3 may say INT3
        leaq    stubs(%rip), %rsi
        movl    $32, %ecx
4:      movq    %rsi, %rax
        movw    %ax, (%rdi)
        movw    $CS64, 2(%rdi)
        movw    $0xee01, 4(%rdi)
        shrq    $16, %rax
        movw    %ax, 6(%rdi)
        addq    $16, %rdi
        addq    $16, %rsi
        loop    4b
        leaq    idt(%rip), %rsi                 # the same without IST, but for vector 32, which is INT3 with IST2
        leaq    tss_idt(%rip), %rdi
        movl    $32, %ecx
5:      movq    (%rsi), %rax
        movq    %rax, (%rdi)
        movb    $0, 4(%rdi)
        movq    8(%rsi), %rax
        movq    %rax, 8(%rdi)
        addq    $16, %rsi
        addq    $16, %rdi
        loop    5b
        movq    tss_idt + 16*3(%rip), %rax
        movq    %rax, (%rdi)
        movb    $2, 4(%rdi)
        movq    tss_idt + 16*3 + 8(%rip), %rax
        movq    %rax, 8(%rdi)
        lidt    idt_pointer(%rip)
        movl    $MSR_STAR, %ecx                 # SYSRET: CS 0x18, level 3's; SS is whatever is before it
        xorl    %eax, %eax
        movl    $0x00080000, %edx
        wrmsr
        call    payload_main
6:      cli
        hlt
        jmp     6b

# ---- Four levels to five: through 32-bit code without paging. ----
        .globl  switch_to_five
switch_to_five:
        movq    %rsp, saved_rsp(%rip)
        pushq   $CS32
        leaq    6f(%rip), %rax
        pushq   %rax
        lretq
        .code32
6:      movl    $DS0, %eax
        movl    %eax, %ss
        movl    %cr0, %eax
        btrl    $31, %eax
        movl    %eax, %cr0
        movl    $tables, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $0x1000, %eax
        movl    %eax, %cr4
        movl    %cr0, %eax
        btsl    $31, %eax
        movl    %eax, %cr0
        ljmpl   $CS64, $7f
        .code64
7:      movq    saved_rsp(%rip), %rsp
        ret

        .globl  load_cr3
load_cr3:
        movq    %rdi, %cr3
        ret

# ---- One case: RDI points to its record (layout.py has the words). ----
        .globl  run_case
run_case:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, saved_rsp(%rip)
        movq    %rdi, current(%rip)
        movq    %rdi, %r15
        movq    8*18(%r15), %rax                # C_LDT
        testq   %rax, %rax
        jz      1f
        testl   $32, 8*2(%r15)                  # F_TSS
        jz      0f
        call    load_tss
        lidt    tss_idt_pointer(%rip)
        jmp     1f
0:
        movw    $0xffff, gdt + LDT(%rip)
        movw    %ax, gdt + LDT + 2(%rip)
        shrq    $16, %rax
        movb    %al, gdt + LDT + 4(%rip)
        movw    $0x0082, gdt + LDT + 5(%rip)
        movb    %ah, gdt + LDT + 7(%rip)
        shrq    $16, %rax
        movq    %rax, gdt + LDT + 8(%rip)
        movw    $LDT, %ax
        lldt    %ax
1:      movl    $MSR_EFER, %ecx
        movl    8*15(%r15), %eax                # C_EFER
        movl    8*15+4(%r15), %edx
        cmpq    base_efer(%rip), %rax
        je      2f
        wrmsr
2:      testl   $2, 8*2(%r15)                   # F_PKS
        jz      3f
        movl    $MSR_PKRS, %ecx
        movl    8*17(%r15), %eax                # C_PKRS
        xorl    %edx, %edx
        wrmsr
3:      xorl    %eax, %eax
        movq    %rax, %cr2
        movq    8*12(%r15), %rax                # C_CR0
        movq    %rax, %cr0
        movq    8*13(%r15), %rax                # C_CR3
        movq    %rax, %cr3
        movq    8*14(%r15), %rax                # C_CR4
        movq    %rax, %cr4
        testl   $1, 8*2(%r15)                   # F_PKE
        jz      4f
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        movl    8*16(%r15), %eax                # C_PKRU
        wrpkru
4:      movq    8*4(%r15), %rax                 # C_CS
        leaq    8(%rax), %rcx                   # the data segment follows the code segment
        pushq   %rcx
        pushq   8*5(%r15)                       # C_RSP
        pushq   8*6(%r15)                       # C_RFLAGS
        pushq   %rax
        pushq   8*3(%r15)                       # C_RIP_IN
        movq    8*7(%r15), %rax
        movq    8*8(%r15), %rbx
        movq    8*9(%r15), %rcx
        movq    8*10(%r15), %rdx
        movq    8*11(%r15), %rdi
        iretq

# A TSS at RAX, with its stacks, instead of the one before.
load_tss:
        movw    %ax, gdt + TSS + 2(%rip)
        shrq    $16, %rax
        movb    %al, gdt + TSS + 4(%rip)
        movb    $0x89, gdt + TSS + 5(%rip)      # available: LTR marks it busy
        movb    %ah, gdt + TSS + 7(%rip)
        shrq    $16, %rax
        movq    %rax, gdt + TSS + 8(%rip)
        movw    $TSS, %ax
        ltr     %ax
        ret

# ---- Every exception ends here. On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS. ----
trap:
        movq    %r15, saved_r15(%rip)
        movq    current(%rip), %r15
        movq    %rax, 8*21(%r15)                # C_VALUE
        movq    %cr2, %rax
        movq    %rax, 8*20(%r15)                # C_CR2
        movq    base_cr4(%rip), %rax
        movq    %cr4, %rcx
        andl    $0x1000, %ecx                   # LA57 stays as it is
        orq     %rcx, %rax
        movq    %rax, %cr4                      # drops global translations, where PGE was set
        movl    $0x80000031, %eax
        movq    %rax, %cr0
        movl    $0x04000000, %eax               # places.ROOT
        movq    %rax, %cr3
        movl    $MSR_EFER, %ecx
        movl    base_efer(%rip), %eax
        xorl    %edx, %edx
        testl   $4, 8*2(%r15)                   # F_EFER
        jnz     2f
        cmpl    %eax, 8*15(%r15)
        je      1f
2:      wrmsr
1:      movl    8(%rsp), %eax
        shlq    $32, %rax
        orq     (%rsp), %rax
        movq    %rax, 8*19(%r15)                # C_VECTOR
        movq    16(%rsp), %rax
        movq    %rax, 8*22(%r15)                # C_RIP
        movq    saved_rsp(%rip), %rsp
        testl   $32, 8*2(%r15)                  # F_TSS
        jz      3f
        leaq    tss(%rip), %rax
        call    load_tss
        lidt    idt_pointer(%rip)
3:      pushq   $2
        popfq
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret

        .p2align 4
stubs:
        .set    number, 0
        .rept   32
        .p2align 4
        .if     (number == 8) || (number >= 10 && number <= 14) || (number == 17) || (number == 21) || (number == 29) || (number == 30)
        .else
        pushq   $0
        .endif
        pushq   $number
        jmp     trap
        .set    number, number + 1
        .endr

        .section .data, "aw", @progbits
        .p2align 4
gdt:    .quad   0
        .quad   0x00af9b000000ffff              # 0x08: 64-bit code
        .quad   0x00cf93000000ffff              # 0x10: data
        .quad   0x00affb000000ffff              # 0x18: 64-bit code, level 3
        .quad   0x00cff3000000ffff              # 0x20: data, level 3
        .quad   0x0000890000000067, 0           # 0x28: TSS
        .quad   0, 0                            # 0x38: LDT
        .quad   0x00cf9b000000ffff              # 0x48: 32-bit code
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .quad   gdt
        .p2align 4
idt_pointer:
        .word   32 * 16 - 1
        .quad   idt
        .p2align 3
        .p2align 4
tss_idt_pointer:
        .word   33 * 16 - 1
        .quad   tss_idt
        .p2align 3
base_cr4:
        .quad   0x20
base_efer:
        .quad   0xd00                           # NXE, LMA, LME
current:
        .quad   0
saved_rsp:
        .quad   0
saved_r15:
        .quad   0
tss:    .fill   104, 1, 0

        .section .bss, "aw", @nobits
        .p2align 12
efi_map:
        .skip   0x10000
efi_map_size:
        .skip   8
efi_map_key:
        .skip   8
efi_entry_size:
        .skip   8
efi_version:
        .skip   8
        .p2align 12
tables: .skip   7 * 4096
idt:    .skip   32 * 16
tss_idt:
        .skip   33 * 16
        .skip   4096
boot_stack_top:
        .skip   4096
trap_stack_top:
        .skip   16
