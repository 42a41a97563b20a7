"""Names for addresses, and the slide between a table of symbols and the kernel that ran."""

from __future__ import annotations

import io

import pytest

from fivefold.explain import Explanation, explain
from fivefold.symbols import Symbols, SymbolSpan

TABLE = Symbols(
    [
        SymbolSpan.of(
            [
                (0xFFFFFFFF81000100, "T", "demo_open"),
                (0xFFFFFFFF81000200, "T", "demo_close"),
                (0xFFFFFFFF81001000, "T", "end"),
            ]
        )
    ],
    "System.map",
)
OOPS = """\
BUG: unable to handle page fault for address: {address}
#PF: error_code(0x0002) - not-present page
Oops: 0002 [#1] SMP
RIP: 0010:{rip}
{more}
"""


def explained(rip: str, more: str = "", address: str = "ffff888101a42000", table: Symbols = TABLE) -> Explanation:
    text = OOPS.format(rip=rip, more=more, address=address)
    return explain(io.BytesIO(text.encode()), symbols=table)


def said(found: Explanation) -> str:
    return "\n".join(found.remarks)


def test_the_slide_of_the_log() -> None:
    offset = "Kernel Offset: 0x2d400000 from 0xffffffff81000000"
    found = explained("demo_close+0x10/0x40", offset)
    assert "demo_close+0x10/0x40 is at 0xffffffffae400210" in said(found)
    assert "moved by 0x2d400000, the log's Kernel Offset" in said(found)
    found = explained("0xffffffffae400210", offset, "ffffffffae400104")
    assert found.exceptions[0].raised.symbol == "demo_close+0x10"
    assert "0xffffffffae400104 is demo_open+0x4" in said(found)


def test_the_slide_of_a_printed_name() -> None:
    found = explained("[<ffffffffae400210>]  [<ffffffffae400210>] demo_close+0x10/0x40")
    assert "moved by 0x2d400000: the log prints demo_close+0x10/0x40 with its address" in said(found)


@pytest.mark.parametrize("rip", ["demo_close+0x10/0x40", "other+0x10/0x40", "demo_close+0x10/0x40 [demo]"])
def test_without_a_slide_offsets_only(rip: str) -> None:
    found = explained(rip)
    assert "the log does not say by how much the kernel was moved" in said(found)
    assert " is at 0x" not in said(found)


def test_a_slide_that_no_kernel_has() -> None:
    found = explained("[<ffffffffae401210>]  [<ffffffffae401210>] demo_close+0x10/0x40")
    assert "does not say" in said(found)


def test_a_running_kernel() -> None:
    table = Symbols(TABLE.spans, "kallsyms", is_running=True)
    found = explained("0xffffffff81000210", table=table)
    assert found.headline.startswith("Write to 0xffff888101a42000 in demo_close+0x10")
