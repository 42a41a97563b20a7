"""Memory that is lent over a pipe, against the file that it is in."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

REQUEST = struct.Struct("<QI")


def served(source: Path, *asked: tuple[int, int], more: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "fivefold.integrations.memory_server", source],
        input=b"".join(REQUEST.pack(*one) for one in asked) + more,
        capture_output=True,
        check=False,
        timeout=120,
    )


def lime(path: Path, start: int, data: bytes) -> Path:
    path.write_bytes(struct.pack("<IIQQ8x", 0x4C694D45, 1, start, start + len(data) - 1) + data)
    return path


def test_what_is_asked_for_comes_in_order(tmp_path: Path) -> None:
    """Bytes are the file's, what lies in a hole is said to be unreadable and as long, and the end of input ends it."""
    data = bytes(range(256)) * 32
    done = served(lime(tmp_path / "m", 0x10000, data), (0x10010, 5), (0x11FFE, 4), (0x10000, 8192), more=b"\0\0")
    head, _, answers = done.stdout.partition(b"\n")
    assert json.loads(head) == {"format": "LiME", "extents": [[0x10000, 0x12000]]}
    assert answers == b"\0" + data[16:21] + b"\1" + bytes(4) + b"\0" + data
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_request_without_measure_ends_it(tmp_path: Path) -> None:
    """What asks for gigabytes is no reader of memory."""
    done = served(lime(tmp_path / "m", 0x1000, bytes(4096)), (0x1000, 1 << 31), (0x1000, 1))
    assert done.stdout.count(b"\n") == 1 and done.stdout.endswith(b"\n")


def test_a_source_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    """The reason goes to the one who asked, and the status is 2."""
    done = served(tmp_path / "none")
    assert done.returncode == 2 and done.stderr == b""
    assert "none" in json.loads(done.stdout)["error"] and done.stdout.count(b"\n") == 1
