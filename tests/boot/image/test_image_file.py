"""The image as a file: the same bytes twice, placed anywhere, and refused when it is not ours or not whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fivefold.boot import DEFAULT_LOAD_ADDRESS, Image, parse
from fivefold.boot.files import read_file, write_file
from fivefold.cli.image import ImageFormat
from fivefold.cli.image import image as image_command
from fivefold.errors import ImageError, MachineError
from fivefold.machine.loading.elf import load_segments, pvh_entry
from fivefold.units import GIB, MIB

BUILD = "import sys; from fivefold.boot import build_image; sys.stdout.buffer.write(build_image().place())"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("pages=4k pages=2m", "pages"),
        ("x" * 5000, "a command line of 5000 characters; the EFI application reads 2048 at most"),
    ],
)
def test_a_menu_gets_no_command_line_that_means_nothing(words: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=reason):
        image_command(tmp_path / "iso", ImageFormat.iso, cmdline=words)
    assert not list(tmp_path.iterdir())


def test_two_builds_in_two_processes_are_the_same_bytes(image: Image) -> None:
    """Without the cache, and with another seed for hashes: nothing but the sources may tell."""
    environment = {**os.environ, "FIVEFOLD_CACHE": "", "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", BUILD], env=environment, capture_output=True, check=True).stdout
    assert other == image.place()


@pytest.mark.parametrize("load", [2 * MIB, DEFAULT_LOAD_ADDRESS, 3 * GIB, 5 * GIB, (1 << 52) - 2 * MIB], ids=hex)
def test_placed_and_parsed_it_is_the_same(image: Image, load: int) -> None:
    data = image.place(load)
    again = parse(data)
    assert (again.parts, again.symbols, again.link_address) == (image.parts, image.symbols, image.link_address)
    assert again.load_address == load
    assert again.place(load) == data
    segments = load_segments(data)
    assert segments[0].start == load
    assert segments[-1].end == load + image.size


@pytest.mark.parametrize("entry", ["pvh_entry", "stub_long48", "stub_long57"])
def test_the_note_leads_to_the_entry(image: Image, entry: str) -> None:
    assert pvh_entry(image.place(48 * MIB, entry)) == image.physical(entry, 48 * MIB)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (0, "load address 0x0000000000000000 is below the lowest that is possible, 0x200000"),
        (0x20_1000, "load address 0x0000000000201000 is not aligned to 2 MiB"),
        (1 << 52, "load address 0x0010000000000000 is beyond 52 physical address bits"),
    ],
)
def test_places_that_cannot_be(image: Image, load: int, message: str) -> None:
    with pytest.raises(ImageError) as refusal:
        image.place(load)
    assert str(refusal.value) == message


def test_a_file_cut_short_is_refused_wherever_it_is_cut(image: Image) -> None:
    data = image.place()
    cuts = {0, 1, 15, 16, 63, 64, 100, 4095, 4096, len(data) // 2, len(data) - 300, len(data) - 64, len(data) - 1}
    for cut in sorted(cuts):
        with pytest.raises(ImageError, match="not an image of ours"):
            parse(data[:cut])


def test_a_forged_file_is_refused_or_read_but_never_worse(image: Image) -> None:
    """Any byte of the headers, any value: `ImageError`, or an image that says the same of itself."""
    data = bytearray(image.place())
    rng = random.Random(57)
    header = [*range(0x140), *range(len(data) - 256, len(data))]
    for _ in range(600):
        forged = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 4))):
            forged[rng.choice(header)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            read = parse(bytes(forged))
        except ImageError as refusal:
            assert "\n" not in str(refusal)
        else:
            assert read.size < 1 << 31


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"MZ" + bytes(4096), b"\x7fELF\x02\x01\x01" + bytes(9)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^not an image of ours"):
        parse(data)


def test_other_elf_files_are_refused() -> None:
    with pytest.raises(ImageError, match=r"^not an image of ours"):
        parse(Path(sys.executable).resolve().read_bytes())


def test_an_image_without_a_symbol_says_which(image: Image) -> None:
    symbols = {name: at for name, at in image.symbols.items() if name != "startup.table"}
    with pytest.raises(ImageError, match=r"^not an image of ours: no symbol startup\.table$"):
        parse(Image(image.link_address, image.parts, symbols).place())


@pytest.mark.parametrize("name", ["multiboot2_header", "pvh_entry", "entry_64"])
@pytest.mark.parametrize("at", [0x1000, 0xFFFF_FFFF_FFFF_FF00])
def test_a_symbol_outside_the_image_is_refused(image: Image, name: str, at: int) -> None:
    with pytest.raises(ImageError) as refused:
        replace(image, symbols={**image.symbols, name: at}).place()
    assert str(refused.value) == f"the image has the symbol {name!r} outside itself, at {at:#018x}"


def test_a_header_that_is_not_in_the_code_is_refused(image: Image) -> None:
    at = image.parts[1].start
    with pytest.raises(ImageError) as refused:
        replace(image, symbols={**image.symbols, "multiboot2_header": at}).place()
    assert str(refused.value) == f"not an image of ours: its multiboot2 header is at {at:#x}, outside its code"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_file(tmp_path / "image", b"one")
    assert (tmp_path / "image").read_bytes() == b"one"
    with pytest.raises(OSError, match="No such file"):
        write_file(tmp_path / "none" / "image", b"two")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder'$"):
        write_file(tmp_path / "folder", b"three")
    assert {path.name for path in tmp_path.iterdir()} == {"image", "folder"}


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path: Path) -> None:
    """To replace `/dev/null`, as root can, breaks the machine."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_file(tmp_path / "link", b"linked")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"linked"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", b"piped")
    assert os.read(reader, 16) == b"piped"
    assert (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_a_file_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(4096))
    assert read_file(tmp_path / "image", 4096) == bytes(4096)
    with pytest.raises(ImageError, match=r"^/dev/zero is no image: it has more than 4K$"):
        read_file(Path("/dev/zero"), 4096)
