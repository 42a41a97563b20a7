"""Examples of every command, for its help and the man page: a line to type, and what it is for."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "boot": (
        ("fivefold boot", "five levels and four, side by side"),
        ('fivefold boot --cpu la57 --cmdline "no5lvl"', "four levels on a CPU that has five"),
        ("fivefold boot --engine qemu --smp 4 --memory 2G", "on QEMU, with four CPUs"),
    ),
    "image": (
        ("fivefold image -o fivefold.elf", "for `qemu-system-x86_64 -kernel` and GRUB"),
        ("fivefold image --format iso -o fivefold.iso", "for UEFI and BIOS"),
    ),
    "conform": (
        ("fivefold conform", "Unicorn, 20,000 cases in both modes"),
        ("fivefold conform --qemu /opt/qemu/bin/qemu-system-x86_64 --json", "a QEMU of your own, for programs"),
        ("fivefold conform --case la57:read8:3:wp,nxe:fff0010044233128:pt=0", "one case again, with its listing"),
        ("fivefold conform --payload cases.elf --cases 5000", "to run where no memory can be read"),
        ("fivefold conform --judge serial.txt --cases 5000", "what that machine printed"),
    ),
    "matrix": (
        ("fivefold matrix bzImage", "a dozen machines, each mode as promised or why not"),
        (
            "fivefold matrix --preset quick linux-image-*.deb --keep failures",
            "four machines; what is left of failures",
        ),
        ("fivefold matrix bzImage --repeat 50 --state runs.json", "how often it fails, and whether that is chance"),
        ("git bisect run fivefold matrix --bisect --preset quick bzImage", "which commit lost it (build in a script)"),
    ),
    "vectors": (
        ("fivefold vectors -o vectors.json", "a thousand cases for a walker's tests"),
        ("fivefold vectors --schema", "what such a file looks like"),
    ),
    "gdb": (("fivefold gdb >> ~/.gdbinit", "every gdb session knows ff info, ff walk $rip, …"),),
    "volatility": (
        ("vol -f dump $( fivefold volatility dump ) linux.pslist", "processes of a dump, five levels or four"),
        ("fivefold volatility qmp:sock -o symbols", "for a guest that runs; symbols go into a folder"),
    ),
    "drgn": (
        ("fivefold drgn dump", "a session of drgn, without a VMCOREINFO note"),
        ("fivefold drgn qmp:sock -e 'print(prog.symbol(\"schedule\"))'", "run some code and end"),
    ),
    "judge": (("qemu-system-x86_64 … -serial stdio | fivefold judge -", "whether that machine passed"),),
    "info": (
        ("fivefold info guest.elf.xz", "a core, as of dump-guest-memory"),
        ("fivefold info pid:4242", "a QEMU that runs, without stopping it"),
    ),
    "walk": (
        ("fivefold walk guest.elf.xz ffffffff81000000 401000", "two addresses; bare digits are hexadecimal"),
        ("fivefold walk guest.elf.xz 0 --json", "for a script"),
    ),
    "dump": (
        ("fivefold dump guest.elf.xz --kernel --rights wx", "what the kernel can both write and run"),
        ("fivefold dump guest.elf.xz --range 400000-4f0000", "a part of user space"),
        ("fivefold dump guest.elf.xz --format ptdump", "as the guest's own page_tables file"),
    ),
    "roots": (("fivefold roots memory.raw", "page-table roots, surest first in each group"),),
    "audit": (
        ("fivefold audit guest.elf.xz", "findings with their evidence; status 1 if there are any"),
        ("fivefold audit guest.elf.xz --policy policy.toml --format sarif", "for a code-scanning service"),
    ),
    "diff": (
        ("fivefold diff before.elf after.elf", "what changed between two moments"),
        ("fivefold diff one.elf other.elf --relative --no-phys", "two boots with KASLR"),
    ),
    "watch": (
        ("fivefold watch qmp:/run/vm.qmp", "what changes, a look each second, until Ctrl-C"),
        ("fivefold watch libvirt:web --range ffff800000000000- --for 60 --json", "the kernel's half for a minute"),
    ),
    "find": (
        ("fivefold find guest.elf.xz --phys 9a000", "who maps this frame"),
        ("fivefold find guest.elf.xz --phys 1000000+2M", "who maps any of these 2 MiB"),
        ('fivefold find guest.elf.xz --text "root:x:0:0"', "where this text is, and who maps it"),
    ),
    "stats": (("fivefold stats guest.elf.xz", "what tables take, and what they map"),),
    "layout": (
        ("fivefold layout --mode la57 --linux 6.1", "the map of a release"),
        ("fivefold layout ff11000000001000", "what an address is"),
    ),
    "view": (("fivefold view guest.elf.xz -o guest.html", "a page to open in a browser; `-o -` prints it"),),
    "explain": (
        ("fivefold explain qemu.log", "a log of `-d int`, to the first thing that went wrong"),
        ("fivefold explain qemu.log --memory guest.elf.xz", "with the entries of its tables"),
        ("dmesg | fivefold explain -", "an oops, from a pipe"),
        ("fivefold explain --cr2 100 --error-code 2 --vector 14", "numbers alone; registers are hexadecimal"),
    ),
}
