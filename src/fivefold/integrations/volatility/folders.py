"""The folders that volatility3 is given: of the plug-in, and of the symbols that are made for it."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Final

from fivefold.errors import FivefoldError, MissingFileError
from fivefold.integrations.volatility.isf import SymbolFile
from fivefold.metal.cache import directory

DISTRIBUTION: Final = "fivefold-volatility3"
POINTER: Final = b"fivefold source\n"
"""How a file begins that stands for a source which is no file; the plug-in knows it."""


def plugin_folder() -> Path:
    """Where the plug-in is installed, for ``vol -p``; it is looked up, not imported. `MissingFileError` without it."""
    found = importlib.util.find_spec("fivefold_volatility3")
    if found is None or found.origin is None:
        raise MissingFileError(
            f"the plug-in is not installed: pip install {DISTRIBUTION} (from a checkout: pip install "
            "./integrations/volatility3); it is a distribution of its own, under volatility3's licence"
        )
    return Path(found.origin).parent / "plugins"


def symbol_folder() -> Path:
    """Where symbols are written unless another place is given: below the user's cache folder."""
    cache = directory()
    if cache is None:
        raise FivefoldError("there is no cache folder to write symbols to; give one with --output")
    return cache / "volatility3"


def write_symbols(symbols: SymbolFile, folder: Path) -> Path:
    """Write the ISF into *folder*, where ``vol -s`` finds it, and return its path: one for each build of a kernel."""
    name = "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in symbols.release)[:80]
    path = folder / "linux" / f"{name}-{symbols.digest}.json.gz"
    text = json.dumps(symbols.document(), separators=(",", ":")).encode()
    _write(path, gzip.compress(text, compresslevel=3, mtime=0))
    return path


def write_pointer(source: str, folder: Path) -> Path:
    """Write a file for ``vol -f`` that stands for a *source* which is no file, a running guest, and return its path."""
    path = folder / "sources" / hashlib.sha256(source.encode()).hexdigest()[:12]
    _write(path, POINTER + json.dumps({"source": source}).encode() + b"\n")
    return path


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing: volatility may be reading the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:  # whatever ends it, nothing half-written stays
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FivefoldError(f"cannot write {path}: {error.strerror}; give another folder with --output") from error
