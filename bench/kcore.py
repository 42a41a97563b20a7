"""Read a running kernel's own tables from within: Fivefold in a booted guest, on its /proc/kcore.

    FIVEFOLD_FETCH_GUEST=1 python bench/kcore.py [--levels 4|5]

The guest is that of the live tests, with this Python and what Fivefold needs in its initial file system. It walks some
addresses of its kernel through ``kcore:`` and writes the answers down; then it is stopped, and the same addresses are
walked from outside, through QEMU. Status 1 where the two differ. It takes some minutes without KVM.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fivefold.survey.space import open_space

TESTS: Final = Path(__file__).parents[1] / "tests"
LEFT_OUT: Final = re.compile(r"/(?:test|tests|idlelib|tkinter|ensurepip|lib2to3|site-packages|pydoc_data)/|\.a$")
SYMBOLS: Final = ("_text", "init_task", "schedule", "sys_call_table", "init_mm")
ASKED: Final = b"""
export PATH=/bin HOME=/ PYTHONPATH=/site LD_LIBRARY_PATH=/lib PYTHONDONTWRITEBYTECODE=1 COLUMNS=150
five="/python/bin/python3 -c 'from fivefold.cli.main import main; main()'"
names="_text init_task schedule sys_call_table init_mm"
at=
for name in $names; do at="$at $($b awk -v n=$name '$3==n {print $1; exit}' /proc/kallsyms)"; done
( eval $five walk kcore: $at --json; echo ===
  eval $five info kcore: ; echo ===
  eval $five roots kcore: --json; echo === ) \\
  2>&1 | $b dd of=/dev/nvme0n1 bs=64k conv=sync 2>/dev/null
"""


def needed(name: str = "fivefold", known: set[str] | None = None) -> set[str]:
    """The packages that *name* needs, without extras."""
    known = set() if known is None else known
    for text in importlib.metadata.requires(name) or ():
        wanted = re.match(r"[\w.-]+", text)
        if wanted is None or "extra ==" in text or wanted[0] in known:
            continue
        try:
            importlib.metadata.version(wanted[0])
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        known.add(wanted[0])
        needed(wanted[0], known)
    return known


def files() -> Iterator[tuple[str, Path]]:
    """Names in the guest and files here: the interpreter, its library, shared objects, packages, Fivefold."""
    python = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    yield "python/bin/python3", python
    for path in library.rglob("*"):
        name = f"python/lib/{library.name}/{path.relative_to(library)}"
        if path.is_file() and not LEFT_OUT.search(f"/{name}"):
            yield name, path
    for package in sorted(needed()):
        for entry in importlib.metadata.files(package) or ():
            path = Path(str(entry.locate()))
            if path.is_file() and ".." not in entry.parts and not LEFT_OUT.search(f"/{entry}"):
                yield f"site/{entry}", path
    own = Path(__file__).parents[1] / "src"
    yield from ((f"site/{path.relative_to(own)}", path) for path in own.rglob("*") if path.is_file())


def objects(found: list[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """The system's shared objects that the files need, and the loader."""
    seen = set()
    for _, path in found:
        if path.suffix in (".py", ".pyc") or path.open("rb").read(4) != b"\x7fELF":
            continue
        said = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        for place in re.findall(r"(?:=> |^\s*)(/\S+)", said, re.M):
            if place not in seen and "/site-packages/" not in place:
                seen.add(place)
                yield (place.lstrip("/") if "ld-linux" in place else f"lib/{Path(place).name}"), Path(place)


def initrd(tests: Any, package: Any, place: Path) -> Path:
    """The live tests' initial file system with all that in it, and with an init that asks and writes down."""
    found = list(files())
    found += objects(found)
    folders = {str(parent) for name, _ in found for parent in Path(name).parents} - {".", "bin", "dev", "proc"}
    init = re.sub(rb"\(.*?2>/dev/null\n", lambda _: ASKED, tests.INIT, flags=re.DOTALL)
    assert init != tests.INIT
    base = tests.write_initrd(package, place, init).read_bytes()
    entries = [(name, 0o040755, (0, 0), b"") for name in sorted(folders)]
    entries += [(name, 0o100755, (0, 0), path.read_bytes()) for name, path in found]
    entries.append(("TRAILER!!!", 0, (0, 0), b""))
    more = b"".join(tests._newc(number, *entry) for number, entry in enumerate(entries, 1000))
    path = place / "initrd-python"
    path.write_bytes(base + bytes(-len(base) % 512) + more)
    return path


def main() -> int:
    """Boot, ask within, ask outside, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--levels", type=int, choices=(4, 5), default=5)
    levels = parser.parse_args().levels
    spec = importlib.util.spec_from_file_location("live_guest", TESTS / "live" / "conftest.py")
    assert spec is not None and spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    sys.modules["live_guest"] = tests
    spec.loader.exec_module(tests)
    tests.RAM, tests.BOOT_SECONDS = 1536 << 20, 1500
    tests.CPUS = {5: "max", 4: "max,-la57"}  # numpy needs more than qemu64 has
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        package = tests.find_package(place)
        (place / "guest").mkdir()
        with tests.started_guest(package, initrd(tests, package, place), place / "guest", levels) as guest:
            text = guest.told.read_bytes().replace(b"\0", b"").decode(errors="replace")
            return compare(text, f"qmp:{guest.held}", levels)


def compare(text: str, source: str, levels: int) -> int:
    """What the guest said of itself, against what is seen from outside."""
    walked, info, roots = text.split("===")[:3]
    try:
        inside = json.loads(walked)
    except ValueError:
        print(text[-3000:])
        return 1
    print(info.strip())
    wrong = int(inside["levels"] != levels)
    with open_space(source) as space:
        for one in inside["walks"]:
            va = int(one["va"], 16)
            outside = space.translate(va)
            phys = hex(int(one["phys"], 16)) if one.get("phys") else None
            theirs = hex(outside.pa) if hasattr(outside, "pa") else None
            print(f"{va:#x} {one['symbol']}: inside {phys}, outside {theirs} {space.symbols.at(va)}")
            wrong += phys != theirs or one["symbol"] != space.symbols.at(va)
    found = json.loads(roots[roots.index("{") :])
    names = sorted({one["name"] for one in found["processes"]})
    print(f"{len(found['roots'])} roots, {len(found['processes'])} processes: {', '.join(names[:12])} …")
    print("the same inside and outside" if not wrong else f"{wrong} differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
