"""`fivefold judge`: whether the kernel passed, from what it wrote to a serial port."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fivefold.cli.source_options import JsonOption


def judge(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The serial log; - reads standard input.", allow_dash=True)
    ],
    as_json: JsonOption = False,
) -> int:
    """Report from a serial log alone whether the kernels in it passed their checks: status 0 if all did, 1 if not."""
    from fivefold.boot import read_serial
    from fivefold.boot.judge.serial_text import judge_text
    from fivefold.errors import FormatError
    from fivefold.report.json_text import write_document
    from fivefold.report.sheet import sheet
    from fivefold.report.text.judge import write_judgement

    judgement = judge_text(read_serial(file))
    if as_json:
        write_document(judgement.to_json(), sys.stdout)
    if not judgement.reports:
        raise FormatError(f"{file}: it contains no report of a Fivefold kernel")
    if not as_json:
        write_judgement(judgement, sheet())
    return 0 if judgement.ok else 1
