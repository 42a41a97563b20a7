"""Cells: what they promise, and what is refused of a file of them."""

from __future__ import annotations

import pytest

from fivefold.errors import FormatError
from fivefold.matrix.cells import Cell, read_cells
from fivefold.matrix.presets import PRESETS
from fivefold.matrix.vmm.qemu_command import command_for_people

PROMISES = """
# kind cpu path words mode
bzImage la57 direct - la57
bzImage la57 uefi - la57
bzImage la57 bios-grub - la57
bzImage la57 direct no5lvl la48
bzImage la57 direct nokaslr,no5lvl la48
bzImage la57 direct no5lvlx la57
bzImage la48 direct - la48
bzImage la57 pvh - la48
vmlinux la57 direct - la48
bzImage qemu64,+la57 direct - la57
bzImage qemu64 direct - la48
bzImage max,la57=off direct - la48
bzImage max,-la57 direct - la48
bzImage max direct - la57
"""
REFUSED = (
    ("", r"^f: expected tables \[\[cell\]\], each with an id$"),
    ("x = 1", r"^f: 'x' is not known; expected tables \[\[cell\]\]$"),
    ("[[cell]]", r"^f: cell 1: expected a table with an id$"),
    ("[[cell]]\nid = 'a'\ncores = 2", r"^f: cell 1: 'cores' is no property; expected one of id, cpu"),
    ("[[cell]]\nid = 'a'\nsmp = '2'", r"^f: cell 1: smp = '2'; expected int$"),
    ("[[cell]]\nid = 'a'\nsmp = true", r"^f: cell 1: smp = True; expected int$"),
    ("[[cell]]\nid = 'a'\nsmp = 0", r"^f: cell 1: cell a: smp 0; expected 1 to 64$"),
    ("[[cell]]\nid = '../a'", r"^f: cell 1: cell ../a: id '../a'; expected letters"),
    ("[[cell]]\nid = 'a'\n[[cell]]\nid = 'a'", r"^f: two cells have the id a$"),
    ("[[cell]]\nid = 'a'\nmemory = '1'", r"memory '1'; expected a size such as 512M, or two such as 1G\+1G$"),
    ("[[cell]]\nid = 'a'\nmemory = '1M'", r"memory 1M; expected 64M to 1024G$"),
    ("[[cell]]\nid = 'a'\nmemory = '3G+1G'", r"at most 2G below the hole$"),
    ("[[cell]]\nid = 'a'\nmachine = 'virt'", r"machine 'virt'; expected one of q35, pc, microvm$"),
    ("[[cell]]\nid = 'a'\npath = 'uefi'\nmachine = 'microvm'", r"path uefi on a microvm$"),
    ("[[cell]]\nid = 'a'\nresume_cmdline = 'x'", r"resume_cmdline without hibernate = true$"),
    ("[[cell]]\nid = 'a'\nkexec = [1]", r"kexec must be a list of texts$"),
    ("[[cell", r"^f: not TOML: "),
)


@pytest.mark.parametrize("row", [line for line in PROMISES.strip().splitlines() if not line.startswith("#")])
def test_the_promise_follows_from_the_path(row: str) -> None:
    kind, cpu, path, words, mode = row.split()
    cell = Cell("c", cpu=cpu, path=path, cmdline=words.strip("-").replace(",", " "))
    assert cell.promised(kind) == (mode,)


def test_each_kernel_that_is_started_from_inside_has_its_own_promise() -> None:
    assert Cell("c", kexec=("no5lvl", "-")).promised("bzImage") == ("la57", "la48", "la57")
    assert Cell("c", cpu="la48", kexec=("-",)).promised("bzImage") == ("la48", "la48")


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_refused_of_a_file(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_cells(text, "f")


def test_a_file_of_cells() -> None:
    text = '[[cell]]\nid = "two"\ncpu = "qemu64,+la57"\nsmp = 2\nkexec = ["no5lvl"]\n'
    assert read_cells(text, "f") == (Cell("two", cpu="qemu64,+la57", smp=2, kexec=("no5lvl",)),)


def test_presets_grow_and_have_no_id_twice() -> None:
    quick, default, full = (PRESETS[name] for name in ("quick", "default", "full"))
    assert len(quick) == 4 and 10 <= len(default) <= 14 and len(full) > len(default)
    assert full[: len(default)] == default and default[:4] == quick
    assert len({cell.id for cell in full}) == len(full)
    assert len({str(cell.properties()) for cell in full}) == len(full)


def test_the_command_for_people() -> None:
    command = command_for_people(Cell("c", memory="1G+1G", smp=2, cmdline="x"), "console=ttyS0 x", "bz", "fs", None)
    text = " ".join(command)
    assert "-M q35,max-ram-below-4g=1073741824 -cpu max -m 2048M -smp 2" in text
    assert text.endswith("-kernel bz -initrd fs -append console=ttyS0 x -serial stdio -no-reboot")
