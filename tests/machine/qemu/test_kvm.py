"""KVM, best effort: a trial guest decides whether it is there."""

from __future__ import annotations

import os

import pytest

from fivefold.errors import MachineError
from fivefold.machine import Exit, Guest, Timeout, available, start
from fivefold.machine.qemu import kvm_probe

pytestmark = pytest.mark.qemu


class Trial:
    """A machine whose guest ends as the test says."""

    def __init__(self, event):
        self.event = event

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def run(self, timeout):
        if isinstance(self.event, MachineError):
            raise self.event
        return self.event


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Exit(0x2A), None),
        (Exit(1), "the engine kvm does not work here: a trial guest ended with exit with code 1"),
        (
            Timeout(15, 0x200000),
            "the engine kvm does not work here: a trial guest ended with "
            "still running after 15 s, at 0x0000000000200000",
        ),
        (MachineError("QEMU ended: no KVM"), "the engine kvm does not work here: QEMU ended: no KVM"),
    ],
)
def test_the_trial_decides(monkeypatch, event, reason):
    monkeypatch.setattr(kvm_probe, "QemuMachine", lambda guest, accelerator, timeout, program: Trial(event))

    assert kvm_probe.probe.__wrapped__() == reason


def test_the_trial_guest_runs_on_tcg_too(qemu):
    assert qemu(kvm_probe._image(), cpu="la48").run(10) == Exit(0x2A)


def test_kvm_itself(workshop):
    if "FIVEFOLD_TEST_KVM" not in os.environ:
        pytest.skip("KVM takes many seconds where virtualisation is nested; set FIVEFOLD_TEST_KVM=1 to try it")
    if (reason := available("kvm")) is not None:
        pytest.skip(reason)
    with start("kvm", Guest(workshop.assemble("putc 'k'\nexit 5").image, cpu="la48", memory=16 << 20)) as machine:
        assert machine.run(20) == Exit(5)
        assert machine.output == b"k"
