# The entry of the EFI application. The firmware uses the Microsoft calling convention.

        .section .head, "ax", @progbits
        .code64
        .globl  efi_base
        .hidden efi_base
efi_base:
        jmp     efi_entry
        .p2align 3
        .globl  efi_words
        .hidden efi_words
efi_words:                                      # filled by who writes the file; offsets are from efi_base
        .fill   8, 8, 0

# RCX: handle of this image, RDX: system table. Returns a status if the kernel cannot be started.
        .globl  efi_entry
        .hidden efi_entry
efi_entry:
        pushq   %rdi
        pushq   %rsi
        subq    $8, %rsp
        movq    %rcx, %rdi
        movq    %rdx, %rsi
        call    efi_main
        addq    $8, %rsp
        popq    %rsi
        popq    %rdi
        ret

        .section .text, "ax", @progbits
# RDI: the kernel's 64-bit entry, RSI: start information.
        .p2align 4
        .globl  efi_jump
        .hidden efi_jump
efi_jump:
        cli
        jmp     *%rdi
