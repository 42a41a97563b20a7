"""MemProcFS: the address space that it makes of any root, over the raw image."""

from __future__ import annotations

from importlib import metadata

import memprocfs

from peer_protocol import Answers, each, request, word

asked = request()
vmm = memprocfs.Vmm(
    ["-device", asked["raw"], "-cr3", hex(asked["root"]), "-disable-symbolserver", "-disable-python", "-waitinitialize"]
)
process = vmm.process_list()[0]
memory = process.memory
answers = Answers(metadata.version("memprocfs"))
answers.ask("ranges", lambda: [(entry["va"], entry["va"] + entry["size"]) for entry in process.maps.pte()])
answers.ask("phys", lambda: each(asked["addresses"], memory.virt2phys, RuntimeError))
if asked["readable"]:
    answers.ask("words", lambda: each(asked["readable"], lambda va: word(memory.read(va, 8)), RuntimeError))
answers.tell()
