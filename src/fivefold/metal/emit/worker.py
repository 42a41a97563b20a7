"""Compile an object in a process of its own, beside what this one compiles.

LLVM's binding does one thing at a time in a process, and most of a cold start is LLVM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fivefold.metal.program import Program

_CODE: Final = "from fivefold.metal.emit.worker import serve; serve()"


@contextmanager
def compiling(program: Program, prefix: str = "") -> Iterator[Callable[[], bytes]]:
    """Yield a function that waits for what `objects.compile_object` makes of *program* for x86-64.

    Where no other processor is free, or the other process cannot be had or fails, that function compiles
    here, and so raises what there is to raise. No process is left behind.
    """
    process = _start(program, prefix) if _is_processor_free() else None
    try:
        yield lambda: _result(process) or _compile(program, prefix)
    finally:
        if process is not None and process.returncode is None:
            process.kill()
            process.communicate()


def _is_processor_free() -> bool:
    """Tell whether there is somewhere to run: on a busy machine a second process only costs its imports."""
    processors = len(os.sched_getaffinity(0))
    return processors > 1 and os.getloadavg()[0] < processors


def _compile(program: Program, prefix: str) -> bytes:
    from fivefold.metal.emit.objects import compile_object

    return compile_object(program, prefix=prefix)


def _start(program: Program, prefix: str) -> subprocess.Popen[bytes] | None:
    # The same modules must be found there as here, whatever has been done to the path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parts = [program.modules, dict(program.bindings), dict(program.replace), program.roots, prefix]
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _CODE, json.dumps(parts)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def _result(process: subprocess.Popen[bytes] | None) -> bytes:
    """Return what the process wrote; nothing if there is none or it failed."""
    if process is None:
        return b""
    output, _ = process.communicate()
    return output if process.returncode == 0 else b""


def serve() -> None:
    """Be the other process: write the object that the argument asks for to the standard output."""
    modules, bindings, replace, roots, prefix = json.loads(sys.argv[1])
    made = _compile(Program(tuple(modules), bindings, replace, tuple(roots)), prefix)
    sys.stdout.buffer.write(made)
