"""Compile one copy of the kernel in a process of its own, beside what this one compiles.

The two copies are most of a cold start, and LLVM's binding does one thing at a time in a
process. Started as a module, this is that process: it writes the object to its output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def compiling(mode: str, here: Callable[[str], bytes]) -> Iterator[Callable[[], bytes]]:
    """Yield a function that waits for the kernel's object for *mode*.

    Where there is one processor, or no such process, or it fails, that function calls *here*,
    which says what is wrong if the sources are. No process is left behind.
    """
    process = _start(mode) if len(os.sched_getaffinity(0)) > 1 else None
    try:
        yield lambda: _result(process) or here(mode)
    finally:
        if process is not None and process.returncode is None:
            process.kill()
            process.communicate()


def _start(mode: str) -> subprocess.Popen[bytes] | None:
    # The same modules must be found there as here, whatever has been done to the path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", __spec__.name, mode]
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def _result(process: subprocess.Popen[bytes] | None) -> bytes:
    """Return what the process wrote; nothing if it failed."""
    if process is None:
        return b""
    output, _ = process.communicate()
    return output if process.returncode == 0 else b""


def _main() -> None:
    from fivefold.boot.build import kernel_object

    sys.stdout.buffer.write(kernel_object(sys.argv[1]))


if __name__ == "__main__":
    _main()
