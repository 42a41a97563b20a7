"""A matrix on the workers of a Dask cluster: each cell goes to workers that can run it, and to another if one dies.

A kernel is a task named by its digest, so that it is sent once to a worker, and made again where the worker that held
it is gone. Machines run under supervisors there as here: a worker that is killed takes its machine with it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from fivefold.campaign.parts import TRIES, CampaignError
from fivefold.errors import FivefoldError
from fivefold.matrix.cells import Cell
from fivefold.matrix.conduct import LocalRunner, Options, PlannedRun, Told, items_of, table_of
from fivefold.matrix.kernels.kernel_file import KernelFile, kernel_of
from fivefold.matrix.plan import MatrixPlan, PlannedCell, SkippedCell
from fivefold.matrix.result import CellRun, KernelRow, lost
from fivefold.matrix.state import MatrixState
from fivefold.matrix.supervise.job import driver_named
from fivefold.matrix.table import MatrixTable

PATIENCE: Final = "10s"
"""How long a scheduler may take to answer."""
LOOK_SECONDS: Final = 5.0
"""How often it is looked whether a cell still has a worker that could run it."""


def abilities(cells: Sequence[dict[str, Any]], options: dict[str, Any]) -> dict[str, str | None]:
    """On a worker: why it cannot run each of *cells*, None where it can."""
    chosen = Options(**options)
    try:
        driver = driver_named(chosen.driver, chosen.accelerator, chosen.program)
        driver.version()
    except FivefoldError as error:
        return {cell["id"]: str(error) for cell in cells}
    return {cell["id"]: driver.refusal(_cell(cell)) for cell in cells}


def _cell(data: dict[str, Any]) -> Cell:
    return Cell(**{**data, "kexec": tuple(data["kexec"])})


def kernel_bytes(data: bytes) -> bytes:
    """On a worker: the task that a kernel is."""
    return data


@functools.lru_cache(2)
def _kernel(path: str, data: bytes) -> KernelFile:
    return kernel_of(path, data)


def run_there(cell: dict[str, Any], path: str, promised: Sequence[str], data: bytes, options: dict[str, Any]) -> Any:
    """On a worker: one run, as JSON."""
    kernel = _kernel(path, data)
    planned = PlannedCell(_cell(cell), 0, kernel.kind, tuple(promised))  # type: ignore[arg-type]
    row = KernelRow(path, kernel.release, kernel.sha256)
    with LocalRunner(MatrixPlan((row,), (kernel,), (planned,), (), ()), Options(**options)) as runner:
        return runner(PlannedRun(planned, 0)).to_json()


def run_on_cluster(plan: MatrixPlan, options: Options, state: MatrixState, told: Told, address: str) -> MatrixTable:
    """Run what *state* does not have on the workers of the scheduler at *address*, and make the table."""
    client = _client(address)
    with client:
        crew = _Crew(client, plan, options)
        if not crew.addresses:
            raise CampaignError(f"the Dask scheduler at {address} has no workers")
        plan = crew.without_unable(plan)
        for item, run in crew.run([item for item in items_of(plan, options.repeat) if not _done(state, item)]):
            state.add(item.planned.id, item.number, run)
            told(item, run)
    return table_of(plan, options, state)


def _done(state: MatrixState, item: PlannedRun) -> bool:
    return state.has(item.planned.id, item.number)


def _client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise CampaignError("Dask is not installed; install it with: pip install 'fivefold[cluster]'") from error
    try:
        return Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise CampaignError(f"no Dask scheduler answers at {address}: {error}") from error


class _Crew:
    """The workers, what each can do, and the kernels that they share."""

    def __init__(self, client: Any, plan: MatrixPlan, options: Options) -> None:
        self._client, self._plan = client, plan
        self._options = asdict(replace(options, jobs=1))
        self._cells = {planned.id: asdict(planned.cell) for planned in plan.cells}
        self._abilities: dict[str, dict[str, str | None]] = {}
        self._kernels: dict[int, Any] = {}
        self._named: dict[str, list[str]] = {}
        self._ask()

    @property
    def addresses(self) -> set[str]:
        """Of the workers there are now."""
        return set(self._client.scheduler_info(n_workers=-1)["workers"])

    def _ask(self) -> None:
        """Ask workers that have not been asked yet what they can run."""
        new = [address for address in self.addresses if address not in self._abilities]
        if new:
            cells = list(self._cells.values())
            told = self._client.run(abilities, cells, self._options, workers=new, on_error="ignore")
            self._abilities |= told

    def able(self, cell: str) -> list[str]:
        """The workers that are there and can run it."""
        there = self.addresses
        return [at for at, said in self._abilities.items() if at in there and said.get(cell, "?") is None]

    def without_unable(self, plan: MatrixPlan) -> MatrixPlan:
        """*plan* with cells skipped that no worker can run, for the reason of the first."""
        unable = [planned for planned in plan.cells if not self.able(planned.id)]
        reasons = next(iter(self._abilities.values()))
        skipped = tuple(SkippedCell(planned.id, f"no worker can: {reasons.get(planned.id)}") for planned in unable)
        cells = tuple(planned for planned in plan.cells if planned not in unable)
        return replace(plan, cells=cells, skipped=(*plan.skipped, *skipped))

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

    def _submit(self, item: PlannedRun) -> Any:
        planned = item.planned
        able = self.able(planned.id)
        future = self._client.submit(
            run_there, self._cells[planned.id], self._plan.rows[planned.kernel].path, list(planned.promised),
            self._kernel(planned.kernel), self._options,
            workers=able, allow_other_workers=False, pure=False,
        )  # fmt: skip
        self._named[future.key] = able
        return future

    def run(self, items: Sequence[PlannedRun]) -> Iterator[tuple[PlannedRun, CellRun]]:
        """Each item with its run, as they come."""
        from distributed import wait

        under_way = {self._submit(item): item for item in items}
        while under_way:
            try:
                with self._client.as_current():
                    finished = wait(list(under_way), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                finished = set()
            for future in finished:
                yield under_way.pop(future), _run_of(future)
            for item in self._orphans(under_way):
                yield item, lost("no worker that could run it is left")

    def _orphans(self, under_way: dict[Any, PlannedRun]) -> Iterator[PlannedRun]:
        """Give the cells of workers that are gone to others; give up those that no worker can run any more."""
        self._ask()
        there = self.addresses
        for future, item in list(under_way.items()):
            if future.status != "pending" or any(at in there for at in self._named[future.key]):
                continue
            future.cancel()
            del under_way[future]
            if self.able(item.planned.id):
                under_way[self._submit(item)] = item
            else:
                yield item


def _run_of(future: Any) -> CellRun:
    if future.status == "finished":
        return CellRun.from_json(future.result())
    error = future.exception() if future.status == "error" else future.status
    if type(error).__name__ == "KilledWorker":
        return lost(f"its worker died {TRIES} times or more")
    return lost(f"the cluster gave it up: {error}")
