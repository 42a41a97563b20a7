"""The workers of a Dask cluster, as a matrix sees them: what each can run, what it has begun, and what died with it.

Dask gives the task of a worker that died to another, and counts such deaths by task and not by cell; so the scheduler
notes each beginning of a run under a topic of ours, and the deaths of a cell are counted by that.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from fivefold.campaign.parts import TRIES
from fivefold.matrix.cluster import abilities, kernel_bytes, run_there
from fivefold.matrix.conduct import Options, PlannedRun
from fivefold.matrix.plan import MatrixPlan, SkippedCell
from fivefold.matrix.result import CellRun, lost

LOOK_SECONDS: Final = 2.0
"""How often it is looked who is there, and who died."""
_ALONE: Final = TRIES - 1
"""A cell whose workers died so often runs again when nothing else does, so that no other cell dies with it."""


@dataclass
class _UnderWay:
    """Runs that were given to the cluster."""

    items: dict[Any, PlannedRun] = field(default_factory=dict)
    able: dict[Any, list[str]] = field(default_factory=dict)
    waiting: list[PlannedRun] = field(default_factory=list)
    """Runs that wait until they can be alone."""

    def add(self, future: Any, item: PlannedRun, able: list[str]) -> None:
        self.items[future], self.able[future] = item, able

    def take(self, future: Any) -> PlannedRun:
        del self.able[future]
        return self.items.pop(future)

    def cancel(self, future: Any) -> PlannedRun:
        future.cancel()
        return self.take(future)


class Crew:
    """The workers, what each can do, and the kernels that they share."""

    def __init__(self, client: Any, plan: MatrixPlan, options: Options) -> None:
        """Ask the workers that are there what they can run."""
        self._client, self._plan = client, plan
        self._options = asdict(replace(options, jobs=1))
        self._cells = {planned.id: asdict(planned.cell) for planned in plan.cells}
        self._abilities: dict[str, dict[str, str | None]] = {}
        self._kernels: dict[int, Any] = {}
        self._topic = f"fivefold-{secrets.token_hex(8)}"
        self._ask(self.addresses)

    @property
    def addresses(self) -> set[str]:
        """Of the workers there are now."""
        return set(self._client.scheduler_info(n_workers=-1)["workers"])

    def _ask(self, there: set[str]) -> bool:
        """Ask workers that have not been asked yet what they can run; whether there were any."""
        new = [address for address in there if address not in self._abilities]
        if new:
            cells = list(self._cells.values())
            self._abilities |= self._client.run(abilities, cells, self._options, workers=new, on_error="ignore")
        return bool(new)

    def able(self, cell: str, there: set[str] | None = None) -> list[str]:
        """The workers that are there and can run it."""
        there = self.addresses if there is None else there
        return [at for at, said in self._abilities.items() if at in there and said.get(cell, "?") is None]

    def without_unable(self, plan: MatrixPlan) -> MatrixPlan:
        """*plan* with cells skipped that no worker can run, for the reasons that the workers give."""
        unable = [planned for planned in plan.cells if not self.able(planned.id)]
        skipped = tuple(SkippedCell(planned.id, f"no worker can: {self._reasons(planned.id)}") for planned in unable)
        cells = tuple(planned for planned in plan.cells if planned not in unable)
        return replace(plan, cells=cells, skipped=(*plan.skipped, *skipped))

    def _reasons(self, cell: str) -> str:
        said = dict.fromkeys(reasons.get(cell) or "it does not say why" for reasons in self._abilities.values())
        return "; another: ".join(said)

    def _kernel(self, number: int) -> Any:
        """The task that is the kernel; its name is what it is."""
        if number not in self._kernels:
            kernel = self._plan.kernels[number]
            assert kernel is not None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is large is known
                self._kernels[number] = self._client.submit(
                    kernel_bytes, kernel.data, key=f"fivefold-kernel-{kernel.sha256}"
                )
        return self._kernels[number]

    def _submit(self, item: PlannedRun, under_way: _UnderWay) -> None:
        planned = item.planned
        able = self.able(planned.id)
        future = self._client.submit(
            run_there, self._cells[planned.id], self._plan.rows[planned.kernel].path, list(planned.promised),
            self._kernel(planned.kernel), self._options, (self._topic, _name(item)),
            workers=able, allow_other_workers=False, pure=False,
        )  # fmt: skip
        under_way.add(future, item, able)

    def run(self, items: Sequence[PlannedRun]) -> Iterator[tuple[PlannedRun, CellRun]]:
        """Each item with its run, as they come."""
        under_way = _UnderWay()
        for item in items:
            self._submit(item, under_way)
        while under_way.items or under_way.waiting:
            if not under_way.items:
                self._submit(under_way.waiting.pop(), under_way)
            for future in self._finished(under_way):
                item = under_way.take(future)
                yield item, self._run_of(future, item)
            yield from self._after_deaths(under_way)

    def _finished(self, under_way: _UnderWay) -> list[Any]:
        from distributed import wait

        try:
            with self._client.as_current():
                return list(wait(list(under_way.items), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []

    def _begun(self) -> dict[str, list[str]]:
        """The workers that began each run, oldest first, by the scheduler's notes."""
        found: dict[str, list[str]] = {}
        for _, told in self._client.get_events(self._topic):
            found.setdefault(told["run"], []).append(told["worker"])
        return found

    def _deaths(self, item: PlannedRun, begun: dict[str, list[str]], there: set[str]) -> int:
        """How many workers died over it: each that began it but the last, and the last if it is gone."""
        workers = begun.get(_name(item), [])
        return max(0, len(workers) - 1) + any(at not in there for at in workers[-1:])

    def _after_deaths(self, under_way: _UnderWay) -> Iterator[tuple[PlannedRun, CellRun]]:
        """Give up what killed too many or can run nowhere; hold back what may be killing; give the rest to others."""
        there = self.addresses
        grown, begun = self._ask(there), self._begun()
        for future in [one for one in under_way.items if one.status == "pending"]:
            item = under_way.items[future]
            deaths = self._deaths(item, begun, there)
            able = self.able(item.planned.id, there)
            if deaths >= TRIES:
                yield under_way.cancel(future), _killed(deaths)
            elif not able:
                yield under_way.cancel(future), lost("no worker that could run it is left")
            elif deaths >= _ALONE and len(under_way.items) > 1:
                under_way.waiting.append(under_way.cancel(future))
            elif not set(under_way.able[future]) & there or (grown and _name(item) not in begun):
                self._submit(under_way.cancel(future), under_way)

    def _run_of(self, future: Any, item: PlannedRun) -> CellRun:
        if future.status == "finished":
            return CellRun.from_json(future.result())
        error = future.exception() if future.status == "error" else future.status
        if type(error).__name__ == "KilledWorker":
            return _killed(max(1, self._deaths(item, self._begun(), self.addresses)))
        return lost(f"the cluster gave it up: {error}")


def _name(item: PlannedRun) -> str:
    return f"{item.planned.id} {item.number}"


def _killed(deaths: int) -> CellRun:
    return lost(f"its worker died {deaths} times" if deaths > 1 else "its worker died, and Dask gives it no other")
