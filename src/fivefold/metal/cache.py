"""Keep what took long to make, by a key that says all it was made from.

One file an entry, under ``$FIVEFOLD_CACHE``, else ``$XDG_CACHE_HOME/fivefold``, else
``~/.cache/fivefold``. An entry carries its own digest: a damaged one counts as absent.
Where nothing can be written, everything works and is made again each time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_MAGIC: Final = b"fivefold cache 1\n"
_DIGEST_SIZE: Final = 32
_MOST_ENTRIES: Final = 512


def directory() -> Path | None:
    """Return where entries are kept; None where there is no home to keep them in.

    The directory may not exist yet. Setting ``FIVEFOLD_CACHE`` to nothing turns the cache off.
    """
    chosen = os.environ.get("FIVEFOLD_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # The XDG specification: a relative one is ignored.
        return base / "fivefold"
    try:
        return Path.home() / ".cache" / "fivefold"
    except RuntimeError:  # no HOME, and no entry for this user in the password database
        return None


def get_or_make(key: str, make: Callable[[], bytes]) -> bytes:
    """Return the entry for *key*, or what *make* returns, which is then kept."""
    found = lookup(key)
    if found is None:
        found = make()
        store(key, found)
    return found


def lookup(key: str) -> bytes | None:
    """Return the entry for *key*; None if there is none, or it is damaged, or not ours."""
    place = directory()
    if place is None:
        return None
    try:
        with (place / _file_name(key)).open("rb") as file:
            # Entries hold native code: those that another user could have left are not taken.
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            data = file.read()
    except OSError:
        return None
    head = len(_MAGIC) + _DIGEST_SIZE
    payload = data[head:]
    return payload if data[:head] == _MAGIC + hashlib.sha256(payload).digest() else None


def store(key: str, payload: bytes) -> None:
    """Keep *payload* under *key*; a reader sees all of it or none. Failing to write is no error."""
    place = directory()
    if place is None:
        return
    target = place / _file_name(key)
    draft = place / f".{target.name}.{os.getpid()}"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.write_bytes(_MAGIC + hashlib.sha256(payload).digest() + payload)
        draft.replace(target)
        _prune(place)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _file_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _prune(place: Path) -> None:
    """Drop the oldest entries beyond the limit, so that edited sources do not fill the disk."""
    entries = [entry for entry in os.scandir(place) if entry.is_file()]
    if len(entries) > _MOST_ENTRIES:
        entries.sort(key=lambda entry: entry.stat().st_mtime)
        for entry in entries[: len(entries) - _MOST_ENTRIES // 2]:
            Path(entry.path).unlink(missing_ok=True)
