"""Engines by name, and the one line that says why one is missing."""

from __future__ import annotations

import sys

import pytest

from fivefold.errors import MachineError
from fivefold.machine import Guest, available, engines, registry, start


def test_the_default_comes_first():
    assert engines() == ("unicorn", "qemu", "kvm")
    assert available("unicorn") is None


@pytest.mark.parametrize("ask", [available, lambda name: start(name, Guest(b""))])
def test_unknown_engine(ask):
    with pytest.raises(MachineError, match=r"^unknown engine 'bochs'; expected unicorn, qemu, kvm$"):
        ask("bochs")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "fivefold.machine.unicorn.engine", raising=False)
    monkeypatch.delitem(sys.modules, "fivefold.machine.unicorn.core", raising=False)
    monkeypatch.setitem(sys.modules, "unicorn", None)

    reason = available("unicorn")

    assert reason.startswith("the engine unicorn needs the package unicorn (")
    assert reason.endswith("); install it with: pip install unicorn")
    with pytest.raises(MachineError) as refusal:
        start("unicorn", Guest(b""))
    assert str(refusal.value) == reason


@pytest.mark.parametrize("engine", ["qemu", "kvm"])
def test_missing_program_says_what_to_install(monkeypatch, tmp_path, engine):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert available(engine) == (
        f"the engine {engine} needs qemu-system-x86_64, which is not there;"
        " install it with: apt-get install qemu-system-x86"
    )


def test_missing_kvm(monkeypatch, tmp_path):
    (tmp_path / "qemu-system-x86_64").write_text("")
    (tmp_path / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(registry, "_KVM", str(tmp_path / "kvm"))

    assert available("kvm") == f"the engine kvm needs {tmp_path}/kvm, which is not there"
