"""Compiled programs by the content of their sources: compiled once, found again without the compiler.

The key is made from the bytes of every module that the program depends on, of the
compiler, and from the versions of Python and llvmlite. Which modules those are is
itself kept from the last compilation: the list can only change if one of them does.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache as once
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from fivefold.metal import cache
from fivefold.metal.program import Program

_STARTED: Final = time.time()


def cached_object(program: Program, *, arch: str = "x86_64", prefix: str = "", asm: str = "") -> bytes:
    """Return what `objects.compile_object` returns, from the cache if it is there."""

    def make() -> bytes:
        from fivefold.metal.emit.objects import compile_object

        return compile_object(program, arch=arch, prefix=prefix, asm=asm)

    return cached(f"object {arch} {prefix!r} {asm!r}", program, make)


def cached(what: str, program: Program, make: Callable[[], bytes]) -> bytes:
    """Return what *make* makes of *program*, from the cache if all sources are as they were.

    *what* says what else the result depends on.
    """
    spec = f"{what}\n{program.describe()}\n{toolchain()}"
    listing = cache.lookup(f"modules\n{spec}")
    if listing is not None:
        found = cache.lookup(content_key(spec, listing.decode().split()))
        if found is not None:
            return found
    made = make()
    names = _dependencies(program)
    if not _edited_since_start(names):
        cache.store(f"modules\n{spec}", "\n".join(names).encode())
        cache.store(content_key(spec, names), made)
    return made


def _edited_since_start(names: Iterable[str]) -> bool:
    """Tell whether a module or the compiler changed on disk after this process may have imported it.

    The key would be that of the new text, and the constants or the code those of the old.
    """
    paths = [path for path in map(source_path, names) if path] + _compiler()
    return any(path.stat().st_mtime > _STARTED for path in paths)


def _compiler() -> list[Path]:
    return source_files(Path(__file__).parent)


def source_files(place: Path) -> list[Path]:
    """Return the Python and assembly files at and below *place*, sorted; a file stands for itself."""
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*") if path.suffix in (".py", ".S") and path.is_file())


def sources_digest(package: Path, parts: Iterable[str]) -> str:
    """Return a digest of the paths below *package* and the bytes of all sources of its *parts*, files or folders."""
    digest = hashlib.sha256()
    for path in (path for part in parts for path in source_files(package / part)):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _dependencies(program: Program) -> tuple[str, ...]:
    from fivefold.metal.check.check import dependencies

    return dependencies(program)


def content_key(spec: str, modules: Iterable[str]) -> str:
    """Return the key for *spec* and the present bytes of *modules*."""
    lines = [spec]
    for name in modules:
        path = source_path(name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path else "missing"
        lines.append(f"{name} {digest}")
    return "\n".join(lines)


def source_path(name: str) -> Path | None:
    """Return the file of module *name* without importing anything; None if there is none."""
    places = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec and spec.origin else None


@once
def compiler_digest() -> str:
    """Return a digest of the compiler's own sources."""
    return sources_digest(Path(__file__).parents[1], ("metal",))


@once
def toolchain() -> str:
    """Return what the compiler is: its own sources, Python, llvmlite."""
    return f"{compiler_digest()} python {sys.version_info[:2]} llvmlite {_llvmlite_version()}"


def _llvmlite_version() -> str:
    """Return the version of llvmlite from its files; importing it would cost more than all the rest."""
    spec = PathFinder.find_spec("llvmlite")
    if spec is None or spec.origin is None:
        return "none"
    recorded = Path(spec.origin).with_name("_version.py")
    if recorded.is_file():
        return hashlib.sha256(recorded.read_bytes()).hexdigest()
    from importlib.metadata import version  # slow to import, so only where it must be

    return version("llvmlite")
