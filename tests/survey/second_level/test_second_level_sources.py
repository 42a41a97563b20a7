"""A host's memory with a nested guest in it: what commands show through EPT, NPT and VT-d, and what they refuse.

The guest's physical memory lies from 2 MiB of the host's on. Its page 5 is not mapped, page 6 is read-only; its own
tables are at 64 KiB and map two pages at 4 MiB, of which the second is page 5.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from fivefold.cli.commands import run

HOST, ROOT, GUEST_ROOT = 0x20_0000, 0x1000, 0x1_0000
EPT_LEAF, A = 0x37, 0x20


def image(levels: int, leaf: int, above: int) -> bytes:
    memory = bytearray(0x40_0000)

    def store(at: int, value: int) -> None:
        memory[at : at + 8] = value.to_bytes(8, "little")

    for level in range(levels - 1):
        store(ROOT + 0x1000 * level, ROOT + 0x1000 * (level + 1) | above)
        index = 2 if level == levels - 2 else 0
        store(HOST + GUEST_ROOT + 0x1000 * level + 8 * index, GUEST_ROOT + 0x1000 * (level + 1) | 0x27)
    last = 0x1000 * (levels - 1)
    for page in range(256):
        store(ROOT + last + 8 * page, HOST + 0x1000 * page | leaf & ~(2 if page == 6 else 0) if page != 5 else 0)
    store(HOST + GUEST_ROOT + last, 0x2_0067)
    store(HOST + GUEST_ROOT + last + 8, 0x5067)
    return bytes(memory)


@pytest.fixture
def fivefold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> object:
    def call(kind: str, levels: int, *words: str) -> tuple[int, str, str]:
        leaf, above = {"ept": (EPT_LEAF, 7), "npt": (0x67, 7 | A), "vtd": (3, 3)}[kind]
        file = tmp_path / f"{kind}{levels}.raw"
        file.write_bytes(image(levels, leaf, above))
        monkeypatch.setattr("sys.argv", ["fivefold", words[0], str(file), *words[1:]])
        status = run()
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("kind", ["ept", "npt", "vtd"])
def test_the_tables_and_the_guest_behind_them(fivefold: object, kind: str, levels: int) -> None:
    assert callable(fivefold)
    option = {"ept": ("--ept", f"{ROOT | (levels - 1) << 3 | 6:#x}")}.get(kind, (f"--{kind}", f"{ROOT:#x}:{levels}"))
    status, out, err = fivefold(kind, levels, "dump", *option)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith("0x")]
    executes = "-" if kind == "vtd" else "x"
    assert rows == [
        ["0x0000000000000000-0x0000000000005000", "20K", "4K", f"rw{executes}u", "0x0000000000200000"],
        ["0x0000000000006000-0x0000000000007000", "4K", "4K", f"r-{executes}u", "0x0000000000206000"],
        ["0x0000000000007000-0x0000000000100000", "996K", "4K", f"rw{executes}u", "0x0000000000207000"],
    ]
    assert f"(given with {' '.join(option)})" in out
    guest = ("--cr3", hex(GUEST_ROOT), "--levels", str(levels))
    status, out, err = fivefold(kind, levels, "walk", *option, *guest, "400000")
    assert status == 0
    assert "-> 0x0000000000020000  4K page" in out
    status, out, _ = fivefold(kind, levels, "audit", *option, *guest)
    assert status == 1
    assert "writable" in out
    status, out, _ = fivefold(kind, levels, "roots", *option, "--levels", str(levels))
    assert status == 0
    assert "0x0000000000010000" in out


@pytest.mark.parametrize(
    ("kind", "words", "says"),
    [
        ("ept", ("--cr3", "0x1000", "--levels", "4"), "leads to EPT tables: their pages have EPT's write-back type"),
        ("ept", ("--cr3", "0x101e", "--levels", "4"), "give --ept 0x101e"),
        ("ept", ("--npt", "0x1000:4"), "give --ept 0x101e"),
        ("npt", ("--ept", "0x101e"), "give --npt 0x1000:4, or --cr3 0x1000"),
        ("npt", ("--vtd", "0x1000:4"), "give --npt 0x1000:4, or --cr3 0x1000"),
        ("npt", ("--npt", "0x1000"), "does not say how many levels; give --npt 0x1000:4"),
        ("npt", ("--npt", "0x1000:6"), "is out of range"),
        ("npt", ("--npt", "0x3000000:4"), "has no memory at 0x0000000003000000"),
        ("npt", ("--npt", "0x1000:4", "--ept", "0x101e"), "give one of --ept, --npt and --vtd"),
        ("ept", ("--ept", "0x1000"), "is no EPT pointer: a walk of 1 levels"),
        ("vtd", ("--vtd", "0x2000:3"), "shown by no command; give --cr3 too"),
        ("npt", ("--npt", "0x0:4", "--cr3", "0x1000", "--levels", "4"), "maps no memory of"),
    ],
)
def test_what_is_refused(fivefold: object, kind: str, words: tuple[str, ...], says: str) -> None:
    assert callable(fivefold)
    status, out, err = fivefold(kind, 4, "dump", *words)
    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1 or "Usage" in err


@pytest.mark.parametrize(("kind", "bits"), [("ept", 7), ("npt", 0x67), ("vtd", 3)])
def test_a_guests_address_is_not_sign_extended(
    fivefold: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bits: int
) -> None:
    assert callable(fivefold)
    fivefold(kind, 4, "--version")
    file = tmp_path / f"{kind}4.raw"
    memory = bytearray(file.read_bytes())
    memory[ROOT + 8 * 256 : ROOT + 8 * 257] = (ROOT + 0x1000 | bits).to_bytes(8, "little")
    file.write_bytes(memory)
    option = ("--ept", f"{ROOT | 3 << 3 | 6:#x}") if kind == "ept" else (f"--{kind}", f"{ROOT:#x}:4")

    def call(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["fivefold", words[0], str(file), *option, *words[1:]])
        with redirect_stdout(StringIO()) as out:
            assert run() == 0
        return out.getvalue()

    assert "\n0x0000800000000000-0x0000800000005000 " in call("dump")
    assert "0xffff8" not in call("dump", "--json")
    assert "-> 0x0000000000206000" in call("walk", "800000006000")


def test_tables_that_lead_to_themselves_end(fivefold: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fivefold.errors import FormatError
    from fivefold.memory import open_source
    from fivefold.survey.second_level import collect

    monkeypatch.setattr(collect, "MOST_TABLES", 2000)
    (tmp_path / "loop.raw").write_bytes((0x1007).to_bytes(8, "little") * 1024)
    with open_source(str(tmp_path / "loop.raw")) as source, pytest.raises(FormatError, match="more than 2000 tables"):
        collect.collect(source.memory, collect.ept_root(0x101E))


@pytest.mark.parametrize(
    ("leaf", "above", "options", "advice"),
    [
        (EPT_LEAF, 7, ("--cr3", f"{ROOT:#x}"), f"give --ept {ROOT | 3 << 3 | 6:#x}"),
        (0x67, 7 | A, ("--cr3", f"{GUEST_ROOT:#x}", "--ept", f"{ROOT | 3 << 3 | 6:#x}"), f"give --npt {ROOT:#x}:4"),
    ],
)
def test_explain_refuses_what_dump_refuses(
    leaf: int, above: int, options: tuple[str, ...], advice: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "host.raw"
    file.write_bytes(image(4, leaf, above))
    words = ("--memory", str(file), "--cr2", "0x400000", "--error-code", "0", *options)
    monkeypatch.setattr("sys.argv", ["fivefold", "explain", *words])
    assert run() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert advice in err
