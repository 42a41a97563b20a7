"""The same questions to other readers of page tables, on the same memory: results compared before times.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install volatility3 drgn memprocfs
    python bench/peers.py --peers /tmp/peers/bin/python

A peer that is not there, or does not read such an image, is told with the reason. Every peer runs in a process of its
own and times itself: opening is not counted, listing what is mapped and translating are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from fivefold.arch import LA48, LA57, Mapped, PagingMode
from fivefold.memory import Bank, BankedMemory, Source
from fivefold.survey.choose import Given
from fivefold.survey.scan_result import Contiguity, Kind
from fivefold.survey.space import Space, open_space
from fivefold.survey.translator import translator_of
from fivefold.units import PhysAddr, VirtAddr

GUESTS: Final = Path(__file__).parents[1] / "tests" / "data" / "guests"
IMAGES: Final = {"plain-la48-kaslr": LA48, "plain-la57-kaslr": LA57}
ADDRESSES: Final = 20_000
SECONDS: Final = 300

VOLATILITY: Final = """
import json, sys, time
from volatility3.framework import contexts, interfaces
from volatility3.framework.layers import intel, physical
raw, root, addresses = sys.argv[1], int(sys.argv[2]), json.load(open(sys.argv[3]))
context = contexts.Context()
context.config["a.location"] = "file://" + raw
context.add_layer(physical.FileLayer(context, "a", "memory"))
context.config["b.memory_layer"], context.config["b.page_map_offset"] = "memory", root
layer = intel.LinuxIntel32e(context, "b", "space")
context.add_layer(layer)
began = time.perf_counter()
ranges = [(a, a + size) for a, size, *_ in layer.mapping(0, layer.maximum_address, ignore_errors=True)]
listed = time.perf_counter() - began
began, answers = time.perf_counter(), []
for va in addresses:
    try:
        answers.append(layer.translate(va & layer.maximum_address)[0])
    except Exception:
        answers.append(None)
print(json.dumps({"ranges": ranges, "listed": listed, "answers": answers, "translated": time.perf_counter() - began}))
"""

MEMPROCFS: Final = """
import json, sys, time
import memprocfs
raw, root, addresses = sys.argv[1], int(sys.argv[2]), json.load(open(sys.argv[3]))
vmm = memprocfs.Vmm(["-device", raw, "-cr3", hex(root), "-disable-symbolserver", "-disable-python", "-waitinitialize"])
process = vmm.process_list()[0]
began = time.perf_counter()
ranges = [(e["va"], e["va"] + e["size"]) for e in process.maps.pte()]
listed = time.perf_counter() - began
began, answers = time.perf_counter(), []
for va in addresses:
    try:
        answers.append(process.memory.virt2phys(va))
    except Exception:
        answers.append(None)
