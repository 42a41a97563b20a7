"""`fivefold boot` and `fivefold image` from outside: exit status, one clear line, no process left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fivefold.cli.main import main
from fivefold.machine.qemu import engine

COMMAND = [sys.executable, "-c", "from fivefold.cli.main import main; main()"]


def fivefold(*args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=environment, timeout=timeout)


def test_both_cpus_pass() -> None:
    done = fivefold("boot", "--memory", "32M", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert [(run["cpu"], run["mode"]) for run in report["runs"]] == [("la57", "la57"), ("la48", "la48")]


def test_text_says_both_modes() -> None:
    done = fivefold("boot", "--memory", "32M")
    assert done.returncode == 0
    assert "la57: the CPU has LA57" in done.stdout
    assert "la48: the CPU lacks LA57" in done.stdout
    assert "\x1b" not in done.stdout, "no colours where nobody looks"


def test_long57_is_skipped_on_the_cpu_without_la57() -> None:
    done = fivefold("boot", "--entry", "long57", "--memory", "32M", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert [run["cpu"] for run in report["runs"]] == ["la57"]
    assert report["skipped"] == [{"name": "la48", "reason": "a CPU without LA57 cannot be entered with five levels"}]


REFUSED = [
    (["--entry", "long57", "--cpu", "la48"], "nothing to run: a CPU without LA57 cannot be entered with five levels"),
    (["--cpu", "la64"], "unicorn has no CPU 'la64'; expected la57, la48 or a model such as HASWELL, ICELAKE_SERVER"),
    (["--engine", "x"], "Invalid value for '--engine': … 'x' is not one of 'unicorn', 'qemu', 'kvm', 'bochs'."),
    (["--engine", "bochs", "--entry", "pvh"], "bochs boots an ISO by GRUB: its entry is multiboot2, not pvh"),
    (["--engine", "bochs", "--hibernate"], "the entry multiboot2 takes no saved kernel: an ISO is made"),
    (["--engine", "unicorn", "--qemu", "/bin/true"], "Invalid value: … --qemu is of no use to the engine unicorn"),
    (["--qemu", "a", "--bochs", "b"], "Invalid value: … --qemu and --bochs are two engines; a boot runs on"),
    (["--qemu", "no-such-qemu"], "no-such-qemu is not a program"),
    (["--bochs", "no-such-bochs"], "no-such-bochs is not a program"),
    (["--entry", "efi57", "--smp", "2"], "the entry efi57 takes one CPU: the firmware gives the others LA57 and"),
    (["--entry", "efi", "--hibernate"], "the entry efi takes no saved kernel: the firmware hands over no module"),
    (["--entry", "efi", "--kexec", ""], "the entry efi takes no second kernel: the firmware hands over no module"),
    (["--load-address", "0x201000"], "load address 0x0000000000201000 is not aligned to 2 MiB"),
    (["--load-address", "0"], "load address 0x0000000000000000 is below the lowest that is possible, 0x200000"),
    (["--load-address", "5G"], "load address 0x0000000140000000 is above 4 GiB, where the 32-bit entry pvh cannot be"),
    (["--load-address", "here"], "Invalid value for '--load-address': … 'here' is not an address; expected hex"),
    (["--load-address", "3G"], "the image needs 0x00000000c0000000 to "),
    (["--engine", "qemu", "--load-address", "0xff000000", "--memory", "8G"], "the image needs 0x00000000ff000000 to "),
    (["--memory", "16M"], "too little memory: the image ends at 0x"),
    (["--memory", "1K"], "too little memory: the image ends at 0x"),
    (["--memory", "32M1"], "Invalid value for '--memory': … '32M1' is not a size; expected a number and"),
    (["--memory", "2P"], "RAM up to 0x0008000040000000 does not fit the 40 physical address bits of la57"),
    (["--engine", "unicorn", "--entry", "efi57"], "the engine unicorn has no firmware for the entry efi57; use qemu"),
    (["--timeout", "0"], "Invalid value for '--timeout': … '0' is no time to wait; expected seconds, more than 0"),
    (["--timeout", "nan"], "Invalid value for '--timeout': … 'nan' is no time to wait; expected seconds"),
    (["--timeout", "0x5"], "Invalid value for '--timeout': … '0x5' is no time to wait; expected seconds"),
    (["--engine", "quemu"], "Invalid value for '--engine': … 'quemu' is not one of … 'bochs'; did you mean qemu?"),
    (["--smp", "two"], "Invalid value for '--smp': 'two' is no count; expected a decimal number"),
    (["--smp", "9" * 5000], "Invalid value for '--smp': … is out of range; expected a number"),
    (["/dev/zero"], "/dev/zero is no image: it has more than 64M"),
    (["--cmdline", "caf\u00e9"], "the command line has characters that no loader passes on; expected ASCII text"),
    (["no-such-image"], "no-such-image: No such file or directory"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), REFUSED, ids=[ascii(" ".join(args)) for args, _ in REFUSED])
def test_what_cannot_be_done_is_status_2_and_one_line(
    args: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "no-such-bochs" in args and shutil.which("grub-mkrescue") is None:
        pytest.skip("needs grub-mkrescue, which is not there")
    monkeypatch.setattr(sys, "argv", ["fivefold", "boot", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    (line,) = told.err.splitlines()
    first, *more = message.split(" … ")
    assert line.startswith(f"fivefold: {first}")
    assert all(part in line for part in more)


def test_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a process of its own, as a user meets it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    done = fivefold("boot", "--engine", "qemu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fivefold: the engine qemu needs qemu-system-x86_64, which is not there; ")
    assert "apt-get install" in done.stderr


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--smp", "2"], "unicorn has one CPU, not 2"),
        (["--entry", "efi"], "unicorn has no firmware for the entry efi"),
    ],
)
def test_an_engine_that_was_chosen_and_is_not_there(
    args: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asked for no engine is told why it must be this one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["fivefold", "boot", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"fivefold: {reason}, and the engine qemu needs qemu-system-x86_64, ")


def test_an_engine_that_answers_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program of QEMU's name that sleeps, and that started another one: the time limit holds, and both are ended."""
    unusual = f"{os.getpid()}.{time.monotonic_ns()}"
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text(f"#!/bin/sh\n/bin/sleep {unusual}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(engine, "LEAST_SECONDS", 0.1)
    monkeypatch.setattr(sys, "argv", ["fivefold", "boot", "--engine", "qemu", "--timeout", "0.5"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr()) == (2, ("", "fivefold: QEMU gave no answer in 0.5 s\n"))
    assert gone(unusual)


def gone(word: str) -> bool:
    """Whether no process has *word* on its command line, after a moment for those that are being killed."""
    for _ in range(200):
        if not any(word.encode() in command_line(process) for process in Path("/proc").glob("[0-9]*")):
            return True
        time.sleep(0.02)
    return False


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_a_guest_that_never_stops_is_ended(tmp_path: Path) -> None:
    """An image whose entry jumps to itself: status 1, and it says what it was doing."""
    endless = tmp_path / "endless"
    assert fivefold("image", "-o", str(endless)).returncode == 0
    spin(endless)
    done = fivefold("boot", str(endless), "--cpu", "la57", "--timeout", "0.2", "--json")
    run = json.loads(done.stdout)["runs"][0]
    assert done.returncode == 1
    assert run["event"].startswith("still running after 0.2 s, at 0x")
    assert (run["mode"], run["levels"]) == (None, None)


def spin(path: Path) -> None:
    """Put ``jmp .`` at the 32-bit entry of an image."""
    from fivefold.boot import parse

    data = bytearray(path.read_bytes())
    image = parse(bytes(data))
    at = data.index(image.parts[0].data[:64]) + image.symbol("pvh_entry") - image.parts[0].start
    data[at : at + 2] = b"\xeb\xfe"
    path.write_bytes(data)


def test_an_image_from_a_file_boots_where_the_file_says(tmp_path: Path) -> None:
    target = tmp_path / "image.elf"
    made = fivefold("image", "-o", str(target), "--load-address", "6M")
    assert made.returncode == 0
    assert made.stdout.startswith(f"{target}: elf, {target.stat().st_size} bytes, ")
    done = fivefold("boot", str(target), "--cpu", "la57", "--memory", "32M", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["runs"][0]["facts"]["load_address"] == 6 << 20


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "image.elf"
    fivefold("image", "-o", str(target))
    target.write_bytes(target.read_bytes()[:30_000])
    done = fivefold("boot", str(target))
    assert done.returncode == 2
    assert done.stderr.startswith(f"fivefold: {target}: not an image of ours, or cut short at 30000 bytes: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_failed_check_is_status_1() -> None:
    done = fivefold("boot", "--cpu", "la57", "--memory", "32M", "--timeout", "0.001", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["ok"] is False


@pytest.mark.parametrize(("streams", "args", "status"), [
    (">&-", "boot --cpu la57 --memory 32M --json", 0),
    (">&- 2>&-", "boot --memory 1K", 2),
    (">/dev/full", "boot --help", 2),
])  # fmt: skip
def test_nowhere_to_print_to(streams: str, args: str, status: int) -> None:
    """Closed streams hide what is said and change nothing else; a full disk is told."""
    command = f'"{COMMAND[0]}" -c "{COMMAND[2]}" {args} {streams}'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_what_ends_itself_has_said_why_and_needs_no_story() -> None:
    done = fivefold("boot", "--cpu", "la57", "--memory", "32M", "--cmdline", "fault=nonsense")
    assert done.returncode == 1
    assert "exit with code 18: fault= on the command line names no fault that is known\n" in done.stdout
    assert "why la57 failed" not in done.stdout


def test_what_was_left_out_of_a_run_is_said() -> None:
    done = fivefold("boot", "--cpu", "la48", "--memory", "32M", "--smp", "2", "--engine", "unicorn")
    assert done.returncode == 0
    assert "\nskipped on la48: smp: unicorn has one CPU, not 2\npassed: " in done.stdout


def test_a_layout_on_the_command_line_is_as_good_as_the_option() -> None:
    """The judge holds the guest against the map that it was told to use, whoever told it."""
    done = fivefold("boot", "--cpu", "la57", "--memory", "32M", "--cmdline", "layout=proposal", "--json")
    asked = fivefold("boot", "--cpu", "la57", "--memory", "32M", "--layout", "proposal", "--json")
    assert done.returncode == 0
    names = [[check["name"] for check in json.loads(out.stdout)["runs"][0]["checks"]] for out in (done, asked)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cmdline", "kexec"], "'kexec' on the command line needs more than the word; use --kexec"),
        (["--cmdline", "hibernate=save"], "'hibernate=save' on the command line needs more than the word; use --hib"),
        (["--kexec", "", "--hibernate"], "--hibernate and --kexec both need the loader's module; ask for one of them"),
        (["--cmdline", "a" * 4096], "a command line of 4096 characters; the kernel reads 4095 at most"),
    ],
)
def test_what_a_command_line_cannot_say(args: list[str], said: str) -> None:
    done = fivefold("boot", *args)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
