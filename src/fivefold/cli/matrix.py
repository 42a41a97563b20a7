"""`fivefold matrix`: does this kernel keep its promise of four and five levels, on every machine?"""

from __future__ import annotations

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.failures import COULD_NOT, STOP_GIT, refuse
from fivefold.errors import FivefoldError, FormatError, cannot, printable
from fivefold.opening import open_to_read

if TYPE_CHECKING:
    from fivefold.matrix.cells import Cell
    from fivefold.matrix.conduct import Options
    from fivefold.matrix.plan import MatrixPlan
    from fivefold.matrix.table import MatrixTable

SKIP = 125
"""What ``git bisect run`` takes for: cannot be told of this commit."""


class PresetChoice(StrEnum):
    """Cells that come with us."""

    quick = "quick"
    default = "default"
    full = "full"


class AcceleratorChoice(StrEnum):
    """What runs the guest's instructions."""

    tcg = "tcg"
    kvm = "kvm"


class DriverChoice(StrEnum):
    """Which virtual machine monitor."""

    qemu = "qemu"
    firecracker = "firecracker"
    cloud_hypervisor = "cloud-hypervisor"


def matrix(
    kernels: Annotated[
        list[str],
        typer.Argument(metavar="KERNEL...", help="A bzImage, vmlinux or unified EFI image, or a .deb that has one."),
    ],
    preset: Annotated[PresetChoice, typer.Option(help="Cells that come with us.")] = PresetChoice.default,
    cells: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Cells of your own, as TOML, in place of the preset.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="ID", help="Only this cell; may be given again.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells and command lines, and stop.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(parser=values.count(1, 1024), metavar="N", help="Machines at a time. [default: as many as cores]"),
    ] = None,
    repeat: Annotated[
        int, typer.Option(parser=values.count(1, 100_000), metavar="N", help="Boot every cell so often.")
    ] = 1,
    timeout: Annotated[
        float, typer.Option(parser=values.seconds, metavar="SECONDS", help="End a boot after this long.")
    ] = 300.0,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep log, registers, page tables and command of failures here.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what is done in FILE, and go on from there.")
    ] = None,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run the cells on this Dask scheduler.")] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Exit as `git bisect run` expects: 0 good, 1 bad, 125 skip, 128 stop.")
    ] = False,
    driver: Annotated[
        DriverChoice,
        typer.Option(metavar="NAME", help="What boots the cells: qemu, firecracker or cloud-hypervisor."),
    ] = DriverChoice.qemu,
    engine: Annotated[AcceleratorChoice, typer.Option(help="What runs their instructions.")] = AcceleratorChoice.tcg,
    qemu: Annotated[
        str | None, typer.Option(metavar="PATH", help="Another QEMU: a program, or a folder of unpacked packages.")
    ] = None,
    initramfs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write our initramfs here too, for the printed commands.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every check.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the schema fivefold.matrix/1.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML too.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of HTML too.")] = None,
) -> int:
    """Boot each kernel on machines with four and five levels, and check mode, page tables and promises.

    Exit status: 0 all as promised, 1 not, 2 it could not be done.
    """
    if dry_run and (as_json or bisect):
        raise FivefoldError(f"{'--json' if as_json else '--bisect'} is about boots, and --dry-run boots nothing")
    from fivefold.matrix.conduct import Options, cores, refusals
    from fivefold.matrix.plan import make_plan

    options = Options(
        jobs or cores(), repeat, timeout, keep=str(keep.absolute()) if keep else None,
        driver=driver.value, accelerator=engine.value, program=qemu,
    )  # fmt: skip
    try:
        plan = make_plan(kernels, _chosen(preset, cells, only), *(() if dask else (refusals(options),)))
        if initramfs is not None:
            _write_initramfs(initramfs)
        if dry_run:
            return _dry_run(plan, options)
        _check_writable(None if dask else keep, junit, html)
        table = _run(plan, options, state, dask)
        _print(table, as_json, verbose)
        _write_files(table, junit, html)  # last: a disk that is full costs these, and not the table
    except (FivefoldError, OSError) as error:
        if not bisect:
            raise
        refuse(str(error))
        return STOP_GIT
    return bisect_status(table) if bisect else status(table)


