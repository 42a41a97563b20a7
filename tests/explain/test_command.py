"""`fivefold explain`: what it prints, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.cli import main as command_line

Run = Callable[..., tuple[int, str, str]]

DISCUSSION = """\
Triple fault: push to 0xffffffff7ffffff8 (8 bytes below RSP) at RIP 0xffffffff84bb3036, which failed (likely)

cause      stack, likely: a push failed, and which rule refused it is not known
source     {path}: QEMU log, triple fault
mode       five levels

evidence   0xffffffff7ffffff8 is in a hole below the kernel image, which Linux leaves unmapped; 8 bytes below
           RSP
           RDX = 0xdffffc0000000000 is the KASAN shadow offset (both modes since 4.15)
           RSP = 0xffffffff80000000 is exactly the start of the kernel image mapping: the next push goes below
           it, where nothing is mapped
           RIP differs between exceptions of one delivery, where no instruction ran: in such logs it is
           brought up to date late; CR2, RSP and the vectors are what counts

story      1. #PF, RIP 0xffffffff84bb3036, RSP 0xffffffff80000000
              a push to RSP - 8 at 0xffffffff7ffffff8 failed; without memory or error code it is not known
              which rule refused it
              -> #PF could not be delivered: a double fault (#DF) takes its place
           2. #PF in the delivery of #PF, RIP 0xffffffff84bb3141, RSP 0xffffffff80000000
              the frame could not be pushed to 0xffffffff7ffffff8, 8 bytes below RSP: no IST is used, so the
              same stack again
              -> #DF could not be delivered
           3. #PF in the delivery of #DF, RIP 0xffffffff84bb3141
              the frame could not be pushed to 0xffffffff7ffffff8, 8 bytes below RSP: no IST is used, so the
              same stack again
              -> a triple fault: the CPU shuts down

legal      a mapped page below RSP, or an IST for the gate, so that the frame goes to a stack of its own

not known  there is no memory: the levels of the walk, the instruction and the handlers are not known
           the error code of the page fault is not in the source
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command with arguments: its status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fivefold", "explain", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


def test_the_discussion_of_2017(run: Run, data: Path) -> None:
    path = data / "thread-2017-kasan-efi.log"
    status, out, said = run(path)
    assert (status, said) == (0, "")
    # The path may be long, and is not broken.
    assert " ".join(out.split()) == " ".join(DISCUSSION.format(path=path).split())


def test_json_has_the_schema(run: Run, data: Path) -> None:
    status, out, _ = run(data / "nx_exec.log", "--memory", data / "nx_exec.elf.xz", "--json")
    told = json.loads(out)
    assert status == 0
    assert told["schema"] == "fivefold.explain/1"
    assert (told["mode"], told["outcome"]) == ("la57", "triple-fault")
    assert told["cause"]["rule"] == "no-execute"
    assert (told["cause"]["level"], told["cause"]["address"]) == ("PT", "0xffffffff80020000")
    assert told["cause"]["area"] == "kernel_image"
    assert told["cause"]["confidence"] == "certain"
    first = told["exceptions"][0]
    assert (first["vector"], first["name"], first["access"]) == (14, "#PF", "fetch")
    assert [step["level"] for step in first["steps"]] == ["PML5", "PML4", "PDPT", "PD", "PT"]
    assert first["steps"][-1] == {
        "level": "PT", "index": 32, "at": "0x0000000000208100", "entry": "0x8000000000120003", "present": True,
        "leaf": True, "rights": "w--",
    }  # fmt: skip
    assert first["error_bits"] == ["P: a present translation", "W clear: a read or fetch", "U clear: supervisor mode",
                                   "I: an instruction fetch"]  # fmt: skip
    assert isinstance(told["unknown"], list)


def test_verbose_shows_the_walk(run: Run, data: Path) -> None:
    _, out, _ = run(data / "nx_exec.log", "--memory", data / "nx_exec.elf.xz", "-v")
    assert "PT   [ 32] at 0x0000000000208100: 0x8000000000120003 rw--  <- this entry" in out
    assert "error code: P: a present translation; W clear: a read or fetch; U clear: supervisor mode; I: an" in out


