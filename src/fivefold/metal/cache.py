"""Keep what took long to make, by a key that says all it was made from.

One file an entry, under ``$FIVEFOLD_CACHE``, else ``$XDG_CACHE_HOME/fivefold``, else
``~/.cache/fivefold``. An entry carries the digests of its key and its content: a damaged one, or one under another's
name, counts as absent. Where nothing can be written, everything works and is made again each time.

Entries hold native code, so only what no other user can write is taken: the directory and the entry belong to this
user, no other may write to them, and neither is reached through a link. All of it is looked at through one open
directory, so that it cannot be exchanged in between.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_MAGIC: Final = b"fivefold cache 2\n"
_DIGEST_SIZE: Final = 32
_HEAD: Final = len(_MAGIC) + 2 * _DIGEST_SIZE
_MOST_ENTRIES: Final = 512
_OTHERS_WRITE: Final = 0o022


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
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry for this user in the password database
        return None
    return home / ".cache" / "fivefold" if home.is_absolute() else None


def get_or_make(key: str, make: Callable[[], bytes]) -> bytes:
    """Return the entry for *key*, or what *make* returns, which is then kept."""
    found = lookup(key)
    if found is None:
        found = make()
        store(key, found)
    return found


def lookup(key: str) -> bytes | None:
    """Return the entry for *key*; None if there is none, or it is damaged, another's, or not only ours to write."""
    with suppress(OSError), _opened() as place:
        entry = os.open(_file_name(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=place)
        with os.fdopen(entry, "rb") as file:
            if _is_ours(entry, stat.S_IFREG):
                data = file.read()
                payload = data[_HEAD:]
                return payload if data[:_HEAD] == _head(key, payload) else None
    return None


def store(key: str, payload: bytes) -> None:
    """Keep *payload* under *key*; a reader sees all of it or none. Failing to write is no error."""
    with suppress(OSError):
        if place := directory():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened() as opened:
            _write(opened, _file_name(key), _head(key, payload) + payload)
            _prune(opened)


@contextmanager
def _opened() -> Iterator[int]:
    """The directory as a descriptor; `OSError` where there is none, or others can write to it."""
    place = directory()
    if place is None:
        raise FileNotFoundError
    opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _is_ours(opened, stat.S_IFDIR):
            raise PermissionError
        yield opened
    finally:
        os.close(opened)


def _is_ours(descriptor: int, kind: int) -> bool:
    found = os.fstat(descriptor)
    return stat.S_IFMT(found.st_mode) == kind and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_WRITE


def _write(place: int, name: str, data: bytes) -> None:
    draft = f".{name}.{secrets.token_hex(8)}"
    created = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place)
    try:
        with os.fdopen(created, "wb") as file:
            file.write(data)
        os.rename(draft, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:  # Ctrl-C too must leave no draft
        with suppress(OSError):
            os.unlink(draft, dir_fd=place)
        raise


def _file_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _head(key: str, payload: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(key.encode()).digest() + hashlib.sha256(payload).digest()


def _prune(place: int) -> None:
    """Drop the oldest entries beyond the limit, so that edited sources do not fill the disk."""
    with os.scandir(place) as found:
        entries = [(entry.stat(follow_symlinks=False).st_mtime, entry.name) for entry in found]
    if len(entries) > _MOST_ENTRIES:
        for _, name in sorted(entries)[: len(entries) - _MOST_ENTRIES // 2]:
            with suppress(OSError):
                os.unlink(name, dir_fd=place)
