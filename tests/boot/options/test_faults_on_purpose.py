"""Our own kernel breaks one thing at a time, and the explanation of its triple fault must name just that.

What is expected here follows from the names and from the manual alone: which rule refuses such an access.
"""

from __future__ import annotations

import pytest

from fivefold.boot import BootOptions, Image
from fivefold.boot.guests import make_guest
from fivefold.boot.run import boot_guest
from fivefold.explain import Explanation, explain_event
from fivefold.kernel.selftest.faults import FAULTS
from fivefold.machine import Event, Machine

NAMES = [fault.name for fault in FAULTS]
NOTHING_THERE = {"write-null", "execute-null", "execute-last-page"}
RULES = {"write": "write-protected", "execute": "no-execute", "user-read": "user-supervisor", "read": "not-present"}
OWN_RULE = {"reserved-bit": "reserved-bit", "toggle-la57": "mode-change-refused", "clear-pae": "mode-change-refused"}

QEMU_CANNOT = {"clear-pae"}
"""TCG lets PAE be cleared in long mode, and goes on with tables that it reads another way."""


def rule_of(name: str) -> str:
    if name in OWN_RULE:
        return OWN_RULE[name]
    if name.startswith("read-non-canonical"):
        return "non-canonical"
    if name in NOTHING_THERE:
        return "not-present"
    return next(rule for verb, rule in RULES.items() if name.startswith(f"{verb}-"))


def story(engine: str, cpu: str, name: str, image: Image) -> Explanation:
    told: list[Explanation] = []

    def tell(event: Event, machine: Machine) -> str:
        told.append(explain_event(event, machine))
        return ""

    options = BootOptions(engine=engine, memory=32 << 20, cmdline=f"fault={name}", timeout=20)
    boot_guest(make_guest(cpu, options, image), options, image, tell)
    return told[0]


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 20
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_on_unicorn(name: str, image: Image) -> None:
    found = story("unicorn", "la57", name, image)

    assert (found.outcome, found.cause.rule) == ("triple-fault", rule_of(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "toggle-la57"][::3])
def test_on_unicorn_with_four_levels(name: str, image: Image) -> None:
    found = story("unicorn", "la48", name, image)

    assert (found.mode, found.outcome, found.cause.rule) == ("la48", "triple-fault", rule_of(name))


@pytest.mark.qemu
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QEMU_CANNOT])
def test_on_qemu(name: str, image: Image) -> None:
    found = story("qemu", "la57", name, image)

    assert (found.outcome, found.cause.rule) == ("triple-fault", rule_of(name))
