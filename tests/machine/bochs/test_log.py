"""How a run on Bochs ended, from lines that Bochs 3.0 wrote."""

from __future__ import annotations

import pytest

from fivefold.machine import Event, Halted, PoweredOff, Reset, Shutdown
from fivefold.machine.bochs.log import KEPT, BochsLogReader

START = b"00000000000i[SYS   ] bx_pc_system_c::Reset(HARDWARE) called\n"
COMPLAINT = b"00243277184e[CPU0  ] access_read_linear(): canonical failure\n"
ENDS: list[tuple[bytes, Event]] = [
    (b"00252988961i[CPU0  ] WARNING: HLT instruction with IF=0!\n", Halted(None)),
    (b"00084698473p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution\n", Shutdown(())),
    (b"00164698473i[SYS   ] bx_pc_system_c::Reset(HARDWARE) called\n", Reset()),
    (b"00164698473p[ACPI  ] >>PANIC<< ACPI control: soft power off\n", PoweredOff()),
]


@pytest.mark.parametrize(("line", "event"), ENDS)
def test_ends(line: bytes, event: Event) -> None:
    log = BochsLogReader()
    for byte in START + COMPLAINT + line + COMPLAINT:
        log.take(bytes([byte]))
    assert log.event == event


@pytest.mark.parametrize(
    "line", [b"00252988961i[CPU1  ] WARNING: HLT instruction with IF=0!\n", COMPLAINT, b"\xff\n", START]
)
def test_what_is_no_end(line: bytes) -> None:
    log = BochsLogReader()
    log.take(line)
    assert log.event is None


def test_a_panic_that_the_guest_did_not_cause() -> None:
    log = BochsLogReader()
    log.take(b"00000000000p[HD    ] >>PANIC<< could not open boot.iso\n")
    assert (log.event, str(log.end())) == (None, "Bochs gave up: could not open boot.iso")


def test_a_log_without_an_end_is_not_kept() -> None:
    log = BochsLogReader()
    for _ in range(8):
        log.take(b"x" * KEPT)
    assert len(log.text) == KEPT
