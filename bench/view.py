"""How large the page of `fivefold view` is for many regions, and how soon a browser has opened it.

    python bench/view.py                      # 200,000 regions; needs Chromium and pip install '.[browser]'

Pages of 4 KiB with alternating rights and scattered frames, each a region, lie in a raw image. Timed is from the call
to the page's own mark that all can be used; the best and the worst of a few loads are printed, from `file://`. The
exit status is 1 above 5 MB, or where no load is ready within 2 s.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
from playwright import sync_api

PAGE: Final = 4096
ROOT: Final = 0x1000
MOST_BYTES: Final = 5_000_000
MOST_SECONDS: Final = 2.0


def image(regions: int) -> bytes:
    """A raw memory whose top table, at `ROOT`, maps *regions* pages of one kind after another."""
    tables = -(-regions // 512)
    directories = -(-tables // 512)
    words = np.zeros((2 + directories + tables + 1, 512), np.uint64)
    pdpt, first_pd, first_pt = 2, 3, 3 + directories
    words[ROOT // PAGE, 256] = pdpt * PAGE | 0x63
    words[pdpt, :directories] = np.arange(first_pd, first_pt, dtype=np.uint64) * PAGE | 0x63
    flat = words[first_pd:first_pt].reshape(-1)
    flat[:tables] = (np.arange(tables, dtype=np.uint64) + first_pt) * PAGE | 0x63
    leaves = words[first_pt : first_pt + tables].reshape(-1)
    dice = np.random.default_rng(1)
    frames = dice.permutation(np.arange(regions, dtype=np.uint64)) * np.uint64(7 * PAGE) + np.uint64(1 << 32)
    rights = np.where(np.arange(regions) % 2 == 0, np.uint64(0x63), np.uint64(0x61))
    leaves[:regions] = frames | rights | dice.integers(0, 2, regions, dtype=np.uint64) << np.uint64(63)
    return words.tobytes()


def main() -> int:
    """Make the page, open it a few times, and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regions", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fivefold-view-") as folder:
        raw, page = Path(folder, "guest.raw"), Path(folder, "guest.html")
        raw.write_bytes(image(given.regions).ljust(64 << 20, b"\0"))
        words = ["view", str(raw), "--cr3", hex(ROOT), "--levels", "4", "-o", str(page)]
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "fivefold", *words], capture_output=True, text=True, check=False)
        made = time.perf_counter() - began
        if not page.exists():
            sys.exit(f"fivefold view: {done.stderr}")
        seconds = sorted(opened(page, given.rounds))
        size = page.stat().st_size
    print(f"{given.regions} regions: {size / 1e6:.2f} MB, made in {made:.1f} s")
    print(f"opened in {seconds[0]:.2f} to {seconds[-1]:.2f} s, {given.rounds} loads")
    return 1 if size > MOST_BYTES or seconds[0] > MOST_SECONDS else 0


def opened(page: Path, rounds: int) -> list[float]:
    """Seconds until the page says that it is ready, for each load in a new tab."""
    found = []
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(rounds):
            tab = browser.new_page()
            began = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector("body[data-ready]")
            found.append(time.perf_counter() - began)
            tab.close()
        browser.close()
    return found


if __name__ == "__main__":
    sys.exit(main())
