# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""What volatility3 reads of the files that the tests make, against what Fivefold reads: the same bytes everywhere?

    python integrations/volatility3/bench/witness.py  # needs volatility3 and its snappy, and pytest for the tests
    python integrations/volatility3/bench/witness.py --file xen guest.core     # a file of yours, all of its pages

The files are those that `tests/memory` makes, and QEMU's where it is installed. Each row says which layer of
volatility3 opened the file, and how many pages were compared; a page that differs ends with status 1.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "memory"))
sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "memory" / "formats"))

import machine_files as make

from fivefold.machine import available
from fivefold.machine.child import Child
from fivefold.memory import open_source
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.units import PhysAddr

PAGE: Final = 4096
MOST: Final = 4096
"""Pages of each file that are compared."""


def layers() -> dict[str, Callable[[Any, str], Any]]:
    """Volatility3's layers by the names of our rows."""
    from volatility3.framework.layers import avml, crash, elf, lime, qemu, vmware, xen

    def stacked(stacker: Any) -> Callable[[Any, str], Any]:
        return lambda context, name: stacker.stack(context, name)

    return {
        "elf": stacked(elf.Elf64Stacker),
        "virtualbox": stacked(elf.Elf64Stacker),
        "xen": stacked(xen.XenCoreDumpStacker),
        "qemu": stacked(qemu.QemuStacker),
        "vmware": stacked(vmware.VmwareStacker),
        "windows": stacked(crash.WindowsCrashDumpStacker),
        "avml": stacked(avml.AVMLStacker),
        "lime": stacked(lime.LimeStacker),
    }


def compared(kind: str, path: Path, most: int = MOST) -> tuple[int, int]:
    """Pages that were compared, *most* at most, and those that differ."""
    from volatility3.framework import contexts
    from volatility3.framework.layers import physical

    context = contexts.Context()
    context.config["file.location"] = path.as_uri()
    context.add_layer(physical.FileLayer(context, "file", "base"))
    layer = layers()[kind](context, "base")
    if layer is None:
        raise SystemExit(f"{kind}: volatility3 does not open it")
    count = wrong = 0
    with open_source(path) as source:
        for extent in source.extents:
            for at in range(extent.start, extent.end, PAGE):
                if count == most:
                    return count, wrong
                count += 1
                wrong += bytes(layer.read(at, PAGE)) != source.memory.read(PhysAddr(at), PAGE)
    return count, wrong


def files(place: Path) -> Iterator[tuple[str, str, Path]]:
    """Volatility3's layer, the row's name and the file."""
    for kind, name, data in (
        ("virtualbox", "VirtualBox core", make.virtualbox(make.PAGES)),
        ("xen", "Xen core, HVM and PVH", make.xen_core(make.PAGES)),
        ("lime", "LiME", lime(make.PAGES)),
        ("avml", "AVML, compressed", dumps("avml").avml(make.runs(make.PAGES))),
        ("windows", "Windows crash dump, full", dumps("windows_dump").full()),
        ("windows", "Windows crash dump, bitmap", dumps("windows_dump").bitmap()),
    ):
        path = place / kind
        path.write_bytes(data)
        yield kind, name, path
    for part, data in make.vmware(make.PAGES).items():
        (place / part).write_bytes(data)
    yield "vmware", "VMware snapshot", place / "guest.vmem"
    if available("qemu") is None:
        for machine in ("q35", "pc"):
            yield "qemu", f"QEMU stream, {machine}", qemu_stream(place, machine)


def dumps(name: str) -> Any:
    """The tests of one format, which make files of it."""
    return importlib.import_module(f"test_{name}")


def lime(pages: dict[int, bytes]) -> bytes:
    """LiME's ranges."""
    rows = make.runs(pages)
    return b"".join(struct.pack("<4sIQQ8x", b"EMiL", 1, pa, pa + len(data) - 1) + data for pa, data in rows)


def qemu_stream(place: Path, machine: str) -> Path:
    """A stream that QEMU itself writes, of a machine that stands at its firmware's first instruction."""
    path, socket = place / f"stream-{machine}", place / f"qmp-{machine}"
    words = ["-M", machine, "-m", "64M", "-display", "none", "-nodefaults", "-S"]
    child = Child(["qemu-system-x86_64", "-accel", "tcg", *words, "-qmp", f"unix:{socket},server=on,wait=off"], ())
    try:
        while not socket.exists():
            time.sleep(0.05)
        monitor = QmpClient(str(socket), timeout=60)
        monitor.ask("migrate", uri=f"exec:cat > {path}")
        while monitor.ask("query-migrate")["status"] not in ("completed", "failed"):
            time.sleep(0.1)
        monitor.close()
    finally:
        child.end()
    return path


def main() -> int:
    """A row for each file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--file", nargs=2, metavar=("KIND", "FILE"), help=f"KIND is one of {', '.join(layers())}")
    asked = parser.parse_args()
    logging.disable()
    failed = 0
    if asked.file:
        count, wrong = compared(asked.file[0], Path(asked.file[1]).resolve(), 1 << 62)
        print(f"{asked.file[1]}: {count} pages, {wrong} differ")
        return int(wrong > 0 or count == 0)
    with tempfile.TemporaryDirectory() as folder:
        for kind, name, path in files(Path(folder)):
            count, wrong = compared(kind, path)
            print(f"{name:28} {count:6} pages, {wrong} differ", flush=True)
            failed += wrong > 0 or count == 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
