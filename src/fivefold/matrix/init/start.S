# What the init cannot say in Python: its entry, system calls, and an access that may raise a signal.
# Source: System V ABI for x86-64, "Linux conventions"; rt_sigaction(2), *ucontext.h*.

        .set    SA_FLAGS, 0x44000004            # SA_SIGINFO, SA_RESTORER, SA_NODEFER
        .set    UC_RIP, 168                     # of ucontext: 40 bytes before the registers, RIP is the 17th
        .set    SI_CODE, 8
        .set    SI_ADDR, 16

        .section .head, "ax", @progbits
        .globl  _start
_start:
        movq    %rsp, %rdi
        andq    $-16, %rsp
        call    init_main
        ud2

        .text
        .globl  linux
        .type   linux, @function
# linux(number, a, b, c, d, e) -> the result, or minus the error
linux:
        movq    %rdi, %rax
        movq    %rsi, %rdi
        movq    %rdx, %rsi
        movq    %rcx, %rdx
        movq    %r8, %r10
        movq    %r9, %r8
        syscall
        ret

        .globl  map_pages
        .type   map_pages, @function
# map_pages(address, length, flags) -> mmap's result for private memory that is readable and writable
map_pages:
        movq    %rdx, %r10
        movl    $3, %edx
        movq    $-1, %r8
        xorl    %r9d, %r9d
        movl    $9, %eax
        syscall
        ret

        .globl  probe
        .type   probe, @function
# probe(address) -> 0 where a byte can be written, else the signal
probe:
        movl    $0, seen_signal(%rip)
        movb    $0x5a, (%rdi)
probe_resume:
        movl    seen_signal(%rip), %eax
        ret

        .globl  signal_code
        .type   signal_code, @function
signal_code:
        movl    seen_code(%rip), %eax
        ret

        .globl  signal_address
        .type   signal_address, @function
signal_address:
        movq    seen_address(%rip), %rax
        ret

# The handler of SIGSEGV and SIGBUS: notes what came, and has the program go on behind the access.
take_signal:
        movl    %edi, seen_signal(%rip)
        movl    SI_CODE(%rsi), %eax
        movl    %eax, seen_code(%rip)
        movq    SI_ADDR(%rsi), %rax
        movq    %rax, seen_address(%rip)
        leaq    probe_resume(%rip), %rax
        movq    %rax, UC_RIP(%rdx)
        ret

restorer:
        movl    $15, %eax
        syscall
        ud2

        .globl  handle_signal
        .type   handle_signal, @function
# handle_signal(number) -> rt_sigaction's result
handle_signal:
        leaq    action(%rip), %rsi
        leaq    take_signal(%rip), %rax
        movq    %rax, (%rsi)
        movq    $SA_FLAGS, 8(%rsi)
        leaq    restorer(%rip), %rax
        movq    %rax, 16(%rsi)
        xorl    %edx, %edx
        movl    $8, %r10d
        movl    $13, %eax
        syscall
        ret

        .data
        .balign 8
action: .quad   0, 0, 0, 0
seen_address:
        .quad   0
seen_signal:
        .long   0
seen_code:
        .long   0