def test_what_if(run: Run, data: Path) -> None:
    _, out, _ = run(
        data / "nx_exec.log", "--memory", data / "nx_exec.elf.xz", "--what-if", "read", "--what-if", "user",
        "--what-if", "mode=la48", "--what-if", "efer.nxe=0", "--json",
    )  # fmt: skip
    answers = [(answer["allowed"], answer["sentence"]) for answer in json.loads(out)["what_if"]]
    assert answers[0] == (True, "a read of 0xffffffff80020000 would be allowed")
    assert answers[1][0] is False
    assert (
        "user-supervisor by the PML5 entry 511 at 0x0000000000200ff8 (0x0000000000205023): #PF(0x15)" in answers[1][1]
    )
    assert "not-present by the PDPT entry 510" in answers[2][1]
    assert "reserved-bit by the PT entry 32" in answers[3][1]


def test_plain_numbers(run: Run, data: Path) -> None:
    status, out, _ = run(
        "--memory", data / "missing_pml5e.elf.xz", "--cr2", "ff12_0000_0000_0008", "--error-code", "2", "--json"
    )
    told = json.loads(out)
    assert status == 0
    assert (told["cause"]["rule"], told["cause"]["level"]) == ("not-present", "PML5")
    assert told["exceptions"][0]["access"] == "write"


def test_an_address_alone(run: Run) -> None:
    status, out, _ = run("--address", "fffffbfff07e3a17", "--json")
    assert status == 0
    assert json.loads(out)["addresses"] == [
        {
            "address": "0xfffffbfff07e3a17",
            "area": "kasan_shadow",
            "sentence": (
                "0xfffffbfff07e3a17 is in the KASAN shadow, the shadow of 0xffffffff83f1d0b8 in the kernel image"
            ),
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to explain: expected a log, a source of memory, or numbers such as --cr2"),
        (("nowhere.log",), "cannot read nowhere.log: No such file or directory"),
        (("--cr2", "0xwhat"), "'0xwhat' is not an address; expected hexadecimal such as ffff888000000000"),
        (("--levels", "3"), "Invalid value for '--levels'"),
        (("--vector", "300"), "Invalid value for '--vector'"),
        (("--cr2", "-5"), "'-5' is not an address"),
        (("-a", "123456789012345678901"), "'123456789012345678901' does not fit in 64 bits"),
    ],
)
def test_bad_input(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("fivefold: ")
    assert err.count("\n") == 1
    assert message in err


def test_changes_that_make_no_sense(run: Run, data: Path) -> None:
    for change, message in (
        ("sideways", "'sideways' is not a change; expected one of read, write, fetch"),
        ("cpl=7", "7 is not a privilege level; expected 0 to 3"),
        ("cr0.wp=2", "cr0.wp=2; expected 0 or 1"),
        ("mode=la99", "'la99' is not a mode; expected la48 or la57"),
        ("cr7=1", "'cr7' cannot be changed; expected one of"),
        ("cr3=here", "'here' is not an address; expected hexadecimal"),
        ("phys_bits=0x30", "'0x30' is not a number; expected decimal such as 1 or 46"),
    ):
        status, _, err = run(data / "nx_exec.log", "--what-if", change)
        assert status == 2
        assert message in err


@pytest.mark.parametrize("words", [("gdb:localhost:1",), ("--cr2", "1000", "--memory", "gdb:localhost:1")])
def test_a_stub_that_stops_the_guest_needs_leave(run: Run, words: tuple[str, ...]) -> None:
    """What the refusal names is an option of this command, wherever the source stands."""
    status, _, said = run(*words)
    assert (status, said.endswith("allow that with --freeze\n")) == (2, True)
    status, _, said = run(*words, "--freeze")
    assert (status, said.startswith("fivefold: cannot connect to localhost:1 for a gdb stub")) == (2, True)


def test_memory_that_may_be_none_is_said(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    path.write_text("no memory, but a log\n" * 300)
    status, _, said = run("--cr2", "1000", "--error-code", "2", "--cr4", "1020", "--cr3", "0", "--memory", path)
    raw = "no header was recognised: taken as raw memory from physical 0, without holes"
    assert (status, said) == (0, f"fivefold: {path}: {raw}\n")
