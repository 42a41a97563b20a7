# Where the parts of the image end; linked last.
        .macro  end name
        .p2align 12
        .globl  \name
        .hidden \name
\name:
        .endm

        .section .text, "ax", @progbits
        end     _etext
        .section .rodata, "a", @progbits
        end     _erodata
        .section .lowbss, "aw", @nobits
        end     _end
