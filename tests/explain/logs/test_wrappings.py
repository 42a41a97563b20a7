"""One oops as people send it: in each wrapping the same answer, or an honest smaller one, never another."""

from __future__ import annotations

import html
import io
import json
import quopri
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Final

import pytest

from fivefold.errors import FormatError
from fivefold.explain import Explanation, explain

OOPS: Final = """\
BUG: unable to handle page fault for address: ffffc90001a42ff8
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 100000067 P4D 100000067 PUD 1001d5067 PMD 1087aa067 PTE 0
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 2 PID: 640 Comm: demo Not tainted 6.6.9-demo #1
Hardware name: Demo Machine/Demo Board, BIOS 1.0 01/01/2024
RIP: 0010:vec_push+0x19/0x50
Code: 00 55 48 89 e5 48 8b 05 10 20 30 01 48 8b 5f 18 48 8b 05 10 20 30 01 90 90 90 90 <48> 89 43 20 5d c3 cc cc
RSP: 0018:ffffc90000222d40 EFLAGS: 00010282
RAX: 0000000000000005 RBX: ffffc90001a42fd8 RCX: 0000000000000000
RDX: 0000000000000000 RSI: 0000000000000001 RDI: ffff888105b4a000
RBP: ffffc90000222d68 R08: 0000000000000000 R09: 0000000000000001
CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
CR2: ffffc90001a42ff8 CR3: 000000010a5d4003 CR4: 0000000000370ef0
Call Trace:
 <TASK>
 ksys_write+0x71/0xf0
 entry_SYSCALL_64_after_hwframe+0x6e/0xd8
RIP: 0033:0x7f4410d1c2ef
Code: 89 54 24 18 b8 01 00 00 00 0f 05 <48> 3d 00 f0 ff ff 77 31 c3
RSP: 002b:00007ffc5f0a9810 EFLAGS: 00000293 ORIG_RAX: 0000000000000001
RAX: ffffffffffffffda RBX: 0000000000000004 RCX: 00007f4410d1c2ef
 </TASK>
---[ end trace 0000000000000000 ]---
"""
LINES: Final = OOPS.splitlines()
HEADER: Final = b"Content-Transfer-Encoding: quoted-printable\n\n"
INSTRUCTION: Final = "mov qword ptr [rbx + 0x20], rax"


def each(form: Callable[[int, str], str], lines: Iterable[str] = LINES) -> str:
    return "".join(f"{form(number, line)}\n" for number, line in enumerate(lines))


def stamp(number: int) -> str:
    return f"[   41.5000{number:02}]"


