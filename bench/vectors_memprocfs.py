"""MemProcFS: the address space that it makes of the root of one vector after the other, over a file with its tables."""

from __future__ import annotations

from functools import partial
from importlib import metadata

import memprocfs

from vectors_protocol import Answer, answer, request, tell, written

asked = request()


def open_vmm(root: int) -> memprocfs.Vmm:
    """An instance on this root; it remembers what it has read, so there is one for each vector."""
    options = ["-device", asked["raw"], "-cr3", hex(root), "-disable-symbolserver", "-disable-python"]
    return memprocfs.Vmm([*options, "-waitinitialize"])


def answers_of(root: int, addresses: list[int]) -> list[Answer]:
    """Its answers; all the same words where it does not take the root."""
    try:
        vmm = open_vmm(root)
    except Exception as error:  # noqa: BLE001 - whatever it raises is its answer
        return [f"{type(error).__name__}: {error}"] * len(addresses)
    memory = vmm.process_list()[0].memory
    found = [answer(partial(memory.virt2phys, va), RuntimeError) for va in addresses]
    vmm.close()
    return found


answers = []
for one in asked["tables"]:
    with written(asked["raw"], one["words"]):
        answers.append(answers_of(one["root"], one["addresses"]))
tell(metadata.version("memprocfs"), answers)
