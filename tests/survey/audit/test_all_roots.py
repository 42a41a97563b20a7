"""`audit --all-roots`: the kernel half once, each user half; what one root alone does not show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Level
from fivefold.report.sarif import fingerprint, sarif
from fivefold.report.text.audit import audit_json, sentence
from fivefold.survey.audit import all_roots
from fivefold.survey.audit.all_roots import audit_all_roots, with_count
from fivefold.survey.audit.audit import TRAMPOLINE_REASON, audit
from fivefold.survey.audit.baseline import policy_for
from fivefold.survey.audit.policy import Policy
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.guest.roots import find_roots
from fivefold.survey.names.processes import Process
from fivefold.survey.names.root_owners import RootOwners
from fivefold.survey.space import Space
from fivefold.units import MIB, PhysAddr

P, W, U, NX = 1, 2, 4, 1 << 63
OTHER, LOW = 0xC_0000, 0xC_2000


@pytest.fixture
def two(build: Callable[..., Any]) -> Callable[..., Space]:
    """A Linux with two processes: the CPU runs a clean one, the other has a page that it can write and execute."""

    def make(mode: Any = LA48, *, kernel_wx: bool = False, trampoline: bool = False, last_entry: bool = True) -> Space:
        built = build(mode).linux().page(0x40_0000, 0x300_0000 | P | U).page(0x50_0000, 0x310_0000 | P | W | U)
        if kernel_wx:
            built.page(0xFFFF_FFFF_8140_0000, 0x320_0000 | P | W, Level.PD)
        built.ram.write(PhysAddr(OTHER), built.ram.read(PhysAddr(0x1000), 4096))
        # The CPU's own process has another user half, which is read-only.
        for slot in range(256):
            built.entry(0x1000, slot, 0)
        built.page(0x40_0000, 0x300_0000 | P | U)
        if trampoline:
            built.ram.write(PhysAddr(LOW), built.ram.read(PhysAddr(0x1000), 4096))
            low = built.space().with_root(PhysAddr(LOW), "test")
            assert low.root.value == LOW
            for slot in range(256):
                built.entry(LOW, slot, 0)
            tables = replace(built.tables, root=PhysAddr(LOW))
            built.tables = tables
            built.pages(0, 2 * MIB, P | W, Level.PD)
            if not last_entry:
                built.entry(LOW, 511, 0)
        space: Space = built.space()
        return Space(space.source, GivenPaging(as_if={"nxe": True}))

    return make


@pytest.mark.parametrize("mode", [LA48, LA57])
def test_a_process_that_is_not_running_is_seen(two: Callable[..., Space], mode: Any) -> None:
    space = two(mode)
    one = with_count(audit(space))
    assert one.ok and (one.looked_at, one.of.value) == (1, 2)
    assert sentence(one).endswith("1 of 2 roots looked at; --all-roots looks at the other 1, too")
    every = audit_all_roots(space)
    assert (every.looked_at, every.of.value) == (2, 2)
    failing = [found for found in every.findings if found.fails]
    assert [(one.rule.name, one.window and one.window.start, one.root) for one in failing] == [
        ("wx-user", 0x50_0000, OTHER)
    ]
    told = audit_json(every)
    assert (told["ok"], told["looked_at"], told["of"]) == (False, 2, 2)
    assert told["findings"][0]["root"] == f"0x{OTHER:016x}"
    assert sentence(every).endswith("2 of 2 roots looked at")


def test_the_kernel_half_is_looked_at_once(two: Callable[..., Space]) -> None:
    every = audit_all_roots(two(kernel_wx=True))
    kernel = [found for found in every.findings if found.rule.name == "wx-kernel"]
    assert [(found.window and found.window.start, found.root) for found in kernel] == [(0xFFFF_FFFF_8140_0000, 0x1000)]


def test_the_trampoline_is_known_and_excepted(two: Callable[..., Space]) -> None:
    space = two(trampoline=True)
    labels = {root.root: root.label for root in find_roots(space.source)}
    assert labels == {0x1000: "has a user half", OTHER: "has a user half", LOW: "real-mode trampoline"}
    assert [root.root for root in find_roots(space.source)] == [0x1000, OTHER, LOW]
    every = audit_all_roots(space)
    assert {found.rule.name for found in every.findings if found.root == LOW and found.fails} == set()
    excepted = {found.rule.name for found in every.findings if found.excepted == TRAMPOLINE_REASON}
    assert {"null-page", "wx-kernel"} <= excepted
    # Asked about alone it is known as well.
    alone = Space(space.source, GivenPaging(cr3=LOW, as_if={"nxe": True}))
    assert audit(alone).ok


def test_firmware_that_maps_itself_is_no_trampoline(two: Callable[..., Space]) -> None:
    """Nothing of it is excepted: its root is low and mapped where it lies, but there is no kernel to jump to."""
    space = two(trampoline=True, last_entry=False)
    assert {root.root: root.label for root in find_roots(space.source)}[LOW] == "has a user half"
    alone = audit(Space(space.source, GivenPaging(cr3=LOW, as_if={"nxe": True})))
    assert "null-page" in {found.rule.name for found in alone.findings if found.fails}


def test_memory_that_is_costly_to_search_is_not_counted(
    two: Callable[..., Space], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = two()
    monkeypatch.setattr(type(space.source.memory), "zero_copy", False)
    monkeypatch.setattr(all_roots, "MAX_COUNTED", 1)
    told = with_count(audit(space))
    assert told.of.value is None
    assert sentence(told).endswith("1 root looked at (memory was not searched for roots; --all-roots looks at all)")
    notes = sarif(told)["runs"][0]["invocations"][0]["toolExecutionNotifications"]
    assert notes[-1]["message"]["text"] == "Roots looked at: 1; not looked at: others in memory."


def test_a_baseline_excepts_what_is_there_and_nothing_else(two: Callable[..., Space]) -> None:
    space = two(kernel_wx=True)
    found = audit_all_roots(space)
    assert not found.ok
    policy = Policy.parse(policy_for(found), "baseline.toml")
    again = audit_all_roots(space, policy)
    assert again.ok and len(again.findings) == len(found.findings)
    # A policy that is in use keeps its exceptions in the next baseline.
    assert Policy.parse(policy_for(again), "second.toml").exceptions == policy.exceptions
    other = two(kernel_wx=False)
    assert audit_all_roots(other, policy).ok


@pytest.mark.parametrize(
    "where",
    [
        'range = "0xffff888000000000-0xffff888000200000"',
        'phys = "0x1000-0x3000"',
        'area = "kernel_image"\noffset = "0x800000-0xa00000"',
        'area = "kernel_image"',
        'symbol = "_text"',
    ],
)
def test_the_next_baseline_keeps_exceptions_of_every_kind(two: Callable[..., Space], where: str) -> None:
    text = f'schema = "fivefold.policy/1"\n[[except]]\nrule = "wx-kernel"\nreason = "a reason"\n{where}\n'
    policy = Policy.parse(text, "first.toml")
    again = Policy.parse(policy_for(audit(two(), policy)), "second.toml")
    (own,) = (one for one in policy.exceptions if one.reason == "a reason")
    assert own in again.exceptions


def test_fingerprints_do_not_move_with_the_kernel(build: Callable[..., Any]) -> None:
    """Two boots of one kernel whose image slid: the same finding has the same fingerprint; another has another."""

    def boot(slide: int, at: int) -> set[str]:
        built = build(LA48).pages(0xFFFF_8880_0000_0000, 64 * MIB, P | W | NX)
        built.pages(0xFFFF_FFFF_8100_0000 + slide, 4 * MIB, 16 * MIB | P, Level.PD)
        built.page(0xFFFF_FFFF_8180_0000 + slide + at, 0x320_0000 | P | W, Level.PD)
        space = built.space()
        return {fingerprint(found) for found in audit(space).findings if found.rule.name == "wx-kernel"}

    assert boot(0, 0) == boot(6 * MIB, 0) == {"wx-kernel:kernel_image+0x800000:2097152"}
    assert boot(0, 0) != boot(0, 2 * MIB)


def test_a_baseline_holds_for_the_next_boot(build: Callable[..., Any]) -> None:
    """The kernel slid by another amount; what it does wrong at another place of its image is new all the same."""

    def boot(slide: int, at: int) -> Space:
        built = build(LA48).pages(0xFFFF_8880_0000_0000, 64 * MIB, P | W | NX)
        built.pages(0xFFFF_FFFF_8100_0000 + slide, 4 * MIB, 16 * MIB | P, Level.PD)
        built.page(0xFFFF_FFFF_8180_0000 + slide + at, 0x320_0000 | P | W, Level.PD)
        space: Space = built.space()
        return space

    policy = Policy.parse(policy_for(audit(boot(0, 0))), "baseline.toml")
    assert not audit(boot(0, 0)).ok and audit(boot(0, 0), policy).ok
    assert audit(boot(6 * MIB, 0), policy).ok
    assert not audit(boot(6 * MIB, 2 * MIB), policy).ok


def test_an_offset_excepts_wherever_the_area_lies(build: Callable[..., Any]) -> None:
    policy = Policy.parse(
        'schema = "fivefold.policy/1"\n[[except]]\nrule = "wx-kernel"\nreason = "test"\narea = "kernel_image"\n'
        'offset = "0x800000+2M"\n',
        "test.toml",
    )
    for slide, at, expected in ((0, 0, True), (4 * MIB, 0, True), (0, 2 * MIB, False)):
        built = build(LA48).pages(0xFFFF_8880_0000_0000, 64 * MIB, P | W | NX)
        built.pages(0xFFFF_FFFF_8100_0000 + slide, 4 * MIB, 16 * MIB | P, Level.PD)
        built.page(0xFFFF_FFFF_8180_0000 + slide + at, 0x320_0000 | P | W, Level.PD)
        found = audit(built.space(), policy).findings
        failing = [one for one in found if one.rule.name == "wx-kernel" and one.fails]
        assert (not failing) is expected


@pytest.mark.parametrize("owned", [(), (0x1000,), (0x1000, OTHER)])
def test_what_no_process_has_is_left_out_and_named(
    two: Callable[..., Space], monkeypatch: pytest.MonkeyPatch, owned: tuple[int, ...]
) -> None:
    """Where the guest's own list can be read; else every root is looked at, as one of them may be a process'."""
    processes = tuple(Process(number, "demo", PhysAddr(root), False, False) for number, root in enumerate(owned))
    owners = RootOwners(processes, {}, None, "test")
    monkeypatch.setattr(all_roots, "root_owners", lambda *_: owners)
    every = audit_all_roots(two())
    left_out = owned == (0x1000,)
    assert every.looked_at == (1 if left_out else 2)
    assert every.ok == left_out
    assert [limit.endswith(f"left out (--cr3 asks about one): 0x{OTHER:016x}") for limit in every.limits] == [
        True
    ] * left_out
