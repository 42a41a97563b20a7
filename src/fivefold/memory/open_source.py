"""One way in: a file by its first bytes, a running guest by the prefix of its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypedDict, Unpack, get_args

from fivefold import _arguments
from fivefold.errors import FivefoldError, FormatError, both_told
from fivefold.memory.files import LIVE_NAMES, FileBytes
from fivefold.memory.formats import avml, elf_core, kdump, lime, vmware
from fivefold.memory.formats.compressed import compression_of, read_stream, unpack
from fivefold.memory.formats.raw_image import read_raw
from fivefold.memory.formats.snapshots import cloud_hypervisor, firecracker
from fivefold.memory.free_memory import half_of_free
from fivefold.memory.source import Progress, Source

LiveRam = Literal["auto", "file", "process", "pmemsave"]
"""How a live QEMU's memory is read: its shared memory file, /proc/PID/mem, a copy that QEMU writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What can be said about a source besides its name.

    *ram_map* is for raw images and gdb stubs (see `parse_ram_map`), *freeze* stops a live guest while it is
    open, *live_ram* forces one way of reading it, *timeout* is in seconds and for one answer
    of a live guest. *max_unpacked* bounds a compressed file (None: by its size), *max_copy* copies of memory that
    is not in buffers (None: half of what is free); both in bytes.
    """

    ram_map: str | None = None
    freeze: bool = False
    live_ram: LiveRam = "auto"
    timeout: float = 10.0
    progress: Progress | None = None
    max_unpacked: int | None = None
    max_copy: int | None = None

    @property
    def most_copied(self) -> int:
        """How many bytes may be copied: *max_copy*, or half of what is free."""
        return half_of_free() if self.max_copy is None else self.max_copy

    def __post_init__(self) -> None:
        """Refuse a value of a wrong type, with `TypeError` or `ValueError` that names the option."""
        _arguments.fields(
            self,
            ram_map=(str, type(None)),
            freeze=(bool,),
            timeout=(float, int),
            max_unpacked=(int, type(None)),
            max_copy=(int, type(None)),
        )
        if self.live_ram not in get_args(LiveRam):
            raise ValueError(
                f"live_ram is {self.live_ram!r}: unknown way to read RAM; "
                f"expected one of {', '.join(get_args(LiveRam))}"
            )
        if self.progress is not None and not callable(self.progress):
            raise TypeError(f"progress is {self.progress!r}; expected a function of two numbers, or None")


class SourceKeywords(TypedDict, total=False):
    """The fields of `SourceOptions` as keywords, for type checkers."""

    ram_map: str | None
    freeze: bool
    live_ram: LiveRam
    timeout: float
    progress: Progress | None
    max_unpacked: int | None
    max_copy: int | None


KCORE: Final = "/proc/kcore"
"""The running kernel's own memory: as long as the address space, so that it cannot be opened as other files are."""

_HYPERV: Final = b"\x14\x20\x28\x01"

_UNSUPPORTED: Final = {
    b"PAGEDUMP": "a 32-bit Windows crash dump",
    b"LiMS": "a savevm image",
}


_STREAMS: Final = (b"QEVM", b"LibvirtQemudSave", b"LibvirtQemudPart", b"QFI\xfb")
LIVE: Final = ("qmp:", "libvirt:", "pid:", "gdb:", "kcore:")
"""How the names of sources begin that are no files."""


def is_memory(head: bytes) -> bool:
    """Whether a file that begins with *head* (16 bytes) is memory of a known format; a raw image cannot be told."""
    return head.startswith((*_READERS, *_STREAMS, *kdump.SIGNATURES, avml.MAGIC, _HYPERV)) or firecracker.is_state(head)


def is_snapshot(path: str | os.PathLike[str]) -> bool:
    """Whether *path* is a snapshot that is told by names: a folder, or one of the files in it."""
    return cloud_hypervisor.is_snapshot(Path(path))


def open_source(
    spec: str | os.PathLike[str], options: SourceOptions | None = None, **changes: Unpack[SourceKeywords]
) -> Source:
    """Open *spec*: a file, ``-`` (standard input), ``qmp:SOCKET`` (a path or HOST:PORT), ``libvirt:DOMAIN``,
    ``pid:NUMBER`` or ``gdb:HOST:PORT``, or ``kcore:``, the memory of the kernel that runs us.

    Files are raw images, ELF cores, kdump files, LiME and what docs/memory.md lists, also inside .xz, .gz or .zst; the
    first bytes decide, never the name; a path object is always a file. *changes* are fields of `SourceOptions`.
    Raises `FormatError` when the content is not what it claims, `CannotOpenError` (an `OSError`) for a file that
    cannot be opened, `MachineError` when a guest does not answer, `TypeError` or `ValueError` for a spec or option
    that makes no sense.
    """
    _arguments.keywords("open_source", changes, SourceOptions.__dataclass_fields__)
    chosen = replace(options or SourceOptions(), **changes)
    if isinstance(spec, os.PathLike):
        return open_file(os.fspath(spec), chosen)
    _arguments.instance("spec", spec, str, expected=f"the name of a file, or {LIVE_NAMES}")
    if spec == "-":
        return _open_bytes(read_stream(0, "standard input", max_bytes=chosen.max_unpacked), chosen)
    if spec == "kcore:":
        return _open_kcore(chosen)
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in ("qmp", "libvirt", "pid", "gdb"):
        return _open_live(prefix, rest, chosen)
    return open_file(spec.removeprefix("file:"), chosen)


