"""A session of drgn, or a script in it, over a guest that was opened here."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fivefold.errors import FivefoldError
from fivefold.integrations.drgn_program import to_drgn
from fivefold.survey.space import Space

FAILED = 1
"""The status where the code that was given raised an error."""


def run_session(
    space: Space, *, code: str | None, script: Path | None, debug_files: Sequence[Path], tell: Callable[[str], None]
) -> int:
    """Run *code* or *script* with drgn's names, else a session at the terminal; return the exit status.

    *tell* is told in a line what a user should know. `FivefoldError` where *script* or *debug_files* cannot be used.
    """
    text = code if script is None else _read(script)
    program = to_drgn(space)
    _load(program, debug_files, tell)
    from drgn.cli import default_globals, run_interactive, version_header

    if text is None:
        tell(version_header().partition("\n")[0])
        run_interactive(program)
        return 0
    names = {**default_globals(program), "__name__": "__main__"}
    try:
        exec(compile(text, "CODE" if script is None else str(script), "exec"), names)
    except Exception:  # noqa: BLE001 - the user's code: its trace is the answer
        tell(traceback.format_exc().rstrip())
        return FAILED
    return 0


def _read(script: Path) -> str:
    try:
        return script.read_text()
    except (OSError, ValueError) as error:
        raise FivefoldError(f"{script}: {getattr(error, 'strerror', None) or error}") from error


def _load(program: Any, files: Sequence[Path], tell: Callable[[str], None]) -> None:
    """Load debug information, or say what does not work without it."""
    import drgn

    if not files:
        tell("no debug information: what needs types (prog['init_task'], for_each_task, …) fails; give --vmlinux FILE")
        return
    for file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise FivefoldError(f"{file}: {error.strerror}") from error
    try:
        program.load_debug_info(files)
    except Exception as error:  # drgn has an error of its own for each kind of file
        raise FivefoldError(f"drgn: {str(error).strip()}") from error
    if not any(module.debug_file_status == drgn.ModuleFileStatus.HAVE for module in program.modules()):
        tell("these files have no debug information of this kernel, by its build ID: what needs types fails")
