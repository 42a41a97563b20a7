"""Compile an object in a process of its own, beside what this one compiles.

LLVM's binding does one thing at a time in a process, and most of a cold start is LLVM.

The process runs isolated: neither the current directory, which may be an unpacked archive from elsewhere, nor what
the environment says has a part in where it finds modules.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fivefold.metal.program import Program

_CODE: Final = """
import json, sys
parent, sys.path[:], *parts = json.loads(sys.argv[1])
from fivefold.metal.emit.worker import serve
serve(parent, *parts)
"""
_PR_SET_PDEATHSIG: Final = 1
_DIGEST_SIZE: Final = 32


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
    parts = [program.modules, dict(program.bindings), dict(program.replace), program.roots, prefix]
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _CODE, json.dumps([os.getpid(), _path(), *parts])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def _path() -> list[str]:
    """Where modules are found, as here, but never in the current directory: without it, this process compiles."""
    here = os.path.realpath(os.curdir)
    return [place for place in sys.path if place.startswith(os.sep) and os.path.realpath(place) != here]


def _result(process: subprocess.Popen[bytes] | None) -> bytes:
    """Return what the process made; nothing if there is none, it failed, or it printed anything else."""
    if process is None:
        return b""
    output, _ = process.communicate()
    digest, made = output[:_DIGEST_SIZE], output[_DIGEST_SIZE:]
    return made if process.returncode == 0 and digest == hashlib.sha256(made).digest() else b""


def serve(
    parent: int,
    modules: list[str],
    bindings: dict[str, int],
    replace: dict[str, str],
    roots: list[str],
    prefix: str,
) -> None:
    """Be the other process: write a digest and the object to the standard output. Ends with *parent*."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    made = _compile(Program(tuple(modules), bindings, replace, tuple(roots)), prefix)
    sys.stdout.buffer.write(hashlib.sha256(made).digest() + made)
