"""Many runs folded: a kernel that fails by a seeded draw, and what is said of it in every form."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from rich.console import Console

from fivefold.campaign.parts import CampaignError
from fivefold.cli.matrix import bisect_status, status
from fivefold.matrix.cells import Cell
from fivefold.matrix.conduct import Options, PlannedRun, items_of, run_items, table_of
from fivefold.matrix.kernels.kernel_file import KernelFile
from fivefold.matrix.plan import MatrixPlan, NoKernel, PlannedCell, SkippedCell
from fivefold.matrix.result import CellCheck, CellRun, KernelRow, RunCause, lost
from fivefold.matrix.state import MatrixState
from fivefold.matrix.statistics import clopper_pearson, fisher, holm
from fivefold.matrix.table import MatrixTable
from fivefold.report.matrix_files import write_html, write_junit
from fivefold.report.text.matrix import print_matrix

KERNEL = KernelFile("bzImage", "bzImage", b"")
GOOD = CellRun("ready", "la57", (CellCheck("mode", True, "5 levels"),), seconds=2.0)
CELLS = (Cell("five"), Cell("four", cpu="la48"), Cell("nokaslr", cmdline="nokaslr"))


def plan(cells: tuple[Cell, ...] = CELLS, **more: object) -> MatrixPlan:
    planned = tuple(PlannedCell(cell, 0, "bzImage", cell.promised("bzImage")) for cell in cells)
    made = MatrixPlan((KernelRow("bzImage", "6.1", "ab"),), (KERNEL,), planned, (), ())
    return replace(made, **more)  # type: ignore[arg-type]


class Flaky:
    """A simulated driver: fails with five levels at a rate, in one of two ways that differ in their numbers alone."""

    def __init__(self, rate: float, seed: int) -> None:
        self._draw, self._rate = random.Random(seed), rate

    def __call__(self, item: PlannedRun) -> CellRun:
        if item.planned.promised[-1] == "la48":
            return replace(GOOD, mode="la48")
        if self._draw.random() >= self._rate:
            return GOOD
        at = self._draw.randrange(1 << 32)
        if self._draw.random() < 0.5:
            return CellRun("panic", "la57", cause=RunCause("panic", f"no init at {at}", "kernel_init"), seconds=3.0)
        return CellRun("triple-fault", "la57", cause=RunCause("not-present", f"a fault at 0x{at:x}", None), seconds=1.0)


def table(run: Flaky, repeat: int, cells: tuple[Cell, ...] = CELLS, **more: object) -> MatrixTable:
    made = plan(cells, **more)
    with MatrixState(None, made, "simulated") as state:
        run_items(items_of(made, repeat), run, state, lambda item, found: None, 1, lambda: None)
        return table_of(made, Options(repeat=repeat), state)


def test_a_flaky_kernel_over_a_hundred_repetitions() -> None:
    found = table(Flaky(0.2, 11), 100)
    five, four, nokaslr = found.cells
    assert (len(five.runs), four.failures) == (100, 0) and 10 <= five.failures <= 30
    assert five.interval == clopper_pearson(five.failures, 100)
    assert five.interval[0] <= 0.2 <= five.interval[1]
    pairs = {frozenset((row.first.id, row.second.id)): row.p for row in found.comparisons}
    assert set(pairs) == {frozenset(("five", "four")), frozenset(("five", "nokaslr"))}
    raw = [fisher((five.failures, 100), (0, 100)), fisher((five.failures, 100), (nokaslr.failures, 100))]
    assert [pairs[frozenset(("five", "four"))], pairs[frozenset(("five", "nokaslr"))]] == holm(raw)
    assert pairs[frozenset(("five", "four"))] < 0.001 < 0.05 < pairs[frozenset(("five", "nokaslr"))]
    causes = five.causes
    assert len(causes) == 2 and sum(count for _, count in causes) == five.failures
    assert causes[0][1] >= causes[1][1]
    assert found.comparisons[0].sentence == (
        f"five fails {five.failures} of 100, four 0 of 100: unlikely by chance "
        f"(p = {found.comparisons[0].p:.3g}; they differ in cpu alone)"
    )


def test_the_same_seed_has_the_same_table_and_the_json_is_the_schema() -> None:
    one, two = (table(Flaky(0.5, 3), 10).to_json() for _ in range(2))
    assert one == two == json.loads(json.dumps(one))
    assert set(one) == {"schema", "ok", "kernels", "cells", "comparisons", "skipped"}
    assert {
        "id", "kernel", "cpu", "cmdline", "firmware", "memory", "smp", "machine", "promised", "mode", "outcome", "ok",
        "checks", "cause", "causes", "repeats", "failures", "interval", "seconds", "qemu",
    } <= set(one["cells"][0])  # fmt: skip
    assert one["cells"][0]["qemu"].startswith("qemu-system-x86_64 ")


def test_an_interrupted_matrix_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    made, asked = plan(), []

    def run(item: PlannedRun) -> CellRun:
        asked.append((item.planned.id, item.number))
        if len(asked) == 3:
            return lost("killed")
        if len(asked) == 5:
            raise KeyboardInterrupt
        return GOOD

    with MatrixState(path, made, "e") as state, pytest.raises(KeyboardInterrupt):
        run_items(items_of(made, 2), run, state, lambda item, found: None, 1, lambda: None)
    first, asked[:] = list(asked), []
    with MatrixState(path, made, "e") as state:
        run_items(items_of(made, 2), run, state, lambda item, found: None, 1, lambda: None)
    assert set(first[:2]) & set(asked) == set() and first[2] in asked
    with pytest.raises(CampaignError, match="is the state of another campaign: cells differ"):
        MatrixState(path, plan(CELLS[:1]), "e")


def verdicts(*outcomes: str) -> MatrixTable:
    """A table of cells five and four with these outcomes."""
    made = plan(CELLS[: len(outcomes)])
    with MatrixState(None, made, "e") as state:
        for planned, outcome in zip(made.cells, outcomes, strict=True):
            mode = planned.promised[-1]
            bad = CellRun(outcome, None, cause=RunCause("panic", "it did"))  # type: ignore[arg-type]
            bad = lost("killed") if outcome == "worker-lost" else bad
            state.add(planned.id, 0, replace(GOOD, mode=mode) if outcome == "ready" else bad)
        return table_of(made, Options(), state)


STATUSES = (
    (("ready", "ready"), 0, 0),
    (("panic", "ready"), 1, 1),
    (("triple-fault", "ready"), 1, 1),
    (("ready", "panic"), 1, 125),
    (("panic", "panic"), 1, 125),
    (("worker-lost", "ready"), 1, 128),
    (("worker-lost", "worker-lost"), 2, 128),
    ((), 2, 128),
)


@pytest.mark.parametrize(("outcomes", "plain", "bisect"), STATUSES)
def test_exit_status(outcomes: tuple[str, ...], plain: int, bisect: int) -> None:
    found = verdicts(*outcomes)
    assert (status(found), bisect_status(found)) == (plain, bisect)


def test_a_file_that_is_no_kernel_is_a_row() -> None:
    nothing = NoKernel("k2-none", "README", "it is text")
    alone = table(Flaky(0, 1), 1, (), no_kernels=(nothing,))
    assert (status(alone), bisect_status(alone), alone.ok) == (2, 125, False)
    beside = table(Flaky(0, 1), 1, no_kernels=(nothing,))
    assert status(beside) == 1
    row = beside.to_json()["cells"][-1]
    assert (row["outcome"], row["ok"], row["cause"]["sentence"]) == ("not-a-kernel", False, "it is text")


def test_a_cell_that_is_expected_to_fail_does_not_fail_the_table() -> None:
    known = (Cell("known", expected_to_fail="it never did"),)
    found = table(Flaky(1, 1), 1, known)
    assert found.cells[0].failures == 1 and found.ok and status(found) == 0


def text_of(found: MatrixTable) -> str:
    out = io.StringIO()
    print_matrix(found, Console(file=out, width=160))
    return out.getvalue()


def test_text_for_people() -> None:
    found = table(Flaky(1, 1), 2, skipped=(SkippedCell("la57-pvh", "no\x1b[2J way"),))
    text = text_of(found)
    assert "skipped la57-pvh: no\\x1b[2J way" in text and "\x1b" not in text
    assert "2 of 2 (15.8% to 100.0%)" in text and "failed: 2 of 3 cells" in text
    assert "again: qemu-system-x86_64" in text


def test_junit_and_html() -> None:
    found = table(Flaky(1, 1), 1, skipped=(SkippedCell("x", "no <QEMU>"),), no_kernels=(NoKernel("n", "<a>", "text"),))
    out = io.StringIO()
    write_junit(found, out)
    suite = Xml.fromstring(out.getvalue())
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped")} == {
        "tests": "5", "failures": "3", "skipped": "1",
    }  # fmt: skip
    assert len(suite.findall("testcase/failure")) == 3 and len(suite.findall("testcase/skipped")) == 1
    page = io.StringIO()
    write_html(found, page)
    assert "no &lt;QEMU&gt;" in page.getvalue() and "<a>" not in page.getvalue()
    assert page.getvalue().count('<tr class="failed">') == 2 and page.getvalue().count('<tr class="ok">') == 1
