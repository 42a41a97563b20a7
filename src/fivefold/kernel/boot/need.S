# What the CPU must have, asked in 32-bit code before anything that was compiled runs, and said where it is missing.
#
# Compiled code uses CMOV, and the entry PAE, MSRs and long mode; a CPU without one of them would fault without a word.
# NX is asked for later, in code that has strings (startup.py). Source: AMD64 APM volume 3, appendix "CPUID".

        .section .head, "ax", @progbits
        .code32
# EBP: the image. Changes EAX, ECX and EDX; does not return if something is missing.
check_cpu:
        pushl   %ebx
        pushl   %esi
        leal    (lacks_cpuid - _text)(%ebp), %esi
        pushfl
        popl    %eax
        movl    %eax, %ecx
        xorl    $0x200000, %eax                 # ID: can be changed where there is CPUID
        pushl   %eax
        popfl
        pushfl
        popl    %eax
        xorl    %ecx, %eax
        btl     $21, %eax
        jnc     cpu_lacks
        leal    (lacks_leaf - _text)(%ebp), %esi
        xorl    %eax, %eax
        cpuid
        testl   %eax, %eax                      # an old CPU, or a BIOS that limits it, answers 0
        jz      cpu_lacks
        movl    $1, %eax
        cpuid
        leal    (lacks_msrs - _text)(%ebp), %esi
        btl     $5, %edx
        jnc     cpu_lacks
        leal    (lacks_pae - _text)(%ebp), %esi
        btl     $6, %edx
        jnc     cpu_lacks
        leal    (lacks_cmov - _text)(%ebp), %esi
        btl     $15, %edx
        jnc     cpu_lacks
        leal    (lacks_long_mode - _text)(%ebp), %esi
        movl    $0x80000000, %eax
        cpuid
        cmpl    $0x80000001, %eax               # an old CPU answers with a small number, or anything
        jb      cpu_lacks
        movl    $0x80000001, %eax
        cpuid
        btl     $29, %edx
        jnc     cpu_lacks
        popl    %esi
        popl    %ebx
        ret

# ESI: the text. The port is programmed as report.py does it; one that is not there reads as ones.
cpu_lacks:
        movl    $0x3fd, %edx
        inb     %dx, %al
        cmpb    $0xff, %al
        je      4f
        .irp    setting, 0x3fb80, 0x3f801, 0x3f900, 0x3fb03, 0x3fa07, 0x3fc03   # port and byte
        movl    $(\setting >> 8), %edx
        movb    $(\setting & 0xff), %al
        outb    %al, %dx
        .endr
1:      lodsb
        testb   %al, %al
        jz      4f
        movb    %al, %bl
        movl    $100000, %ecx
        movl    $0x3fd, %edx
2:      inb     %dx, %al
        testb   $0x20, %al
        jnz     3f
        decl    %ecx
        jnz     2b
3:      movl    $0x3f8, %edx
        movb    %bl, %al
        outb    %al, %dx
        jmp     1b
4:      movb    $0x12, %al                      # report.EXIT_PANIC
        outb    %al, $0xf4
5:      cli
        hlt
        jmp     5b

        .macro  lacks name, text
lacks_\name:
        .ascii  "Bail out! fivefold: this CPU has no "
        .asciz  "\text\n"
        .endm
        lacks   cpuid, "CPUID"
        lacks   leaf, "CPUID beyond leaf 0"
        lacks   msrs, "model-specific registers"
        lacks   pae, "PAE"
        lacks   cmov, "CMOV"
        lacks   long_mode, "long mode: it cannot run 64-bit code"
        .code64