print(json.dumps({"ranges": ranges, "listed": listed, "answers": answers, "translated": time.perf_counter() - began}))
"""

PEERS: Final = {"volatility3": VOLATILITY, "memprocfs": MEMPROCFS}
NO_DUMP: Final = "drgn lists no mappings and refuses a dump without VMCOREINFO: not compared here"


def raw_image(name: str, place: Path) -> tuple[Path, int]:
    """A capture as a raw image with its holes as zeros, and its root; frames keep their addresses."""
    path = place / f"{name}.raw"
    with open_space(str(GUESTS / f"{name}.elf.xz")) as space, path.open("wb") as file:
        for bank in space.source.memory.banks():
            file.seek(bank.start)
            file.write(bank.data)
        file.truncate(512 << 20)
        return path, space.root.value


def ours(path: Path, root: int, mode: PagingMode, addresses: list[int]) -> dict[str, Any]:
    """Our own answers, with the times of both questions."""
    data = np.fromfile(path, np.uint8)
    source = Source(BankedMemory([Bank(0, memoryview(data))], path.name), "raw image")
    space = Space(source, Given(cr3=root, levels=int(mode.top)))
    space.scan(), translator_of(space)  # compiled, or taken from the cache
    began = time.perf_counter()
    result = space.scan(contiguity=Contiguity.BREAK)
    listed = time.perf_counter() - began
    ranges = [(a, b + 1) for a, b in zip(result.start.tolist(), result.last.tolist(), strict=True)]
    translator = translator_of(space)
    asked = np.array(addresses, np.uint64)
    began = time.perf_counter()
    found = translator.batch(asked)
    translated = time.perf_counter() - began
    answers = [pa if hit else None for pa, hit in zip(found.phys.tolist(), found.mapped.tolist(), strict=True)]
    return {"ranges": ranges, "listed": listed, "answers": answers, "translated": translated}


def sampled(path: Path, root: int, mode: PagingMode) -> list[int]:
    """Addresses that are mapped, by the plain walk."""
    data = np.fromfile(path, np.uint8)
    space = Space(
        Source(BankedMemory([Bank(0, memoryview(data))], "raw"), "raw"), Given(cr3=root, levels=int(mode.top))
    )
    # A shared table once: else nearly all would be of the 65,536 aliases of one ESPfix page.
    result = space.scan(repeat_above=0)
    result = replace(result, rows=result.rows[result.kind == Kind.MAPPED])
    rng = np.random.default_rng(4)
    rows = rng.integers(0, len(result), ADDRESSES)
    inside = rng.integers(0, 1 << 62, ADDRESSES, dtype=np.uint64) % result.size[rows]
    addresses: list[int] = (result.start[rows] + inside).tolist()
    for va in addresses[:200]:
        assert isinstance(space.translate(VirtAddr(va)), Mapped)
    return addresses


def peer(python: str, code: str, path: Path, root: int, addresses: Path) -> dict[str, Any] | str:
    """A peer's answers, or why there are none, on one line."""
    try:
        done = subprocess.run(
            [python, "-c", code, str(path), str(root), str(addresses)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    if done.returncode or not done.stdout.strip():
        return (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def covered(ranges: list[list[int]] | list[tuple[int, int]], low_bits: int) -> set[tuple[int, int]]:
    """What ranges cover, joined; addresses without the upper bits, which not all peers extend."""
    joined: list[list[int]] = []
    for start, end in sorted((start & low_bits, (end - 1 & low_bits) + 1) for start, end in ranges):
        if joined and joined[-1][1] >= start:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return {(start, end) for start, end in joined}


def told(name: str, found: dict[str, Any] | str, mine: dict[str, Any], low_bits: int) -> str:
    """One line: right or wrong, then times and how much longer they are."""
    if isinstance(found, str):
        return f"  {name:12} {found}"
    same = covered(found["ranges"], low_bits) == covered(mine["ranges"], low_bits)
    wrong = sum(a != b for a, b in zip(found["answers"], mine["answers"], strict=True))
    rate = len(mine["answers"]) / found["translated"]
    verdict = "right" if same else "WRONG"
    return (
        f"  {name:12} list {verdict}, {len(found['ranges'])} ranges, {found['listed'] * 1e3:.3g} ms "
        f"({found['listed'] / mine['listed']:.3g} x ours); translate {wrong} of {len(mine['answers'])} wrong, "
        f"{rate / 1e6:.3g} M/s ({found['translated'] / mine['translated']:.3g} x)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers installed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, mode in IMAGES.items():
            path, root = raw_image(name, place)
            addresses = sampled(path, root, mode)
            (place / "addresses").write_text(json.dumps(addresses))
            mine = ours(path, PhysAddr(root), mode, addresses)
            low_bits = (1 << mode.va_bits) - 1
            print(f"{name}, {int(mode.top)} levels")
            print(told("fivefold", mine, mine, low_bits))
            for title, code in PEERS.items():
                print(told(title, peer(asked.peers, code, path, root, place / "addresses"), mine, low_bits))
    print(NO_DUMP)
    return 0


if __name__ == "__main__":
    sys.exit(main())