def open_file(path: str, options: SourceOptions | None = None) -> Source:
    """Open a file as `open_source` does, whatever its name looks like."""
    chosen = options or SourceOptions()
    if os.path.realpath(path) == KCORE:
        return _open_kcore(chosen)
    if cloud_hypervisor.is_snapshot(Path(path)):
        return cloud_hypervisor.read_snapshot(Path(path))
    return _open_bytes(FileBytes.open(path), chosen)


def _open_kcore(options: SourceOptions) -> Source:
    from fivefold.memory.live import kcore

    return kcore.open_kcore(KCORE, max_copy=options.most_copied)


def _open_bytes(file: FileBytes, chosen: SourceOptions) -> Source:
    compression = compression_of(_head(file))
    if compression:
        file = unpack(file, max_bytes=chosen.max_unpacked, progress=chosen.progress)
    try:
        source = _recognise(file, chosen)
    except (FivefoldError, ValueError) as error:
        with both_told(error):
            file.close()
        raise
    if compression:
        return replace(source, format=f"{source.format} in {compression}")
    return source


def _head(file: FileBytes) -> bytes:
    return file.read_at(0, min(file.size, 16))


def _recognise(file: FileBytes, options: SourceOptions) -> Source:
    head = _head(file)
    for magic, what in _UNSUPPORTED.items():
        if head.startswith(magic):
            raise FormatError(
                f"{file.name} is {what}; expected a raw image, an ELF core or another format of docs/memory.md"
            )
    if options.ram_map is not None:
        return read_raw(file, options.ram_map)
    reader = next((reader for magic, reader in _READERS.items() if head.startswith(magic)), None)
    if reader is not None:
        return reader(file)
    if head.startswith(avml.MAGIC):
        return avml.read_avml(file, max_copy=options.most_copied)
    if head.startswith(_STREAMS):
        from fivefold.memory.formats import qemu_stream  # a log is explained without numpy

        return qemu_stream.read_qemu_stream(
            file, max_copy=options.most_copied, max_unpacked=options.max_unpacked, progress=options.progress
        )
    if firecracker.is_state(head):
        return firecracker.read_firecracker(file)
    if head.startswith(_HYPERV):
        from fivefold.memory.formats.snapshots import hyperv  # a log is explained without numpy

        return hyperv.read_hyperv(file, max_copy=options.most_copied)
    if (snapshot := vmware.beside(file)) is not None:
        return vmware.read_vmem(file, snapshot)
    if head.startswith(kdump.SIGNATURES):
        return kdump.read_kdump(file, max_copy=options.most_copied)
    return read_raw(file)


def _read_windows_dump(file: FileBytes) -> Source:
    from fivefold.memory.formats.windows_dump import read_windows_dump  # a log is explained without numpy

    return read_windows_dump(file)


def _read_elf(file: FileBytes) -> Source:
    if elf_core.has_no_segments(file):
        from fivefold.memory.formats import xen_core  # a log is explained without numpy

        if xen_core.is_xen_core(file):
            return xen_core.read_xen_core(file)
    return elf_core.read_elf_core(file)


_READERS: Final[dict[bytes, Callable[[FileBytes], Source]]] = {
    elf_core.MAGIC: _read_elf,
    lime.MAGIC: lime.read_lime,
    b"PAGEDU64": _read_windows_dump,
    **dict.fromkeys(vmware.MAGICS, vmware.read_vmware),
}


def _open_live(prefix: str, rest: str, options: SourceOptions) -> Source:
    # Imported here: files are the common case, and these need sockets and processes.
    from fivefold.memory.live import gdb_stub

    if not rest:
        raise ValueError(f"'{prefix}:' has no address; expected {LIVE_NAMES}")
    if prefix == "gdb":
        return gdb_stub.attach_gdb(
            rest,
            ram_map=options.ram_map,
            freeze=options.freeze,
            timeout=options.timeout,
            max_copy=options.most_copied,
        )
    return _attacher(prefix)(
        rest,
        freeze=options.freeze,
        ram=options.live_ram,
        timeout=options.timeout,
        max_copy=options.most_copied,
    )


def _attacher(prefix: str) -> Callable[..., Source]:
    from fivefold.memory.live import libvirt, live_qemu

    if prefix == "libvirt":
        return libvirt.attach_libvirt
    return live_qemu.attach_qmp if prefix == "qmp" else live_qemu.attach_pid
