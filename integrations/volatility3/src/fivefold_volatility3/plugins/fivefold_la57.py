# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Linux with five levels of page tables (LA57): the layer, and what chooses it where the dump needs it.

Nothing in a dump's format says how many levels there are, and tables of five read as if they were four give another,
wrong address space. So both are tried on a fact that is known: the kernel's banner must be found, through the tables,
at the virtual address that its symbols give it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from volatility3 import framework
from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework.automagic import linux as linux_automagic
from volatility3.framework.automagic import symbol_cache
from volatility3.framework.layers import intel, scanners
from volatility3.framework.symbols import linux as linux_symbols

framework.require_interface_version(2, 0, 0)

vollog = logging.getLogger(__name__)

if not hasattr(intel, "LinuxIntel32e"):
    vollog.warning(f"fivefold: volatility3 {constants.PACKAGE_VERSION} is too old for the layers of -p: 2.26 or newer")
    raise ImportError("fivefold needs volatility3 2.26 or newer")

_MOST_TRIED = 16
"""Banners in a dump that are looked into: memory may hold copies without end."""

_ROOTS = ("init_top_pgt", "init_level4_pgt")


class LinuxIntel32eLA57(intel.LinuxIntel32e):
    """x86-64 Linux with CR4.LA57: 57 bits of virtual address, and a table of 512 entries above the PML4.

    Source: Intel SDM volume 3, chapter "Paging", "4-Level Paging and 5-Level Paging".
    """

    _maxvirtaddr = 57
    _structure = [("page map layer 5", 9, False), *intel.LinuxIntel32e._structure]


_LAYERS = (LinuxIntel32eLA57, intel.LinuxIntel32e)


class LinuxLA57Stacker(interfaces.automagic.StackerLayerInterface):
    """Stacks the layer whose number of levels the dump shows, before volatility's own Linux stackers assume four."""

    stack_order = 30
    exclusion_list = ["mac", "windows"]

    @classmethod
    def stack(
        cls,
        context: interfaces.context.ContextInterface,
        layer_name: str,
        progress_callback: constants.ProgressCallback = None,
    ) -> interfaces.layers.DataLayerInterface | None:
        """Return the layer, None where no banner with symbols is found or none of the layers leads to it."""
        layer = context.layers[layer_name]
        if isinstance(layer, intel.Intel):
            return None
        files = symbol_cache.load_cache_manager().get_identifier_dictionary(operating_system="linux")
        tried: set[bytes] = set()
        for banner in _banners(context, layer, [one for one in files if one], progress_callback):
            if banner in tried or len(tried) == _MOST_TRIED:
                continue
            tried.add(banner)
            made = _layer_of_kernel(context, layer_name, banner, files[banner], progress_callback)
            if made is not None:
                return made
        if tried:
            vollog.warning(
                "fivefold: a Linux banner is there, but neither four nor five levels of page tables lead to it: the "
                "symbols may be of another build, or the dump lacks page tables"
            )
        return None


def _banners(
    context: interfaces.context.ContextInterface,
    layer: interfaces.layers.DataLayerInterface,
    known: list[bytes],
    progress_callback: constants.ProgressCallback,
) -> Iterator[bytes]:
    if known:
        scanner = scanners.MultiStringScanner(known)
        for _, banner in layer.scan(context=context, scanner=scanner, progress_callback=progress_callback):
            yield banner


def _layer_of_kernel(
    context: interfaces.context.ContextInterface,
    layer_name: str,
    banner: bytes,
    isf_url: str,
    progress_callback: constants.ProgressCallback,
) -> interfaces.layers.DataLayerInterface | None:
    """The layer through which *banner* is read where the symbols at *isf_url* have it."""
    name = context.symbol_space.free_table_name("FivefoldStacker")
    table = linux_symbols.LinuxKernelIntermedSymbols(context, f"temporary.{name}", name=name, isf_url=isf_url)
    root = next((one for one in _ROOTS if one in table.symbols), None)
    if root is None or "linux_banner" not in table.symbols:
        return None
    context.symbol_space.append(table)
    in_memory, moved = linux_automagic.LinuxIntelStacker.find_aslr(
        context, name, layer_name, progress_callback=progress_callback
    )
    dtb = linux_automagic.LinuxIntelStacker.virtual_to_physical_address(table.get_symbol(root).address) + in_memory
    for kind in _LAYERS:
        made = _made(kind, context, layer_name, dtb, banner, moved)
        if _reads(made, table.get_symbol("linux_banner").address + moved, banner):
            vollog.info(f"fivefold: {len(kind._structure)} levels of page tables from 0x{dtb:x} on lead to the banner")
            return made
    return None


def _made(
    kind: type[intel.Intel],
    context: interfaces.context.ContextInterface,
    layer_name: str,
    dtb: int,
    banner: bytes,
    moved: int,
) -> intel.Intel:
    name = context.layers.free_layer_name("IntelLayer")
    path = interfaces.configuration.path_join("FivefoldHelper", name)
    settings: dict[str, Any] = {
        "memory_layer": layer_name,
        "page_map_offset": dtb,
        "kernel_virtual_offset": moved,
        linux_automagic.LinuxSymbolFinder.banner_config_key: str(banner, "latin-1"),
    }
    for key, value in settings.items():
        context.config[interfaces.configuration.path_join(path, key)] = value
    return kind(context, config_path=path, name=name, metadata={"os": "Linux"})


def _reads(layer: intel.Intel, address: int, banner: bytes) -> bool:
    """Whether *banner* is what the tables of *layer* lead to from *address* on, page by page."""
    found = b""
    try:
        while len(found) < len(banner):
            at = address + len(found)
            size = min(len(banner) - len(found), layer.page_size - at % layer.page_size)
            physical, _ = layer.translate(at & layer.address_mask)
            found += layer.context.layers.read(layer.config["memory_layer"], physical, size)
    except exceptions.InvalidAddressException:
        return False
    return found == banner