def wrap(width: int, lines: Iterable[str] = LINES, indent: str = "", prefix: str = "") -> str:
    """As a mail program wraps: at blanks, the time stamp only before the first part."""
    parts = (
        textwrap.wrap(
            f"{prefix and stamp(n) + ' '}{line}",
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for n, line in enumerate(lines)
    )
    return "\n".join(part for group in parts for part in group) + "\n"


def cut(width: int) -> str:
    """As a terminal breaks lines: in the middle of anything."""
    stamped = [f"{stamp(n)} {line}" for n, line in enumerate(LINES)]
    return "\n".join(line[at : at + width] for line in stamped for at in range(0, len(line), width)) + "\n"


SAME: Final[dict[str, str | bytes]] = {
    "plain": OOPS,
    "printk": each(lambda n, line: f"{stamp(n)} {line}"),
    "printk with callers": each(lambda n, line: f"{stamp(n)}[  T640] {line}"),
    "dmesg -T": each(lambda n, line: f"[Sun Nov 29 15:15:{n:02} 2026] {line}"),
    "dmesg -x": each(lambda n, line: f"kern  :alert : {stamp(n)} {line}"),
    "syslog": each(lambda n, line: f"Nov 29 15:15:{n:02} host kernel: {stamp(n)} {line}"),
    "journald": each(lambda n, line: f"Nov 29 15:15:{n:02} host kernel: {line}"),
    "RFC 5424": each(lambda n, line: f"<1>1 2026-11-29T15:15:{n:02}Z host kernel - - - {line}"),
    "kmsg": each(lambda n, line: f"1,{n},415000{n:02},-;{line}"),
    "pstore": "Oops#1 Part1\n" + each(lambda n, line: f"<1>{stamp(n)} {line}"),
    "ANSI": each(lambda n, line: f"\x1b[32m{stamp(n)}\x1b[0m \x1b[31m{line}\x1b[0m"),
    "CRLF": OOPS.replace("\n", "\r\n"),
    "CR": OOPS.replace("\n", "\r"),
    "UTF-16": OOPS.encode("utf-16"),
    "UTF-16 without a mark": OOPS.encode("utf-16-le"),
    "UTF-16 big-endian without a mark": OOPS.encode("utf-16-be"),
    "UTF-8 with a mark": OOPS.encode("utf-8-sig"),
    "NULs before": b"\0" * 3000 + OOPS.encode(),
    "NULs between": OOPS.replace("\n", "\0\n").encode(),
    "quoted": each(lambda n, line: f"> {line}"),
    "quoted three times": each(lambda n, line: f">>> {line}"),
    "quoted with blanks": each(lambda n, line: f"> > {line}"),
    "fenced": f"It crashed:\n```\n{OOPS}```\nwhy?\n",
    "indented": each(lambda n, line: f"    {line}"),
    "with tabs": each(lambda n, line: f"\t{line}"),
    "numbered": each(lambda n, line: f"{n + 1}: {line}"),
    "piped": each(lambda n, line: f"| {line}"),
    "blank lines between": each(lambda n, line: f"{line}\n"),
    "trailing blanks": each(lambda n, line: f"{line}   "),
    "journal as JSON": each(lambda n, line: json.dumps({"_PID": "0", "MESSAGE": line})),
    "docker's JSON": each(
        lambda n, line: json.dumps({"log": line + "\n"}).replace("<", "\\u003c").replace(">", "\\u003e")
    ),
    "a CI": each(lambda n, line: f"2026-11-29T15:15:{n:02}.123456Z {stamp(n)} {line}"),
    "another CI": each(lambda n, line: f"#12 {n}.345 {line}"),
    "a serial console of a guest": each(lambda n, line: f"guest-0 console: {stamp(n)} {line}"),
    "audit lines between": each(lambda n, line: f"{line}\naudit: type=1400 audit(1.{n}:2): pid={n}"),
    "twice": OOPS + OOPS.replace("[#1]", "[#2]").replace("ffffc90001a42ff8", "ffffc90007777ff8"),
    "HTML, escaped": f"<html><body><pre>{html.escape(OOPS)}</pre></body></html>",
    "HTML, escaped twice": f"<pre>{html.escape(html.escape(OOPS))}</pre>",
    "HTML with breaks": "<p>" + html.escape(OOPS).replace("\n", "<br>\n") + "</p>",
    "HTML with spans": each(lambda n, line: f'<span class="x">{html.escape(line)}</span>'),
    "quoted-printable": quopri.encodestring(each(lambda n, line: f"{stamp(n)} {line}").encode()),
    "quoted-printable with a header": HEADER + quopri.encodestring(OOPS.encode()),
    "wrapped at 72": wrap(72, prefix="t"),
    "wrapped at 76 with a tab": wrap(76, indent="\t", prefix="t"),
    "wrapped at 80 and quoted": each(lambda n, line: f"> {line}", wrap(80, prefix="t").splitlines()),
    "wrapped at 72 without stamps": wrap(72),
    "wrapped at 60": wrap(60, prefix="t"),
    "upper case": OOPS.upper(),
    "lost hash signs": OOPS.replace("#", ""),
    "lost first characters": each(lambda n, line: line.removeprefix("#")),
}  # fmt: skip
SMALLER: Final[dict[str, str]] = {
    "lost marks in Code": OOPS.replace("<48>", "48"),
    "HTML that ate the mark": OOPS.replace("<48>", ""),
    "cut at 80 columns": cut(80),
    "cut at 64 columns": cut(64),
    "without registers": "\n".join(LINES[:9]),
    "as in a commit message": "\n".join(LINES[:5] + LINES[7:8] + LINES[15:19]),
    "reversed": "\n".join(reversed(LINES)),
    "every line cut at 70": each(lambda n, line: line[:70]),
    "every line cut at 50": each(lambda n, line: line[:50]),
    "every second line": "\n".join(LINES[::2]),
    "without blanks": OOPS.replace(" ", ""),
    "shuffled with itself": "\n".join(line for pair in zip(LINES, LINES[5:], strict=False) for line in pair),
}


def answer(text: str | bytes) -> Explanation:
    return explain(io.BytesIO(text if isinstance(text, bytes) else text.encode()))


@pytest.mark.parametrize("name", SAME)
def test_the_same_answer(name: str) -> None:
    found = answer(SAME[name])
    cause = found.cause
    level = cause.level.name if cause.level else None
    assert (found.mode, cause.rule, level, cause.address) == ("la48", "not-present", "PT", 0xFFFFC90001A42FF8)
    assert cause.confidence == "certain"
    first = found.exceptions[0]
    assert (first.access, first.raised.error_code, first.raised.rip) == ("write", 2, None)
    assert first.raised.rsp == 0xFFFFC90000222D40
    assert first.finding.instruction is not None and first.finding.instruction.text == INSTRUCTION
    assert (first.raised.symbol or "").lower() == "vec_push+0x19/0x50"


@pytest.mark.parametrize("name", SMALLER)
def test_an_honest_smaller_answer(name: str) -> None:
    try:
        found = answer(SMALLER[name])
    except FormatError:
        return
    check_honest(found)


def check_honest(found: Explanation) -> None:
    """Nothing that is said of `OOPS` is wrong; less may be said."""
    cause = found.cause
    assert found.mode in ("la48", None)
    assert cause.rule in ("not-present", "unknown") or cause.confidence == "guess"
    assert cause.level is None or cause.level.name == "PT"
    assert cause.address in (0xFFFFC90001A42FF8, None)
    for one in found.exceptions:
        assert one.raised.rsp in (0xFFFFC90000222D40, None)
        assert one.raised.rip is None
        assert one.finding.instruction is None or one.finding.instruction.text == INSTRUCTION
        assert one.access in ("write", None)


def test_every_wrapping_is_another() -> None:
    assert len(SAME) + len(SMALLER) >= 42
    assert len({re.sub(r"\s", "", str(text)) for text in SAME.values()}) > 30
