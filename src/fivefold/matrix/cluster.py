"""A matrix on the workers of a Dask cluster: each cell goes to workers that can run it, and to another if one dies.

A kernel is a task named by its digest, so that it is sent once to a worker, and made again where the worker that held
it is gone. Machines run under supervisors there as here: a worker that is killed takes its machine with it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

from fivefold.campaign.parts import CampaignError
from fivefold.errors import FivefoldError
from fivefold.matrix.cells import Cell
from fivefold.matrix.conduct import LocalRunner, Options, PlannedRun, Told, items_of, table_of
from fivefold.matrix.kernels.kernel_file import KernelFile, kernel_of
from fivefold.matrix.plan import MatrixPlan, PlannedCell
from fivefold.matrix.result import KernelRow
from fivefold.matrix.state import MatrixState
from fivefold.matrix.supervise.job import driver_named
from fivefold.matrix.table import MatrixTable

PATIENCE: Final = "10s"
"""How long a scheduler may take to answer."""


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


def run_there(
    cell: dict[str, Any],
    path: str,
    promised: Sequence[str],
    data: bytes,
    options: dict[str, Any],
    begun: tuple[str, str],
) -> Any:
    """On a worker: one run, as JSON. *begun*: the topic under which the scheduler notes that it began, and its name."""
    from distributed import get_worker

    topic, name = begun
    worker = get_worker()
    worker.log_event(topic, {"run": name, "worker": worker.address})
    kernel = _kernel(path, data)
    planned = PlannedCell(_cell(cell), 0, kernel.kind, tuple(promised))  # type: ignore[arg-type]
    row = KernelRow(path, kernel.release, kernel.sha256)
    with LocalRunner(MatrixPlan((row,), (kernel,), (planned,), (), ()), Options(**options)) as runner:
        return runner(PlannedRun(planned, 0)).to_json()


def run_on_cluster(plan: MatrixPlan, options: Options, state: MatrixState, told: Told, address: str) -> MatrixTable:
    """Run what *state* does not have on the workers of the scheduler at *address*, and make the table."""
    from fivefold.matrix.crew import Crew

    client = _client(address)
    with client:
        crew = Crew(client, plan, options)
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
