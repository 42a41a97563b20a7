"""A real Linux under QEMU, in either mode: Debian's cloud kernel with a busybox, started once a mode.

The kernel and the busybox are the distribution's own packages, unpacked into a cache folder. They are downloaded
only when FIVEFOLD_FETCH_GUEST or FIVEFOLD_REQUIRE_QEMU is set, as in CI; without them these tests are skipped by
name. `find_package`, `write_initrd` and `started_guest` also serve the bench against peers.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fivefold.machine import available
from fivefold.machine.child import Child
from fivefold.memory.live.qmp_client import QmpClient

KERNEL, BUSYBOX = "linux-image-cloud-amd64", "busybox-static"
RAM = 256 << 20
CPUS = {5: "qemu64,+la57", 4: "qemu64"}
BOOT_SECONDS = 120
READY = b"the guest is ready"
TOLD = 32 << 20
KCORE = 260 << 20
"""Sizes of the disks. On the first the guest writes /proc/kallsyms, /proc/modules and its processes; on the second
/proc/kcore: 64 KiB of headers, behind them each segment of the direct map at its physical address. Which is which their
serial numbers say: Linux 6.12 looks for disks in parallel."""
INIT = b"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b mount -t sysfs sys /sys
$b insmod /dummy.ko
told= kcore=
until [ "$told" ] && [ "$kcore" ]; do
  for disk in /sys/class/block/nvme*; do
    case $($b cat $disk/device/serial) in told*) told=/dev/${disk##*/} ;; kcore*) kcore=/dev/${disk##*/} ;; esac
  done
done
$b sleep 9998 &
( $b cat /proc/kallsyms; echo ===; $b cat /proc/modules; echo ===; $b ps -o pid,comm; echo === ) \
  | $b dd of=$told bs=64k 2>/dev/null
$b dd if=/proc/kcore of=$kcore bs=64k count=1 2>/dev/null
$b od -An -v -t x8 -w56 -j 64 -N 1120 /proc/kcore | while read kind at va pa size rest; do
  case $va-$pa in
    ffffffff*|*-ffffffffffffffff|*-0000000000000000|0*) ;;
    ff*) $b dd if=/proc/kcore of=$kcore bs=64k iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc \
      skip=$((0x$at)) count=$((0x$size)) seek=$((0x10000 + 0x$pa)) 2>/dev/null ;;
  esac
done
$b sync
echo the guest is ready
wait
"""


@dataclass(frozen=True)
class Package:
    """Files of the guest."""

    kernel: Path
    busybox: Path
    module: Path


@dataclass(frozen=True)
class LiveGuest:
    """A guest that stands still: *monitor* is for the test, *ram* the file its memory is in.

    One socket serves one client at a time: *held* is for a source that stays open, *qmp* for one after the other.
    """

    levels: int
    pid: int
    qmp: str
    held: str
    monitor: QmpClient
    ram: Path
    told: Path
    kcore: Path


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The distribution's kernel and busybox."""
    return find_package(tmp_path_factory.mktemp("packages"))


def find_package(place: Path) -> Package:
    """The distribution's kernel and busybox, unpacked in *place* if need be, or the reason why they are not here."""
    cache = Path(os.environ.get("FIVEFOLD_GUEST_CACHE") or Path.home() / ".cache" / "fivefold-guest")
    wanted = os.environ.get("FIVEFOLD_FETCH_GUEST") or os.environ.get("FIVEFOLD_REQUIRE_QEMU")
    found = _unpacked(cache)
    if found is None and wanted:
        _fetch(cache, place)
        found = _unpacked(cache)
    if found is None:
        pytest.skip(f"needs {KERNEL} and {BUSYBOX}: set FIVEFOLD_FETCH_GUEST=1 to download them with apt-get")
    return found


def _unpacked(cache: Path) -> Package | None:
    kernels = sorted(cache.glob("boot/vmlinuz-*"))
    busybox = cache / "bin" / "busybox"
    modules = sorted(cache.glob("lib/modules/*/kernel/drivers/net/dummy.ko*"))
    return Package(kernels[-1], busybox, modules[-1]) if kernels and modules and busybox.exists() else None


def _fetch(cache: Path, place: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.fail(f"cannot download {KERNEL}: there is no apt-get and dpkg-deb", pytrace=False)
    depends = subprocess.run(["apt-cache", "depends", KERNEL], capture_output=True, text=True, check=False).stdout
    names = [line.split()[-1] for line in depends.splitlines() if line.strip().startswith("Depends: linux-image-")]
    if not names:
        pytest.skip(f"this distribution, or its package lists, have no {KERNEL}")
    done = subprocess.run(["apt-get", "download", *names[:1], BUSYBOX], cwd=place, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"cannot download {KERNEL} and {BUSYBOX}: {done.stderr.strip()[-300:]}", pytrace=False)
    for deb in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, place / "root"], check=True)
    for name in ("boot", "bin"):
        shutil.copytree(place / "root" / name, cache / name, dirs_exist_ok=True)
    for module in (place / "root").glob("lib/modules/*/kernel/drivers/net/dummy.ko*"):
        to = cache / module.relative_to(place / "root")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, to)


