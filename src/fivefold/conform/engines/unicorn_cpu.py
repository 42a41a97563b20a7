"""Unicorn: QEMU's TCG as a library, without devices. Exceptions come as a hook, so no driver runs in the guest.

Its saved state holds the error code at a place that no register names; three faults that are known find it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fivefold.arch import ControlState, Cpu, Efer, Vector
from fivefold.conform.cases.actions import LDT_SELECTOR, VALUE, address_of, code_page
from fivefold.conform.cases.case import MODES, Case, make_case
from fivefold.conform.engines.base import EngineError
from fivefold.conform.judging.expect import BREAKPOINT, expect
from fivefold.conform.judging.memory_words import words_before
from fivefold.conform.judging.outcome import CaseOutcome
from fivefold.conform.payload.records import Trial, stack_pointer, stored
from fivefold.conform.places import (
    ARENA,
    ARENA_PT,
    CODE,
    DATA,
    DATA_END,
    LOW_PD,
    ROOT,
    USER_CODE,
    driver_entries,
    driver_entry,
    pattern,
)
from fivefold.units import MASK64

SIZE: Final = DATA_END - ARENA
MODELS: Final = ("ICELAKE_SERVER",)
_WRPKRU: Final = bytes.fromhex("0f01ef")
_WRPKRU_AT, _SYSRET_AT = 0xE00, 0xE40
_MSR_EFER, _MSR_STAR = 0xC000_0080, 0xC000_0081
_LDT_FLAGS: Final = 0x8200
_NO_GDT: Final = dict.fromkeys(
    ("iretq", "iretq3", "retfq", "sysretq", "lldt", "ist"), "no descriptor table is set up in this engine"
) | {"monitor": "MONITOR ends this engine's run"}


class UnicornEngine:
    """One Unicorn CPU with LA57."""

    name = "unicorn"
    cannot: Mapping[str, str] = _NO_GDT

    def __init__(self, model: str | None = None) -> None:
        """Make the CPU. Raises `EngineError` where the package is missing or has no such model."""
        try:
            from importlib.metadata import version

            from unicorn import unicorn_const, x86_const
            from unicorn.unicorn_py3 import unicorn as binding
        except ImportError as error:
            raise EngineError(
                "the package unicorn is not installed; install it with: pip install 'fivefold[boot]'"
            ) from error
        self._x86, self._error = x86_const, binding.UcError
        self.version = version("unicorn")
        number = getattr(x86_const, f"UC_CPU_X86_{(model or MODELS[0]).upper()}", None)
        if number is None:
            raise EngineError(f"unicorn has no CPU {model!r}; its models are those of UC_CPU_X86_…")
        # As its CPU does, whatever its CPUID says.
        self.cpu = Cpu(phys_bits=40, pks=False, pcid=False, invpcid=False)
        self._memory = (ctypes.c_uint8 * SIZE)()
        self._view = memoryview(self._memory).cast("B")
        self._uc: Any = binding.Uc(unicorn_const.UC_ARCH_X86, unicorn_const.UC_MODE_64)
        self._uc.ctl_set_cpu_model(number)
        self._uc.mem_map_ptr(ARENA, SIZE, unicorn_const.UC_PROT_ALL, ctypes.addressof(self._memory))
        self._outcome = CaseOutcome(0, problem="no exception came")
        self._error_at: int | None = None
        self._saved = b""
        self._uc.hook_add(unicorn_const.UC_HOOK_INTR, self._on_exception)
        self._code_hook = unicorn_const.UC_HOOK_CODE
        self._fill()
        self._contexts: dict[int, Any] = {0: self._uc.context_save()}
        self._error_at = self._find_error_code()
        self._contexts[3] = self._enter_user()

    # -- memory --------------------------------------------------------------------------

    def _put(self, pa: int, data: bytes) -> None:
        self._view[pa - ARENA : pa - ARENA + len(data)] = data

    def _word(self, pa: int, value: int) -> None:
        self._put(pa, value.to_bytes(8, "little"))

    def _read(self, pa: int) -> int:
        return int.from_bytes(self._view[pa - ARENA : pa - ARENA + 8], "little")

    def _fill(self) -> None:
        """The driver's tables, the instructions, and data."""
        for page in (CODE, USER_CODE):
            self._put(page, code_page())
            self._put(page + _WRPKRU_AT, _WRPKRU)
        self._put(CODE + _SYSRET_AT, bytes.fromhex("480f07"))
        for pa in range(LOW_PD, ARENA_PT + 0x1000, 8):
            self._word(pa, driver_entry(pa, 5))
        self._set_mode(5)
        self._fill_data()

    def _fill_data(self) -> None:
        for page in range(DATA, DATA_END, 0x1000):
            self._put(page, pattern(page).to_bytes(8, "little") * 512)

    def _set_mode(self, levels: int) -> None:
        for pa, raw in driver_entries(levels).items():
            self._word(pa, raw)
        self._levels = levels

    # -- running -------------------------------------------------------------------------

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, CaseOutcome]]:
        """The outcomes of *trials*, one after the other."""
        for trial in sorted(trials, key=lambda trial: trial.case.mode):
            levels = int(MODES[trial.case.mode].top)
            if levels != self._levels:
                self._set_mode(levels)
            yield trial, self._run_one(trial)

    def _run_one(self, trial: Trial) -> CaseOutcome:
        case = trial.case
        stores = case.stores()
        words = words_before(case, trial.expected)
        for pa, raw in (stores | words).items():
            self._word(pa, raw)
        outcome = self._access(case)
        after = {pa: self._read(pa) for pa in (*stores, *words)}
        for pa in stores:
            self._word(pa, 0)
        for pa in words:
            self._word(pa, pattern(pa))
        if case.what.writes and outcome.vector != trial.expected.vector:
            self._fill_data()
        return replace(outcome, after=after)

    def _access(self, case: Case) -> CaseOutcome:
        """Make the access by one instruction. It ends in an exception."""
        self._uc.context_restore(self._contexts[case.cpl])
        self._set(case.state())
        page = USER_CODE if case.cpl == 3 else CODE
        if "pke" in case.flags:
            self._registers(RAX=case.pkru, RCX=0, RDX=0)
            self._uc.emu_start(page + _WRPKRU_AT, page + _WRPKRU_AT + len(_WRPKRU))
        self._arguments(case)
        self._outcome = CaseOutcome(0, problem="no exception came")
        start = address_of(case.what, case.cpl)
        # A jump is one more block; a fetch is just as well a start at the address.
        jumps = not case.action.startswith("fetch") or not MODES[case.mode].is_canonical(case.va)
        at = case.va if case.what.fetches and not jumps else start
        try:
            self._uc.emu_start(at, MASK64)
        except self._error as error:
            if self._outcome.problem:
                return CaseOutcome(BREAKPOINT, problem=None, after=None) if _is_memory(error) else self._outcome
        return self._outcome

    def _arguments(self, case: Case) -> None:
        what = case.what
        self._registers(RAX=LDT_SELECTOR | case.cpl if what.implicit else 0, RBX=VALUE, RCX=0, RDX=0, RDI=case.va)
        if what.msr is not None:
            self._registers(RAX=case.va & 0xFFFF_FFFF, RDX=case.va >> 32, RCX=what.msr)
        if (words := stored(case)) is not None:
            self._registers(RCX=words[0], RDX=words[1])
        self._registers(RSP=stack_pointer(case))
        if what.implicit:
            self._uc.reg_write(self._x86.UC_X86_REG_LDTR, (0x38, case.va, 0xFFFF, _LDT_FLAGS))

    def _registers(self, **values: int) -> None:
        for name, value in values.items():
            self._uc.reg_write(getattr(self._x86, f"UC_X86_REG_{name}"), value)

    def _set(self, state: ControlState) -> None:
        x86 = self._x86
        self._uc.reg_write(x86.UC_X86_REG_CR4, state.cr4)
        self._uc.reg_write(x86.UC_X86_REG_MSR, (_MSR_EFER, state.efer | Efer.SCE))
        self._uc.reg_write(x86.UC_X86_REG_CR3, state.cr3)
        self._uc.reg_write(x86.UC_X86_REG_CR0, state.cr0)
        self._uc.reg_write(x86.UC_X86_REG_RFLAGS, state.rflags)
        self._uc.reg_write(x86.UC_X86_REG_CR2, 0)

    def _on_exception(self, uc: Any, vector: int, _: object) -> None:
        """Note the exception from the saved state: no register shows its error code."""
        context = uc.context_save()
        self._saved = ctypes.string_at(context.context, context.size)
        code = 0
        if self._error_at is not None and vector != Vector.BP:
            code = int.from_bytes(self._saved[self._error_at : self._error_at + 4], "little")
        x86 = self._x86
        self._outcome = CaseOutcome(vector, code, uc.reg_read(x86.UC_X86_REG_CR2), uc.reg_read(x86.UC_X86_REG_RAX))
        uc.emu_stop()

    # -- finding out ---------------------------------------------------------------------

    def _find_error_code(self) -> int:
        """Where the saved state has the error code: 0, 2 and 0x10 for three faults that are known."""
        places = set(range(0, 1 << 13, 4))
        for action in ("read8", "write8", "fetch"):
            case = make_case("la57", action, 0, ("wp", "nxe"), 0xFF11_0000_0420_0000, {"pt": 0})
            want = expect(case, self.cpu).error_code.to_bytes(4, "little")
            self._run_one(Trial(case, expect(case, self.cpu)))
            places &= {at for at in places if self._saved[at : at + 4] == want}
        if len(places) != 1:
            raise EngineError("this unicorn's saved state does not show the error code of a page fault")
        return places.pop()

    def _enter_user(self) -> object:
        """The context of a CPU that has just returned to privilege level 3: writing CS would not do."""
        x86, found = self._x86, []
        self._uc.context_restore(self._contexts[0])
        self._set(ControlState.long(MODES["la57"], ROOT))
        landing = USER_CODE + 0xE80
        self._uc.reg_write(x86.UC_X86_REG_MSR, (_MSR_STAR, 0x20 << 48))
        self._registers(RCX=landing)
        self._uc.reg_write(x86.UC_X86_REG_R11, 0x202)

        def arrived(uc: Any, *_: object) -> None:
            found.append(uc.context_save())
            uc.emu_stop()

        hook = self._uc.hook_add(self._code_hook, arrived, None, landing, landing)
        self._uc.emu_start(CODE + _SYSRET_AT, MASK64)
        self._uc.hook_del(hook)
        return found[0]


def _is_memory(error: Any) -> bool:
    """Whether Unicorn stopped at physical memory that is not there: the access was let through."""
    return "UNMAPPED" in str(error) or "memory" in str(error).lower()
