"""gdb's `ff` commands in a real session on QEMU's stub, against the same commands on QEMU's dump of the same guest."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fivefold.boot import DEFAULT_LOAD_ADDRESS, build_image
from fivefold.integrations.gdb_line import gdb_line
from fivefold.machine.program import find_program
from fivefold.memory.live.qmp_client import QmpClient

TEXT = 0xFFFFFFFF81000000
DIRECT_MAP = {"five": 0xFF11000000000000, "four": 0xFFFF888000000000}
MAIN = "from fivefold.cli.main import main; main()"
LEFT_OUT = ("source", "area", "areas", "skipped", "of", "controls")
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gdb") / "fivefold.elf"
    file.write_bytes(build_image().place(DEFAULT_LOAD_ADDRESS, "pvh_entry"))
    return file


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start QEMU with sockets ``qmp`` and ``gdb`` and the log ``serial`` in the test's folder."""
    started = []

    def run(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [program, "-accel", "tcg", "-m", "24M", "-display", "none", "-nodefaults", "-serial", "file:serial"]
        command += ["-qmp", "unix:qmp,server=on,wait=off", "-gdb", "unix:gdb,server=on,wait=off", *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        started.append(process)
        until(lambda: (tmp_path / "gdb").exists(), process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@dataclass(frozen=True)
class Gdb:
    """A gdb: the system's, or one in a folder, which needs to be told where its Python and its data are."""

    command: tuple[str, ...] = ("gdb",)
    home: str = ""

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, **({"PYTHONHOME": self.home, "PYTHONDONTWRITEBYTECODE": "1"} if self.home else {})}


SYSTEM = Gdb()


@pytest.fixture(params=["system", "newer"])
def gdb(request: pytest.FixtureRequest) -> Gdb:
    """The system's gdb, and the one in the folder that FIVEFOLD_NEWER_GDB names."""
    return SYSTEM if request.param == "system" else newer_gdb()


def newer_gdb() -> Gdb:
    """The gdb in the folder that FIVEFOLD_NEWER_GDB names."""
    if not os.environ.get("FIVEFOLD_NEWER_GDB"):
        reason = "FIVEFOLD_NEWER_GDB names no other gdb (.ci/unpack FOLDER trixie gdb makes one)"
        (pytest.fail if os.environ.get("FIVEFOLD_REQUIRE_NEWER_GDB") else pytest.skip)(reason)
    found = find_program(["gdb"], None, "FIVEFOLD_NEWER_GDB")
    assert found is not None
    return Gdb((*found.command, f"--data-directory={found.root}/usr/share/gdb"), f"{found.root}/usr")


def session(folder: Path, *lines: str, line: str = "", gdb: Gdb = SYSTEM) -> list[str]:
    """What gdb prints for each of *lines*, stdout and stderr together, the first after its own greeting."""
    (folder / "line.gdb").write_text(line or gdb_line())
    call = [*gdb.command, "-nx", "-q", "-batch", "-x", "line.gdb"]
    for one in lines:
        call += ["-ex", one, "-ex", r"echo \n@@@\n"]
    # Merged by a file each: gdb orders its own two streams, and -batch keeps going after an error.
    done = subprocess.run(
        call, cwd=folder, env=gdb.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    assert "Traceback" not in done.stdout
    return [part.strip() for part in done.stdout.split("@@@\n")][: len(lines)]


def fivefold(folder: Path, *words: str) -> Any:
    call = [sys.executable, "-m", "fivefold", *words, "--json"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def same(value: Any) -> Any:
    """*value* without what names the source and what rests on a search of memory, which a stub is too slow for.

    QEMU's dump lacks EFER, too.
    """
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if key not in LEFT_OUT and not key.endswith("known_from")}
        return {key: same(one) for key, one in kept.items()}
    return [same(one) for one in value] if isinstance(value, list) else value


def steps(document: Any) -> list[Any]:
    """What each walk read, and where it led; all that a dump without EFER says alike."""
    names = ("level", "index", "at", "entry")
    return [
        (one["address"], one["phys"], [[step[name] for name in names] for step in one["steps"]])
        for one in document["walks"]
    ]


@pytest.mark.gdb
@pytest.mark.qemu
@pytest.mark.parametrize("mode", ["five", "four"])
def test_the_commands_say_what_they_say_of_a_dump(start: Start, image: Path, tmp_path: Path, mode: str) -> None:
    guest = start("qemu-system-x86_64", "-cpu", f"qemu64{',+la57' * (mode == 'five')}", "-kernel", str(image))
    until(lambda: b"\n# passed" in (tmp_path / "serial").read_bytes(), guest)
    with closing(QmpClient(str(tmp_path / "qmp"))) as client:
        client.ask("stop")
        client.ask("dump-guest-memory", paging=False, protocol=f"file:{tmp_path / 'dump'}")
    addresses = [f"{TEXT + 0x10:#x}", f"{DIRECT_MAP[mode] + 0x2000:#x}", "0x1000", "0x8000000000000000"]
    target, *printed = session(
        tmp_path, "target remote gdb", f"ff walk -j {TEXT:#x}+16 {' '.join(addresses[1:])}", "ff dump -j",
        "ff audit -j", "ff find --phys 0x2000 -j", "ff info -j", "ff explain -j", f"monitor gva2gpa {addresses[0]}",
        "x/2xb $rip",
    )  # fmt: skip
    assert "ff:" not in target, printed
    walked, dumped, audited, found, info, explained = (json.loads(text) for text in printed[:6])
    assert same(walked) == same(fivefold(tmp_path, "walk", "qmp:qmp", *addresses))
    assert same(audited) == same(fivefold(tmp_path, "audit", "qmp:qmp"))
    assert same(dumped) == same(fivefold(tmp_path, "dump", "dump"))
    assert same(found) == same(fivefold(tmp_path, "find", "dump", "--phys", "0x2000"))
    assert steps(walked) == steps(fivefold(tmp_path, "walk", "dump", *addresses))
    assert info["levels"] == (5 if mode == "five" else 4)
    assert explained["schema"] == "fivefold.explain/1"
    # QEMU's own walk.
    assert int(printed[6].split()[-1], 16) == int(walked["walks"][0]["phys"], 16)
    # gdb's own reads are virtual again: the guest stands in a jump to before it.
    assert re.fullmatch(r"0x[0-9a-f]+:\s+0xeb\s+0x[0-9a-f]{2}", printed[7])


def test_lines_of_progress_stay_out_of_gdb() -> None:
    """They would come all at once when the command ends, in front of a refusal or behind JSON."""
    start = re.search(r'^START = """(.+?)"""', Path(gdb_commands()).read_text(), re.MULTILINE | re.DOTALL)
    assert start is not None
    guest = Path(__file__).parents[1] / "data/guests/plain-la57-kaslr.elf.xz"
    words = ["find", str(guest), "--phys", "0x1000"]
    often = "from fivefold.cli import source_options; source_options.TELL_EVERY = 0.0"
    for program, told in ((f"{often}\n{MAIN}", True), (f"{often}\n{start[1]}", False)):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and ("fivefold: read" in done.stderr) is told


def gdb_commands() -> str:
    """The path of the file that runs in gdb."""
    found = importlib.util.find_spec("fivefold.integrations.gdb_commands")
    assert found is not None and found.origin is not None
    return found.origin


def bare_python(folder: Path) -> Path:
    """An interpreter that has no packages."""
    venv.create(folder / "bare", symlinks=True)
    return folder / "bare/bin/python3"


@pytest.mark.gdb
def test_what_comes_after_a_line_of_an_environment_that_is_gone_is_read(tmp_path: Path, gdb: Gdb) -> None:
    gone = gdb_line().replace("gdb_commands.py", "gone.py")
    told = session(tmp_path, "print 1", line=f"{gone}\necho after\\n", gdb=gdb)[0].splitlines()
    assert re.fullmatch(
        r"fivefold: \S+/gone.py is gone: no ff commands; `fivefold gdb` prints the line to use", told[0]
    )
    assert told[1:] == ["after", "$1 = 1"]


@pytest.mark.gdb
@pytest.mark.qemu
def test_the_prompt_survives(start: Start, tmp_path: Path, gdb: Gdb) -> None:
    """No target, a machine at reset, mistakes in typing, 32 bits, a target that goes away: a line each."""
    guest = start("qemu-system-i386", "-S")
    moved = gdb_line(str(tmp_path / "nowhere"))
    expected = f"ff: cannot start {tmp_path}/nowhere; print the line anew: fivefold gdb"
    assert session(tmp_path, "target remote gdb", "ff info", line=moved, gdb=gdb)[1] == expected
    bare = gdb_line(str(bare_python(tmp_path)))
    for told in session(tmp_path, "target remote gdb", "ff info", "ff walk --help", line=bare, gdb=gdb)[1:]:
        assert "lacks Fivefold (No module named 'fivefold'); print the line anew: fivefold gdb" in told
        assert told.startswith("ff: ") and "\n" not in told
    no_target, _, reset, symbol, wide, option, nothing, _, gone, after = session(
        tmp_path, "ff info", "target remote gdb", "ff walk 0", "ff walk nosuch+1", "ff walk 0x1ffffffffffffffff",
        "ff dump --nosuch", "ff walk",
        f"shell kill -9 {guest.pid}", "ff walk 0", "ff info", gdb=gdb,
    )  # fmt: skip
    assert no_target == "ff: there is no target; expected one of QEMU's stub: target remote localhost:1234"
    assert reset.startswith("ff: CPU 0 of gdb:gdb has paging off (CR0.PG=0)")
    assert symbol == 'ff: No symbol table is loaded.  Use the "file" command.'
    assert wide == "ff: 0x1ffffffffffffffff is no address; expected 64 bits"
    # click words it in two ways, by its version.
    assert option.replace(" '", ": ").startswith("ff: No such option: --nosuch")
    assert nothing == "ff: Missing argument 'ADDRESS'."
    assert gone.startswith("ff: Remote co") and "\n" not in gone
    assert after == no_target
    process = f"file {shutil.which('true')}\nstarti\n{gdb_line()}"
    native, words, options, unknown = session(
        tmp_path, "ff info", "ff", "ff walk --help", "ff nosuch", line=process, gdb=gdb
    )
    assert native.endswith("ff: the target is native; expected the stub of a machine: target remote …")
    assert "ff audit -- What breaks W^X" in words
    assert "--json" in options and "ADDRESS" in options
    assert unknown.startswith('ff: "nosuch" is no command; expected info, dump, walk, audit, explain or find')


@pytest.mark.gdb
@pytest.mark.qemu
@pytest.mark.parametrize("ours_first", [False, True])
def test_nothing_of_pwndbg_and_gef_is_overridden(start: Start, tmp_path: Path, gdb: Gdb, ours_first: bool) -> None:
    """Neither can be had here: a stand-in takes all names that their documents list, their hooks and the prompt."""
    start("qemu-system-x86_64", "-S")
    here = Path(__file__).parent
    names = repr(str(here / "other_plugins.txt"))
    theirs = f"python exec(open({str(here / 'stand_in.py')!r}).read(), {{'NAMES': {names}, '__name__': 'stand_in'}})"
    both = [gdb_line(), theirs] if ours_first else [theirs, gdb_line()]
    spaces = "python print(sorted(name for name in globals() if name[0] != '_'))"
    line = "\n".join([spaces, *both, spaces])
    done = session(tmp_path, "target remote gdb", "ff walk 0", "standing", line=line, gdb=gdb)
    before, after = (text for text in done[0].splitlines() if text.startswith("["))
    assert before == after
    assert done[1].startswith("ff: CPU 0 of gdb:gdb has paging off")
    taken = len([word for text in (here / "other_plugins.txt").read_text().splitlines() if text[0] != "#"
                 for word in text.split()[2:]])  # fmt: skip
    assert done[2].splitlines() == [f"lost [] True of {taken}", "seen ['StopEvent']"] and taken > 250


def test_no_name_of_others_begins_with_ours() -> None:
    text = (Path(__file__).parent / "other_plugins.txt").read_text()
    names = [word for line in text.splitlines() if line[0] != "#" for word in line.split()[2:]]
    assert not [name for name in names if name == "ff" or "ff".startswith(name)]
    source = (Path(gdb_line.__code__.co_filename).with_name("gdb_commands.py")).read_text()
    assert not re.findall(r"gdb\.(?:events|prompt_hook|Parameter|Function|set_parameter)|\bset (?!to)", source)


def test_the_line_is_one_and_needs_no_package_of_ours() -> None:
    line = gdb_line()
    assert "\n" not in line and line.startswith("python exec(") and sys.executable in line
    commands = Path(re.findall(r"open\('([^']+)'", line)[0])
    imported = re.findall(r"^(?:import|from) (\w+)", commands.read_text(), re.MULTILINE)
    assert set(imported) <= {*sys.stdlib_module_names, "gdb"}
    assert shutil.which("fivefold") or commands.exists()
