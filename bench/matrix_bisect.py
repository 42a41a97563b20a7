"""Bisect a history of kernels with `fivefold matrix --bisect`: one commit plants a wrong base of the direct map.

    python bench/matrix_bisect.py vmlinuz-6.12… [--commits 6] [--bad 4]

The bug is put into the packed kernel: the constants 0xff11000000000000 of its code become 0xff12000000000000, so that
only boots with five levels are wrong. Needs a kernel that is packed with zstd, the package zstandard, git and QEMU.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import zstandard

from fivefold.matrix.kernels.kernel_file import open_kernel

GOOD, BAD = (struct.pack("<Q", base) for base in (0xFF11_0000_0000_0000, 0xFF12_0000_0000_0000))
MAIN = "from fivefold.cli.main import main; main()"


def planted(data: bytes) -> bytes:
    """The kernel with the bug; its payload is packed again and has to fit where it was."""
    setup = data[0x1F1] or 4
    at, size = struct.unpack_from("<II", data, 0x248)
    start = 512 * (setup + 1) + at
    packed = data[start : start + size]
    if packed[:4] != b"\x28\xb5\x2f\xfd":
        sys.exit("expected a kernel that is packed with zstd, such as Debian's 6.12")
    with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
        whole = reader.read(1 << 30)
    if not (count := whole.count(GOOD)):
        sys.exit("the kernel has no base of the direct map to change")
    how = zstandard.ZstdCompressionParameters.from_level(
        22, window_log=27, write_content_size=False, write_checksum=True
    )
    again = zstandard.ZstdCompressor(compression_params=how).compress(whole.replace(GOOD, BAD))
    if len(again) > size - 4:
        sys.exit(f"the changed kernel packs to {len(again)} bytes, and there is room for {size - 4}")
    print(f"changed {count} constants; packed {len(again)} of {size - 4} bytes")
    made = bytearray(data)
    made[start : start + size - 4] = again + bytes(size - 4 - len(again))
    return bytes(made)


def history(place: Path, good: bytes, bad: bytes, commits: int, first_bad: int) -> None:
    """A repository whose commits hold a kernel each."""

    def git(*words: str) -> None:
        own = ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *own, *words], cwd=place, check=True, stdout=subprocess.DEVNULL)

    git("init", "-q")
    for number in range(1, commits + 1):
        (place / "bzImage").write_bytes(bad if number >= first_bad else good)
        (place / "number").write_text(f"{number}\n")
        git("add", ".")
        git("commit", "-q", "-m", f"commit {number}")
    git("bisect", "start", "HEAD", f"HEAD~{commits - 1}")


def main() -> None:
    """Plant, bisect, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernel")
    parser.add_argument("--commits", type=int, default=6)
    parser.add_argument("--bad", type=int, default=4)
    given = parser.parse_args()
    kernel = open_kernel(given.kernel)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        history(place, kernel.data, planted(kernel.data), given.commits, given.bad)
        command = [sys.executable, "-c", MAIN, "matrix", "--bisect", "--preset", "quick", "bzImage"]
        subprocess.run(["git", "bisect", "run", *command], cwd=place, check=True)
        found = subprocess.run(
            ["git", "log", "-1", "--format=%s", "refs/bisect/bad"],
            cwd=place,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    print(f"git bisect blames {found}; the bug is in commit {given.bad}")
    sys.exit(0 if found == f"commit {given.bad}" else 1)


if __name__ == "__main__":
    main()