def _chosen(preset: PresetChoice, file: Path | None, only: list[str] | None) -> tuple[Cell, ...]:
    """The cells that are asked for."""
    from fivefold.matrix.cells import read_cells
    from fivefold.matrix.presets import PRESETS

    if file is None:
        found = PRESETS[preset.value]
    else:
        try:
            with open_to_read(file) as text:
                found = read_cells(text.read().decode(), str(file))
        except UnicodeDecodeError as error:
            raise FormatError(f"{file}: not TOML: it is no text in UTF-8") from error
        except OSError as error:
            raise cannot("open", str(file), error) from error
    if unknown := [name for name in only or () if name not in {cell.id for cell in found}]:
        raise FormatError(f"no cell {unknown[0]!r}; expected one of {', '.join(cell.id for cell in found)}")
    return tuple(cell for cell in found if not only or cell.id in only)


def _check_writable(keep: Path | None, *files: Path | None) -> None:
    """Refuse before the first boot what could not be written after the last; a cluster keeps on its workers."""
    if keep is not None:
        folder = next((path for path in (keep, *keep.absolute().parents) if path.exists()), keep)
        if not folder.is_dir():
            raise FivefoldError(f"cannot write {keep}: {folder} is not a folder")
        _check_folder(keep, folder)
    for file in files:
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            reason = "it is a folder" if file.is_dir() else f"there is no folder {file.parent}"
            raise FivefoldError(f"cannot write {file}: {reason}")


def _check_folder(keep: Path, folder: Path) -> None:
    """Try it, since root may write where the mode says no and may not where the system will have no files."""
    try:
        with TemporaryDirectory(dir=folder, prefix=".fivefold-"):
            pass
    except OSError as error:
        raise cannot("write", str(keep), error) from error


def _write_initramfs(path: Path) -> None:
    from fivefold.matrix.init.build import initramfs

    try:
        path.write_bytes(initramfs())
    except OSError as error:
        raise cannot("write", str(path), error) from error


def _dry_run(plan: MatrixPlan, options: Options) -> int:
    from fivefold.matrix.conduct import command_of
    from fivefold.report.console import report_console
    from fivefold.report.text.matrix import print_plan

    commands = {planned.id: shlex.join(command_of(planned, plan, options)) for planned in plan.cells}
    print_plan(plan, commands, report_console(piped=160))
    return 0 if plan.cells and not plan.no_kernels else COULD_NOT


def _run(plan: MatrixPlan, options: Options, state: Path | None, dask: str | None) -> MatrixTable:
    from fivefold.matrix.conduct import run_plan
    from fivefold.matrix.state import MatrixState
    from fivefold.report.live_matrix import live_table

    named = str(state) if state else None
    with MatrixState(named, plan, options.identity) as kept, live_table(plan, options.repeat) as told:
        if dask is not None:
            from fivefold.matrix.cluster import run_on_cluster

            table = run_on_cluster(plan, options, kept, told, dask)
        else:
            table = run_plan(plan, options, kept, told)
    if kept.not_kept is not None:
        refuse(f"{state}: {kept.not_kept}; what was run after that is not in it")
    return table


def _write_files(table: MatrixTable, junit: Path | None, html: Path | None) -> None:
    from fivefold.report.matrix_files import write_html, write_junit

    for path, write in ((junit, write_junit), (html, write_html)):
        if path is not None:
            try:
                with path.open("w", encoding="utf-8") as out:
                    write(table, out)
            except OSError as error:
                raise cannot("write", str(path), error) from error


def _print(table: MatrixTable, as_json: bool, verbose: bool) -> None:
    if as_json:
        json.dump(table.to_json(), sys.stdout, indent=1)
        print()
        return
    from fivefold.report.console import report_console
    from fivefold.report.text.matrix import print_matrix

    print_matrix(table, report_console(piped=160), verbose)


def status(table: MatrixTable) -> int:
    """0 all as promised, 1 not, 2 where nothing was booted."""
    if table.could_not:
        first = table.no_kernels[0] if table.no_kernels else None
        why = f"{first.path}: {first.reason}" if first else "no cell came to a verdict"
        print(f"fivefold: nothing was booted: {printable(why)}", file=sys.stderr)
        return COULD_NOT
    return 0 if table.ok else 1


def bisect_status(table: MatrixTable) -> int:
    """As ``git bisect run`` reads it: a kernel that fails with four levels, or is none, says nothing about five."""
    if any(cell.outcome == "worker-lost" for cell in table.cells) or not (table.cells or table.no_kernels):
        return STOP_GIT
    four = [cell for cell in table.cells if cell.planned.promised[-1] == "la48"]
    if table.no_kernels or not all(cell.ok for cell in four):
        return SKIP
    return 0 if table.ok else 1
