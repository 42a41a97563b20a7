"""drgn: the page-table walk behind `follow_phys` and `Program.read`, over the image as a core.

It lists no mappings, so that question stays without an answer. `follow_phys` and `access_remote_vm` want objects of the
kernel's types, which need debug information; what they call takes the root's virtual address, as here.
"""

from __future__ import annotations

import drgn
from _drgn import _linux_helper_follow_phys as follow_phys
from _drgn import _linux_helper_read_vm as read_vm

from peer_protocol import Answers, each, request, word

KERNEL = 1 << 63

asked = request()
program = drgn.Program(vmcoreinfo=asked["vmcoreinfo"])
program.set_core_dump(asked["core"])
root = asked["root_at"]


def read(va: int) -> int | None:
    """Eight bytes: of the kernel as it offers them to all, of a user through the root."""
    return word(program.read(va, 8) if va & KERNEL else read_vm(program, root, va, 8))


answers = Answers(drgn.__version__)
answers.ask("phys", lambda: each(asked["addresses"], lambda va: follow_phys(program, root, va), drgn.FaultError))
if asked["readable"]:
    answers.ask("words", lambda: each(asked["readable"], read, drgn.FaultError))
refusal = ""
if asked["readable"]:  # a dump by QEMU, which has no VMCOREINFO unless the guest loaded a driver for it
    try:
        drgn.Program().set_core_dump(asked["core"])
    except ValueError as error:
        refusal = str(error).partition(";")[0]
answers.note("lists nothing" + (f"; the dump without VMCOREINFO it refuses: {refusal}" if refusal else ""))
answers.tell()
