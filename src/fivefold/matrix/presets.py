"""The cells that come with us: a few for every commit, a dozen by default, and all that is worth asking."""

from __future__ import annotations

from typing import Final

from fivefold.matrix.cells import Cell

NO_PIT: Final = "tsc_early_khz=1000000"
"""A microvm has no clock but its PIT to measure the TSC by, and under load that fails: then the boot hangs."""

QUICK: Final = (
    Cell("la57"),
    Cell("la48", cpu="la48"),
    Cell("la57-no5lvl", cmdline="no5lvl"),
    Cell("la57-nokaslr", cmdline="nokaslr"),
)

DEFAULT: Final = (
    *QUICK,
    Cell("la48-nokaslr", cpu="la48", cmdline="nokaslr"),
    Cell("la57-pti", cmdline="pti=on"),
    Cell("la48-pti", cpu="la48", cmdline="pti=on"),
    Cell("la57-pvh", path="pvh"),
    Cell("la57-uefi", path="uefi"),
    Cell("la57-grub", path="bios-grub"),
    Cell("la57-microvm", machine="microvm", cmdline=NO_PIT),
    Cell("la57-pc-4cpus-hole", machine="pc", smp=4, memory="1G+1G"),
    Cell("la48-hole", cpu="la48", memory="1G+1G"),
)

FULL: Final = (
    *DEFAULT,
    Cell("la48-pvh", cpu="la48", path="pvh"),
    Cell("la48-uefi", cpu="la48", path="uefi"),
    Cell("la48-grub", cpu="la48", path="bios-grub"),
    Cell("la48-microvm", cpu="la48", machine="microvm", cmdline=NO_PIT),
    Cell("la57-uefi-no5lvl", path="uefi", cmdline="no5lvl"),
    Cell("la57-hole", memory="1G+1G"),
    Cell("la57-2cpus", smp=2),
    Cell("la48-2cpus", cpu="la48", smp=2),
    Cell("la57-pti-nokaslr", cmdline="pti=on nokaslr"),
    Cell("la57-kexec-down-up", kexec=("no5lvl", "-"), memory="768M"),
    Cell("la57-kexec-up", cmdline="no5lvl", kexec=("-",), memory="768M"),
    Cell("la48-kexec", cpu="la48", kexec=("-",), memory="768M"),
    Cell("la57-hibernate", hibernate=True),
    Cell("la48-hibernate", cpu="la48", hibernate=True),
    Cell(
        "la57-resume-in-four", hibernate=True, resume_cmdline="no5lvl",
        expected_to_fail="a kernel that was saved with five levels is resumed by one with four",
    ),
)  # fmt: skip

PRESETS: Final = {"quick": QUICK, "default": DEFAULT, "full": FULL}
