"""Native code that came with the installation: programs that were compiled when the wheel was built.

A wheel has a file for each CPU beside this one, ``x86_64.code`` and ``aarch64.code``; a source tree has none. First
come lines of text, one a program: the digests of its name, of its sources and of its code, where the code lies, and the
modules of the sources. Behind an empty line is the code. Code that does not belong to the sources as they are now, or
is damaged, counts as absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache as once
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.metal.build import compiler_digest, content_key
from fivefold.metal.program import Program

_PLACE: Final = Path(__file__).parent


class PrebuiltCode(NamedTuple):
    """One line of the index; *content* and *code* are digests, *offset* counts from the first byte of code."""

    content: str
    code: str
    offset: int
    size: int
    modules: tuple[str, ...]


def find(program: Program, cpu: str) -> bytes | None:
    """Return the code that came for *program* on *cpu*; None if there is none for the present sources."""
    index, codes = _read(cpu)
    spec = _spec(program, cpu)
    entry = index.get(_digest(spec.encode()))
    if entry is None or entry.content != _digest(content_key(spec, entry.modules).encode()):
        return None
    code = codes[entry.offset : entry.offset + entry.size]
    return code if _digest(code) == entry.code else None


def pack(programs: Iterable[Program], cpu: str) -> bytes:
    """Compile *programs* for *cpu* and return the bytes of the file: equal sources and compilers give equal bytes."""
    from fivefold.metal.check.check import dependencies
    from fivefold.metal.run.host import compile_blob

    lines, codes = [], b""
    for program in programs:
        code = compile_blob(program, cpu)
        modules, spec = dependencies(program), _spec(program, cpu)
        content = _digest(content_key(spec, modules).encode())
        lines.append(" ".join([_digest(spec.encode()), content, _digest(code), f"{len(codes)} {len(code)}", *modules]))
        codes += code
    return "\n".join(lines).encode() + b"\n\n" + codes


@once
def _read(cpu: str) -> tuple[dict[str, PrebuiltCode], bytes]:
    try:
        head, _, codes = (_PLACE / f"{cpu}.code").read_bytes().partition(b"\n\n")
    except OSError:
        return {}, b""
    index = {}
    for line in head.decode("ascii", "replace").splitlines():
        name, content, code, offset, size, *modules = line.split(" ")
        index[name] = PrebuiltCode(content, code, int(offset), int(size), tuple(modules))
    return index, codes


def _spec(program: Program, cpu: str) -> str:
    return f"host {cpu}\n{program.describe()}\n{compiler_digest()}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
