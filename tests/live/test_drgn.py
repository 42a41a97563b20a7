"""drgn on the dump of a real Linux that it refuses, in either mode, against what that Linux says of itself.

drgn walks the tables by its own code, and symbols are held against what the guest printed; neither shares code with us.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fivefold as ff

pytestmark = [pytest.mark.qemu, pytest.mark.drgn]

MAIN = "from fivefold.cli.main import main; main()"
WINDOW = 0xFFFF_FFFF_8000_0000


@pytest.fixture(scope="module")
def drgn() -> Any:
    """The package; in CI it must be there."""
    if importlib.util.find_spec("drgn") is None:
        if os.environ.get("FIVEFOLD_REQUIRE_DRGN"):
            pytest.fail("drgn is required here", pytrace=False)
        pytest.skip("needs drgn: pip install 'fivefold[drgn]'")
    import drgn

    return drgn


@pytest.fixture(scope="module")
def theirs(drgn: Any, guest: Any) -> dict[str, int]:
    """The kernel's symbols that have a name of their own, as the guest wrote them."""
    text = Path(guest.told).read_bytes().decode().partition("\n===")[0]
    found: dict[str, list[int]] = {}
    for address, name in re.findall(r"^([0-9a-f]{16}) \S (\S+)$", text, re.MULTILINE):
        found.setdefault(name, []).append(int(address, 16))
    return {name: at[0] for name, at in found.items() if len(at) == 1 and at[0] >= WINDOW}


@pytest.fixture(scope="module")
def dump(guest: Any, drgn: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What QEMU writes."""
    path = tmp_path_factory.mktemp("dump") / "core"
    with guest.monitor.patience(60):
        guest.monitor.ask("dump-guest-memory", paging=False, protocol=f"file:{path}")
    yield path
    path.unlink()


def fivefold(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )


def test_a_program_over_a_dump_that_drgn_refuses(drgn: Any, guest: Any, dump: Path, theirs: dict[str, int]) -> None:
    """Symbols by name and by address are the guest's, and drgn's walk leads where ours does."""
    with pytest.raises(ValueError, match=r"vmcoreinfo|VMCOREINFO|QEMU"):
        drgn.Program().set_core_dump(str(dump))
    draw = random.Random(guest.levels)
    with ff.open(dump) as space:
        assert space.levels == guest.levels
        program = ff.to_drgn(space)
        assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
        for name in draw.sample(sorted(theirs), 50):
            found = program.symbol(name)
            assert (found.name, found.address) == (name, theirs[name])
            assert name in {one.name for one in program.symbols(theirs[name])}
        at = theirs["linux_banner"]
        assert program.read(at, 14) == b"Linux version "
        assert program["UTS_RELEASE"].string_().decode() == space.release.value
        from _drgn import _linux_helper_follow_phys

        root = program.symbol("init_top_pgt").address
        start, end = theirs["_text"], theirs["_end"]
        for va in (draw.randrange(start, end) for _ in range(100)):
            ours = space.translate(va)
            if isinstance(ours, ff.Mapped):
                assert _linux_helper_follow_phys(program, root, va) == ours.pa
            else:
                with pytest.raises(drgn.FaultError):
                    program.read(va, 1)


def test_the_command_on_the_living_guest(guest: Any, theirs: dict[str, int]) -> None:
    """It says what needs debug information, runs the code that is given, and tells its error by its status."""
    name = random.Random(guest.levels).choice(sorted(theirs))
    code = f"print(hex(prog.symbol({name!r}).address)); print(prog.flags)"
    done = fivefold("drgn", f"qmp:{guest.qmp}", "-e", code)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == hex(theirs[name]), done.stderr
    assert "IS_LINUX_KERNEL" in done.stdout and "IS_LIVE" in done.stdout
    assert "no debug information" in done.stderr and done.stderr.count("\n") == 1
    done = fivefold("drgn", guest.ram, "-e", "prog['init_task']")
    assert done.returncode == 1 and "ObjectNotFoundError" in done.stderr
