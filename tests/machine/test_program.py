"""Where an engine's program is: on the path, said, or in a folder that packages were unpacked into."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fivefold.errors import MachineError
from fivefold.machine.program import find_program


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A folder as packages leave it: a program, the loader, no links to the system."""
    root = tmp_path / "unpacked"
    for place in ("usr/bin", "usr/lib/x86_64-linux-gnu", "usr/share/tool"):
        (root / place).mkdir(parents=True)
    shutil.copy("/bin/true", root / "usr/bin/tool")
    (root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").write_text("")
    (root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").chmod(0o755)
    return root


@pytest.mark.parametrize("said", ["", "usr/bin/tool"])
def test_a_program_in_a_folder_is_started_by_its_own_loader(unpacked: Path, said: str) -> None:
    found = find_program(("tool",), str(unpacked / said), "NO_SUCH_VARIABLE")
    assert found is not None
    assert found.command[0] == f"{unpacked}/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    assert (found.path, found.root, found.is_unpacked) == (unpacked / "usr/bin/tool", unpacked, True)
    assert found.data("usr/share/none", "usr/share/tool") == unpacked / "usr/share/tool"


def test_a_script_is_started_as_it_is(unpacked: Path) -> None:
    (unpacked / "usr/bin/tool").write_text("#!/bin/sh\n")
    found = find_program(("tool",), str(unpacked), "NO_SUCH_VARIABLE")
    assert found is not None
    assert found.command == (f"{unpacked}/usr/bin/tool",)


def test_what_is_said_goes_before_the_environment(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL", "/bin/true")
    assert find_program(("tool",), None, "TOOL") == (("/bin/true",), Path("/"))
    found = find_program(("tool",), str(unpacked), "TOOL")
    assert found is not None and found.root == unpacked
    monkeypatch.setenv("TOOL", "")
    monkeypatch.setenv("PATH", "")
    assert find_program(("tool",), None, "TOOL") is None


@pytest.mark.parametrize("said", ["none", "usr/share/tool"])
def test_what_is_no_program(unpacked: Path, said: str) -> None:
    with pytest.raises(MachineError, match=f"{unpacked / said} (is not a program|has no tool in it)"):
        find_program(("tool",), str(unpacked / said), "NO_SUCH_VARIABLE")