@pytest.fixture(scope="session")
def initrd(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system in memory for all guests."""
    return write_initrd(package, tmp_path_factory.mktemp("initrd"))


def write_initrd(package: Package, place: Path, init: bytes = INIT) -> Path:
    """A file system in memory with a busybox and an *init* that says when it is up."""
    module = package.module.read_bytes()
    entries = [
        ("dummy.ko", 0o100644, (0, 0), lzma.decompress(module) if package.module.suffix == ".xz" else module),
        ("dev", 0o040755, (0, 0), b""),
        ("dev/console", 0o020600, (5, 1), b""),
        ("proc", 0o040755, (0, 0), b""),
        ("sys", 0o040755, (0, 0), b""),
        ("bin", 0o040755, (0, 0), b""),
        ("bin/busybox", 0o100755, (0, 0), package.busybox.read_bytes()),
        ("init", 0o100755, (0, 0), init),
        ("TRAILER!!!", 0, (0, 0), b""),
    ]
    path = place / "initrd"
    path.write_bytes(b"".join(_newc(number, *entry) for number, entry in enumerate(entries, 1)))
    return path


def _newc(number: int, name: str, mode: int, device: tuple[int, int], data: bytes) -> bytes:
    """One entry of a cpio archive. Source: Linux, "initramfs buffer format"."""
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return b"".join(part + bytes(-len(part) % 4) for part in (head, data))


def _boot(package: Package, initrd: Path, place: Path, levels: int) -> tuple[Child, list[str]]:
    sockets = [place / name for name in ("qmp", "held", "test")]
    (place / "told").write_bytes(b"")
    os.truncate(place / "told", TOLD)
    (place / "kcore").write_bytes(b"")
    os.truncate(place / "kcore", KCORE)
    command = [
        *(
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-M",
            "q35,memory-backend=ram",
            "-cpu",
            CPUS[levels],
            "-m",
            str(RAM >> 20),
        ),
        *("-object", f"memory-backend-file,id=ram,size={RAM},mem-path={place / 'ram'},share=on"),
        *("-kernel", str(package.kernel), "-initrd", str(initrd), "-append", "console=ttyS0 quiet pti=on"),
        *("-drive", f"file={place / 'told'},format=raw,if=none,id=told", "-device", "nvme,drive=told,serial=told"),
        *("-drive", f"file={place / 'kcore'},format=raw,if=none,id=kcore", "-device", "nvme,drive=kcore,serial=kcore"),
        *("-display", "none", "-no-reboot", "-nodefaults", "-serial", f"file:{place / 'serial'}"),
        *(word for socket in sockets for word in ("-qmp", f"unix:{socket},server=on,wait=off")),
    ]
    return Child(command, ()), [str(socket) for socket in sockets]


def _until(condition: Callable[[], bool], what: str, child: Child, place: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while not condition():
        if time.monotonic() > deadline or not Path(f"/proc/{child.pid}").exists():
            errors = child.end().decode(errors="replace")[-300:]
            serial = place / "serial"
            tail = serial.read_bytes()[-500:] if serial.exists() else b""
            pytest.fail(f"the guest never got to {what}: {errors} {tail!r}", pytrace=False)
        time.sleep(0.1)


def _stop_in_kernel(monitor: QmpClient) -> None:
    """Stop the guest while the kernel's own root is loaded, which page-table isolation takes away from user mode.

    A user's root has bit 12 set, and maps next to nothing of the kernel.
    """
    for _ in range(100):
        monitor.ask("stop")
        cr3 = re.search(r"CR3=([0-9a-f]{16})", monitor.monitor("info registers"))
        assert cr3 is not None
        if not int(cr3[1], 16) & 1 << 12:
            return
        monitor.ask("cont")
        time.sleep(0.05)
    pytest.fail("the guest never was in its kernel", pytrace=False)


@pytest.fixture(scope="module", params=[5, 4], ids=["la57", "la48"])
def guest(
    request: pytest.FixtureRequest, package: Package, initrd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveGuest]:
    """A Linux that has come up, and was stopped then."""
    with started_guest(package, initrd, tmp_path_factory.mktemp("guest"), request.param) as found:
        yield found


@contextmanager
def started_guest(package: Package, initrd: Path, place: Path, levels: int) -> Iterator[LiveGuest]:
    """A Linux that has come up, and was stopped then; it ends with the block, and *place* with it."""
    if (reason := available("qemu")) is not None:
        pytest.skip(reason)
    child, (qmp, held, test) = _boot(package, initrd, place, levels)
    try:
        serial = place / "serial"
        _until(lambda: serial.exists() and READY in serial.read_bytes(), "its init", child, place)
        monitor = QmpClient(test, timeout=30)
        try:
            _stop_in_kernel(monitor)
            yield LiveGuest(levels, child.pid, qmp, held, monitor, place / "ram", place / "told", place / "kcore")
        finally:
            monitor.close()
    finally:
        child.end()
        shutil.rmtree(place, ignore_errors=True)
