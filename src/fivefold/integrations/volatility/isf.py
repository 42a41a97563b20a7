"""A kernel's symbols and types as an ISF file, from what the guest's memory says of them alone."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import version
from typing import Any, Final

from fivefold.errors import FormatError, MemoryReadError
from fivefold.integrations.volatility.isf_types import IsfTypes, Json
from fivefold.integrations.volatility.variables import variable_types
from fivefold.survey.guest.vmcoreinfo import KERNEL_WINDOW, LINKED_AT
from fivefold.survey.names.btf import Btf
from fivefold.survey.names.kernel_names import KernelNames
from fivefold.survey.space import Space
from fivefold.symbols import KernelSymbol, Symbols
from fivefold.units import MASK64, hex64

FORMAT: Final = "6.2.0"
BANNER: Final = b"Linux version "
MOST_BANNER: Final = 4096
NEEDED: Final = ("init_task", "init_files", "init_mm", "linux_banner")
"""What volatility3 goes by when it looks for Linux in a dump."""
_METHODS: Final = """
file list_head hlist_head mm_struct super_block task_struct vm_area_struct qstr dentry fs_struct files_struct kobject
cred inode idr address_space page vfsmount module net socket sock inet_sock unix_sock net_device in_device in_ifaddr
inet6_dev inet6_ifaddr
"""
EXPECTED: Final = frozenset(_METHODS.split())
"""Structures to which volatility3 gives methods, so they must be declared: a kernel without networking lacks some."""


class SymbolFile:
    """The ISF of the kernel in *space*; *banner* is its line of version, as in memory, NUL included."""

    def __init__(self, space: Space) -> None:
        """`FormatError` where the memory shows no Linux, or one without the symbols or types that are needed."""
        names = space.names
        self.kernel = _checked(names.kernel)
        self.slide = _slide(space, self.kernel)
        self._notes = space.notes
        self.banner = _banner(names, self.kernel)
        btf = names.btf
        if btf is None:
            raise FormatError(
                f"{space.source.name}: {names.btf_is_missing}: the types of its structures are not in this memory; "
                "a kernel has them since 5.2 if it was built with CONFIG_DEBUG_INFO_BTF"
            )
        self.btf: Btf = btf

    @property
    def digest(self) -> str:
        """What tells this kernel from others: equal for every boot of one build."""
        return hashlib.sha256(self.banner).hexdigest()[:12]

    @property
    def release(self) -> str:
        """The kernel's release, as ``uname -r`` has it."""
        return self.banner[len(BANNER) :].split(b" ")[0].decode("ascii", "backslashreplace")

    def document(self) -> dict[str, Any]:
        """The whole file; addresses are those of the build, as volatility3 adds the slide of KASLR itself."""
        types = IsfTypes(self.btf)
        chosen = self._hidden() | _chosen(self.kernel)
        ends = _ends(self.kernel)
        written = types.variables() | variable_types(types, lambda name: _room(chosen.get(name), ends))
        for name in sorted(EXPECTED):
            types.user_types.setdefault(name, {"kind": "struct", "size": 0, "fields": {}})
        symbols = {name: self._symbol(one, written.get(name)) for name, one in chosen.items()}
        symbols["linux_banner"].get("type", {})["count"] = len(self.banner)  # kallsyms need not have what follows it
        symbols["linux_banner"]["constant_data"] = base64.b64encode(self.banner).decode()
        return {
            "metadata": {"format": FORMAT, "producer": {"name": "fivefold", "version": version("fivefold")}},
            "base_types": types.base_types,
            "user_types": types.user_types,
            "enums": types.enums,
            "symbols": symbols,
        }

    def _hidden(self) -> dict[str, KernelSymbol]:
        """Symbols that kallsyms leaves out and VMCOREINFO has: those of kallsyms itself."""
        names = (key[len("SYMBOL(") : -1] for key in self._notes.facts if key.startswith("SYMBOL("))
        found = {name: self._notes.symbol(name) for name in names}
        return {
            name: KernelSymbol(at, "D", name) for name, at in found.items() if at is not None and at >= KERNEL_WINDOW
        }

    def _symbol(self, one: KernelSymbol, written: Json | None) -> Json:
        address = one.address - self.slide & MASK64 if one.address >> 63 else one.address
        return {"address": address} if written is None else {"address": address, "type": written}


def _checked(kernel: Symbols) -> Symbols:
    if not kernel:
        raise FormatError(f"no symbols of a Linux: {kernel.how}")
    missing = [name for name in NEEDED if kernel.address(name) is None]
    if missing:
        raise FormatError(
            f"{kernel.how}, but none is {' or '.join(missing)}: a kernel without CONFIG_KALLSYMS_ALL lists functions "
            "only; give the System.map of its build with --symbols"
        )
    return kernel


def _slide(space: Space, kernel: Symbols) -> int:
    """By how much KASLR moved the image: VMCOREINFO says it, else where its first byte lies."""
    told = space.notes.facts.get("KERNELOFFSET")
    try:
        if told is not None:
            return int(told, 16)
    except ValueError:
        pass  # a text in memory need not be Linux'
    start = kernel.address("_text")
    return 0 if start is None else start - LINKED_AT & MASK64


def _banner(names: KernelNames, kernel: Symbols) -> bytes:
    at = kernel.address("linux_banner") or 0
    found = b""
    try:
        while b"\0" not in found and len(found) < MOST_BANNER:
            found += names.memory.read(at + len(found), 64)
    except MemoryReadError as error:
        if not found:
            raise FormatError(f"linux_banner cannot be read, and volatility3 knows a kernel by it: {error}") from error
    text, end, _ = found.partition(b"\0")
    if not text.startswith(BANNER) or not end:
        raise FormatError(f"linux_banner at {hex64(at)} holds {text[:20]!r}; expected {BANNER!r} and a NUL")
    return text + end


def _chosen(kernel: Symbols) -> dict[str, KernelSymbol]:
    """One symbol for each name: the global one of several, else the lowest."""
    found: dict[str, KernelSymbol] = {}
    for span in kernel.spans:
        if span.module is None:
            for one in span:
                known = found.get(one.name)
                if known is None or (one.kind.isupper() and not known.kind.isupper()):
                    found[one.name] = one
    return found


def _room(one: KernelSymbol | None, ends: dict[int, int]) -> int | None:
    return None if one is None or one.address not in ends else ends[one.address] - one.address


def _ends(kernel: Symbols) -> dict[int, int]:
    """Where the next symbol begins, by the address of each."""
    found: dict[int, int] = {}
    for span in kernel.spans:
        places = sorted(set(span.addresses))
        found |= dict(zip(places, [*places[1:], span.end], strict=True))
    return found
