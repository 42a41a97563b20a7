"""From IR to a relocatable object: the only module that imports llvmlite.

Flags and traps: `docs/metal.md`, "What the objects look like".
"""

from __future__ import annotations

from typing import Any, Final

from fivefold.errors import CompileError, ImageError, MachineError, printable
from fivefold.metal.check.check import check
from fivefold.metal.check.tree import Unit
from fivefold.metal.emit.intrinsics import Target
from fivefold.metal.emit.llvm import TRIPLES, write
from fivefold.metal.program import Program

INSTALL: Final = "install it with: pip install 'fivefold[compile]'"
_CPUS: Final = {"x86_64": "x86-64", "i386": "i686", "aarch64": "generic"}
_METAL_FEATURES: Final = {"x86_64": "-mmx,-sse,-sse2,+soft-float", "i386": "-mmx,-sse,+soft-float"}

_PASSES: Final = (
    *("always_inliner", "global_dead_code_eliminate", "sroa", "simplify_cfg"),
    *("instruction_combine", "loop_rotate", "simplify_cfg"),
)
"""All that is wanted of LLVM, in this order. Its own pipeline for level 1 takes five times as long over a kernel and
makes nothing of this subset faster that was measured (`docs/bench.md`): what shall be inlined says so."""

_NOT_IN_32_BITS: Final = {
    "variable": ("a module variable", "pass its value as an argument, or bind it"),
    "buffer": ("a buffer", "pass its address as an argument"),
    "string": ("a string", "pass its address as an argument"),
    "table": ("an indexed tuple", "loop over it, or pass the address of a table"),
    "address_of": ("address_of", "pass the address as an argument"),
    "division": ("a division", "divide by a constant power of two"),
}


def compile_object(program: Program, *, arch: str = "x86_64", prefix: str = "", asm: str = "") -> bytes:
    """Compile *program* into an ELF object for metal, with *asm* (AT&T syntax) appended.

    *prefix* comes before every symbol that the program defines: of an export its
    name, of a variable or buffer ``module.name``. All are hidden. An object for
    ``i386`` has no relocations but for calls of externs. Raises `CompileError`.
    """
    if arch not in _METAL_FEATURES:
        raise ImageError(f"no code for {arch!r}; expected one of {', '.join(sorted(_METAL_FEATURES))}")
    unit = check(program)
    _check_metal(unit, arch)
    target = Target(arch, prefix)
    return emit(write(unit, target, asm), target)


def assemble(asm: str, *, arch: str = "x86_64") -> bytes:
    """Assemble *asm* (AT&T syntax, ``.code16`` to ``.code64``) into an ELF object."""
    return compile_object(Program(()), arch=arch, asm=asm)


def _check_metal(unit: Unit, arch: str) -> None:
    if arch != "i386":
        return
    for key, site in unit.uses.items():
        what = "string" if key.startswith("symbol ") else key
        if what in _NOT_IN_32_BITS:
            construct, remedy = _NOT_IN_32_BITS[what]
            if key.startswith("symbol "):
                construct = "symbol"
            raise CompileError(site.file, site.line, f"{construct} in 32-bit code", remedy)


def emit(text: str, target: Target) -> bytes:
    """Run LLVM over IR *text*: a few passes, no vectorising, no unrolling; return the object."""
    binding = _llvm()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    binding.initialize_native_asmparser()
    machine = binding.Target.from_triple(TRIPLES[target.arch]).create_target_machine(
        cpu=_CPUS[target.arch],
        features="" if target.host else _METAL_FEATURES[target.arch],
        opt=2,
        # 32-bit code has no data to reach; position-independent calls there would drag in a GOT.
        reloc="static" if target.arch == "i386" else "pic",
        codemodel="default" if target.arch == "i386" else "small",
    )
    module = binding.parse_assembly(text)
    module.verify()
    _optimise(binding, machine, module)
    return bytes(machine.emit_object(module))


def _llvm() -> Any:
    """Return llvmlite's binding; `MachineError` where the package is missing or cannot be loaded."""
    try:
        from llvmlite import binding
    except (ImportError, OSError) as error:  # OSError: its library does not fit this system
        raise MachineError(
            f"to compile native code takes the package llvmlite ({printable(str(error))}); {INSTALL}"
        ) from error
    return binding


def _optimise(binding: Any, machine: Any, module: Any) -> None:
    manager = binding.create_new_module_pass_manager()
    for name in _PASSES:
        getattr(manager, f"add_{name}_pass")()
    manager.run(module, binding.create_pass_builder(machine, binding.create_pipeline_tuning_options()))
