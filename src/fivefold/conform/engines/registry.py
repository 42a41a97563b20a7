"""Engines by the names that `fivefold boot` has for them too."""

from __future__ import annotations

from fivefold.conform.engines.base import Engine, EngineError

NAMES = ("unicorn", "bochscpu", "qemu", "kvm", "bochs")


def open_engine(name: str, program: str | None = None, model: str | None = None) -> Engine:
    """Start the engine *name*; *program* is a QEMU or Bochs by path, *model* a CPU as that engine names it."""
    if program and name not in ("qemu", "kvm", "bochs"):
        raise EngineError(f"the engine {name} is no program; a path is for qemu, kvm and bochs")
    match name:
        case "unicorn":
            from fivefold.conform.engines.unicorn_cpu import UnicornEngine

            return UnicornEngine(model)
        case "bochscpu":
            from fivefold.conform.engines.bochscpu import BochscpuEngine

            return BochscpuEngine(model)
        case "qemu" | "kvm":
            from fivefold.conform.engines.qemu import QemuEngine

            return QemuEngine(program, model, "tcg" if name == "qemu" else "kvm")
        case "bochs":
            from fivefold.conform.engines.bochs import BochsEngine

            return BochsEngine(program, model)
        case _:
            raise EngineError(f"no engine {name!r}; expected one of {', '.join(NAMES)}")
