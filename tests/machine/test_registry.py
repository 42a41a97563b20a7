"""Engines by name, and the one line that says why one is missing."""

from __future__ import annotations

import sys

import pytest

from fivefold.errors import MachineError
from fivefold.machine import Guest, available, engines, registry, start


def test_the_default_comes_first():
    assert engines() == ("unicorn", "qemu", "kvm", "bochs")
    assert available("unicorn") is None


@pytest.mark.parametrize("ask", [available, lambda name: start(name, Guest(b""))])
def test_unknown_engine(ask):
    with pytest.raises(MachineError, match=r"^unknown engine 'simics'; expected unicorn, qemu, kvm, bochs$"):
        ask("simics")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "fivefold.machine.unicorn.engine", raising=False)
    monkeypatch.delitem(sys.modules, "fivefold.machine.unicorn.core", raising=False)
    monkeypatch.setitem(sys.modules, "unicorn", None)

    reason = available("unicorn")

    assert reason.startswith("the engine unicorn needs the package unicorn (")
    assert reason.endswith("); install it with: pip install 'fivefold[boot]'")
    with pytest.raises(MachineError) as refusal:
        start("unicorn", Guest(b""))
    assert str(refusal.value) == reason


@pytest.mark.parametrize(
    ("engine", "program", "packages"),
    [
        ("qemu", "qemu-system-x86_64", "qemu-system-x86"),
        ("kvm", "qemu-system-x86_64", "qemu-system-x86"),
        ("bochs", "bochs", "bochs bochs-term bochsbios vgabios"),
    ],
)
def test_missing_program_says_what_to_install(monkeypatch, tmp_path, engine, program, packages):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FIVEFOLD_QEMU", raising=False)
    monkeypatch.delenv("FIVEFOLD_BOCHS", raising=False)

    assert available(engine) == (
        f"the engine {engine} needs {program}, which is not there; install it with: apt-get install {packages}"
    )


@pytest.mark.parametrize(("engine", "variable"), [("qemu", "FIVEFOLD_QEMU"), ("bochs", "FIVEFOLD_BOCHS")])
def test_another_program_is_one(monkeypatch, tmp_path, engine, variable):
    (tmp_path / "text").write_text("no program")
    monkeypatch.setenv(variable, str(tmp_path / "text"))
    assert available(engine) == f"{tmp_path}/text is not a program"
    assert available(engine, str(tmp_path / "none")) == f"{tmp_path}/none is not a program"
    assert available(engine, str(tmp_path)).startswith(f"{tmp_path} has no ")


def test_a_program_for_an_engine_that_is_none():
    with pytest.raises(MachineError, match=r"^the engine unicorn is no program: /bin/true cannot be it$"):
        start("unicorn", Guest(b""), program="/bin/true")


def test_a_program_that_is_no_bochs():
    assert available("bochs", "/bin/true").startswith("/bin/true ")


def test_missing_kvm(monkeypatch, tmp_path):
    (tmp_path / "qemu-system-x86_64").write_text("")
    (tmp_path / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FIVEFOLD_QEMU", raising=False)
    monkeypatch.setattr(registry, "_KVM", str(tmp_path / "kvm"))

    assert available("kvm") == f"the engine kvm needs {tmp_path}/kvm, which is not there"
