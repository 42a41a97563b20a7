"""Bochs' CPU as a library, through the package ``bochscpu-python``, in a process of its own.

That library ends its process when it is asked for memory that is not there, and when Python ends; neither must
be ours. The child maps the guest's RAM, runs the payload natively, exceptions and all, and stops at its HLT.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fivefold.conform.engines.base import EngineError
from fivefold.conform.engines.machine import MachineEngine, SharedRam
from fivefold.conform.payload.build import payload
from fivefold.conform.places import CASES, IMAGE
from fivefold.machine.child import Child

PACKAGE: Final = "bochscpu-python"
INSTALL: Final = "install it with: pip install 'fivefold[bochscpu]'"
MODELS: Final = {
    "corei3_cnl": "_Z23create_corei3_cnl_cpuidP8BX_CPU_C",
    "sapphire_rapids": "_Z28create_sapphire_rapids_cpuidP8BX_CPU_C",
    "arrow_lake": "_Z23create_arrow_lake_cpuidP8BX_CPU_C",
    "tigerlake": "_Z22create_tigerlake_cpuidP8BX_CPU_C",
    "haswell": "_Z32create_corei7_haswell_4770_cpuidP8BX_CPU_C",
    "ryzen": "_Z18create_ryzen_cpuidP8BX_CPU_C",
}
"""Models by Bochs' names, and the functions of the library that make them. The first is its default."""
DEFAULT: Final = "sapphire_rapids"
"""The one with LA57."""


class BochscpuEngine(MachineEngine):
    """One CPU model of `MODELS`."""

    name = "bochscpu"
    cannot: Mapping[str, str] = {"monitor": "MONITOR ends the process that this library runs in"}

    def __init__(self, model: str | None = None, timeout: float = 60.0) -> None:
        """Start once, for the CPU. Raises `EngineError`, also where the package is not installed."""
        self.model = model or DEFAULT
        if self.model not in MODELS:
            raise EngineError(f"bochscpu has no CPU {self.model!r}; expected one of {', '.join(MODELS)}")
        try:
            self.version = version(PACKAGE)
        except PackageNotFoundError:
            raise EngineError(f"the package {PACKAGE} is not installed; {INSTALL}") from None
        super().__init__(timeout)

    def _start(self, written: bytes, ram: SharedRam) -> Child:
        made = payload()
        ram.write(IMAGE, made.data)
        ram.write(CASES, written)
        arguments = [self.model, str(ram.fd), str(made.entry), str(IMAGE + made.size), str(CASES + len(written))]
        return Child([sys.executable, "-P", "-m", "fivefold.conform.engines.bochscpu_child", *arguments], [ram.fd])
