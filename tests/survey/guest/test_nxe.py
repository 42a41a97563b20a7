"""Bit 63 by EFER.NXE: no-execute where it is set, reserved where it is clear, inferred where EFER is not known.

ELF cores do not hold EFER; a monitor's `info registers` does.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest

from fivefold.arch import LA48, LA57, Level, PagingMode
from fivefold.memory import CpuState, Ram, Source
from fivefold.memory.registers import parse_info_registers
from fivefold.report.text.dump import write_json
from fivefold.report.text.walk import walk_json
from fivefold.survey.audit.audit import audit
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.guest.info import About
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.survey.stats import stats

ROOT = 0x10_0000
NX = 1 << 63
GUARDED, PLAIN = 0x4000_0000, 0x4000_1000
PAGES = [(GUARDED, NX | 0x20_0007, Level.PT), (PLAIN, 0x20_1007, Level.PT)]
LMA_LME = 0x500
NXE = 0x800

Open = Callable[..., Space]


@pytest.fixture(params=[LA48, LA57], ids=["la48", "la57"])
def opened(request: pytest.FixtureRequest, built: Callable[..., Ram], sourced: Callable[..., Source]) -> Open:
    mode: PagingMode = request.param

    def open_with(efer: int | None, pages: object = PAGES) -> Space:
        """Two pages, the first with NX, on a CPU with this EFER."""
        cpu = CpuState("info registers", cr0=0x8005_0033, cr3=ROOT, cr4=0x6B0 | (mode is LA57) << 12, efer=efer)
        return Space(sourced(built(mode, pages), (cpu,)))

    return open_with


def test_reserved_where_nxe_is_clear(opened: Open) -> None:
    space = opened(LMA_LME)
    guarded, plain = space.path(GUARDED), space.path(PLAIN)
    assert (guarded.cause, guarded.is_finding) == ("reserved bit set", True)
    assert (plain.cause, plain.is_finding) == (None, False)
    last = walk_json(space, [guarded])["walks"][0]["steps"][-1]
    assert last["reserved_bits"] == "0x8000000000000000"

    kinds = [(region.start, region.kind) for region in space.regions()]
    assert kinds == [(GUARDED, RegionKind.MALFORMED), (PLAIN, RegionKind.MAPPED)]
    out = io.StringIO()
    write_json(space, space.regions(), out)
    assert [found["what"] for found in json.loads(out.getvalue())["findings"]] == ["malformed entry"]

    (found,) = [found for found in audit(space).findings if found.rule.name == "malformed-entry"]
    assert (found.window.start, found.fails) == (GUARDED, True)
    assert sum(level.malformed for level in stats(space).levels) == 1


@pytest.mark.parametrize("efer", [LMA_LME | NXE, None])
def test_a_right_where_nxe_is_set_or_not_known(opened: Open, efer: int | None) -> None:
    space = opened(efer)
    assert [region.effective.execute for region in space.regions()] == [False, True]
    assert not [found for found in audit(space).findings if found.rule.name == "malformed-entry"]


def test_what_info_says_of_it(opened: Open) -> None:
    def nxe(space: Space) -> dict[str, object]:
        found: dict[str, object] = About(space.source, space).to_json()["nxe"]
        return found

    assert nxe(opened(LMA_LME)) == {"value": False, "known_from": "EFER of CPU 0"}
    assert nxe(opened(LMA_LME | NXE)) == {"value": True, "known_from": "EFER of CPU 0"}
    assert nxe(opened(None)) == {
        "value": True,
        "known_from": "test memory holds no EFER; 1 ranges are not executable, so NX bits are in use",
    }
    assert nxe(opened(None, PAGES[1:])) == {
        "value": None,
        "known_from": "test memory holds no EFER, and no NX bit is in use",
    }


def test_a_monitor_has_efer(built: Callable[..., Ram], sourced: Callable[..., Source]) -> None:
    text = f"CR0=80050033 CR2=0 CR3={ROOT:016x} CR4=000006b0\nEFER=0000000000000500\n"
    space = Space(sourced(built(LA48, PAGES), parse_info_registers(text)), GivenPaging())
    assert (space.nxe.value, space.tables.nxe) == (False, False)
