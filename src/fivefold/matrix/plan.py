"""Which runs there are: every kernel on every cell, but for those that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fivefold.errors import FormatError, cannot
from fivefold.matrix.cells import Cell, Mode
from fivefold.matrix.kernels.kernel_file import KernelFile, open_kernel
from fivefold.matrix.result import KernelRow


@dataclass(frozen=True)
class PlannedCell:
    """A cell with its kernel, by number in the plan's list."""

    cell: Cell
    kernel: int
    kind: str
    promised: tuple[Mode, ...]

    @property
    def id(self) -> str:
        """Unlike any other's in the plan."""
        return self.cell.id


@dataclass(frozen=True)
class SkippedCell:
    """A cell that cannot be run, and why."""

    id: str
    reason: str

    def to_json(self) -> dict[str, object]:
        """As the schema has it."""
        return {"id": self.id, "reason": self.reason}


@dataclass(frozen=True)
class NoKernel:
    """A file that is no kernel, and what it is."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class MatrixPlan:
    """All there is to run. *kernels* has None for a file that is none."""

    rows: tuple[KernelRow, ...]
    kernels: tuple[KernelFile | None, ...]
    cells: tuple[PlannedCell, ...]
    skipped: tuple[SkippedCell, ...]
    no_kernels: tuple[NoKernel, ...]


def make_plan(
    paths: Sequence[str], cells: Iterable[Cell], refusal: Callable[[Cell], str | None] = lambda cell: None
) -> MatrixPlan:
    """Every kernel on every cell; *refusal* says what the machine that runs them has not got.

    `CannotOpenError` for a file that cannot be read. One that is no kernel is a row of its own.
    """
    rows, planned, skipped, nothing = [], [], [], []
    kernels: list[KernelFile | None] = []
    cells = tuple(cells)
    for number, path in enumerate(paths):
        prefix = "" if len(paths) == 1 else f"k{number + 1}-"
        try:
            kernel = open_kernel(path)
        except FormatError as error:
            rows.append(KernelRow(path, None, None))
            kernels.append(None)
            nothing.append(
                NoKernel(
                    f"{prefix or 'k1-'}none", path, str(error).removeprefix(f"{path}: ").removeprefix("not a kernel: ")
                )
            )
            continue
        except OSError as error:
            raise cannot("open", path, error) from error
        rows.append(KernelRow(path, kernel.release, kernel.sha256))
        kernels.append(kernel)
        for cell in (cell.named(prefix) for cell in cells):
            if (reason := _reason(kernel, cell) or refusal(cell)) is not None:
                skipped.append(SkippedCell(cell.id, reason))
            else:
                planned.append(PlannedCell(cell, number, kernel.kind, _promised(kernel, cell)))
    return MatrixPlan(tuple(rows), tuple(kernels), tuple(planned), tuple(skipped), tuple(nothing))


def _reason(kernel: KernelFile, cell: Cell) -> str | None:
    """Why *kernel* cannot be booted on *cell* anywhere."""
    if cell.path == "pvh":
        refused = kernel.pvh_refusal()
        return f"not entered by PVH: {refused}" if refused else None
    if kernel.kind == "vmlinux":
        if cell.path != "direct":
            return f"a vmlinux has no entry for {cell.path}; give the bzImage"
        if cell.kexec:
            return "kexec_file_load takes a bzImage, and this is a vmlinux"
        refused = kernel.pvh_refusal()
        return f"not entered by PVH: {refused}" if refused else None
    return None


def _promised(kernel: KernelFile, cell: Cell) -> tuple[Mode, ...]:
    """By the path; a kernel whose own header says that it was built without five levels promises four."""
    promised = cell.promised(kernel.kind)
    if kernel.knows_five_levels is False:
        return tuple("la48" for _ in promised)
    return promised
