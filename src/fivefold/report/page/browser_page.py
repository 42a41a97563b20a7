"""The page that explains logs and walks addresses in a browser, and the sources that it runs there.

`write_site` makes a folder for a plain file server. Nothing that is pasted leaves the machine: the page fetches what
lies beside it, and its policy forbids anything else.
"""

from __future__ import annotations

import shutil
import zipfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Final

from fivefold.report.page.templating import render

RUNTIME: Final = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
"""The files of Pyodide's package that are needed."""

_LEFT_OUT: Final = frozenset({"boot", "campaign", "cli", "conform", "kernel", "matrix", "metal"})
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)

EXAMPLES: Final = {
    "a page fault of a kernel with five levels": """\
BUG: unable to handle page fault for address: ff11800012345678
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 1080067 P4D 0
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 1 PID: 42 Comm: demo Not tainted 6.12.0 #1
RIP: 0010:store_it+0x14/0x30
RSP: 0018:ffffc90000a3fe08 EFLAGS: 00010246
CR2: ff11800012345678 CR3: 0000000001080000 CR4: 0000000000771ef0
""",
    "a null pointer": """\
BUG: kernel NULL pointer dereference, address: 0000000000000018
#PF: supervisor read access in kernel mode
#PF: error_code(0x0000) - not-present page
Oops: 0000 [#1] SMP
CPU: 0 PID: 7 Comm: demo Not tainted 6.1.0 #1
RIP: 0010:take_it+0x4/0x20
CR2: 0000000000000018
""",
}
"""Logs to try, written by us."""


def write_site(folder: Path, runtime: Path) -> None:
    """Write the page into *folder*, with the files of Pyodide from *runtime*, the folder of its package."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(browser_page(), "utf-8")
    (folder / "pyodide").mkdir(exist_ok=True)
    for name in RUNTIME:
        shutil.copyfile(runtime / name, folder / "pyodide" / name)
    write_sources(folder / "fivefold.zip")


def browser_page() -> str:
    """The page itself."""
    return render("browser.html", title="Fivefold in the browser", version=version("fivefold"), examples=EXAMPLES)


def write_sources(path: Path) -> None:
    """The sources that the page runs, as an archive of Python modules; the same bytes for the same sources."""
    package = Path(str(files("fivefold")))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in sorted(package.rglob("*.py")):
            inside = source.relative_to(package)
            if inside.parts[0] not in _LEFT_OUT:
                archive.writestr(zipfile.ZipInfo(f"fivefold/{inside.as_posix()}", _EPOCH), source.read_bytes())
