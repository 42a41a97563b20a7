"""The command line: every command is parse, one call of the library, one renderer, an exit status.

0: all is well. 1: a check failed. 2: it could not be done, with one line on stderr.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import typer

from fivefold.cli import audit, boot, diff, dump, explain, find, image, info, layout, roots, stats, walk
from fivefold.errors import FivefoldError

COULD_NOT: Final = 2
INTERRUPTED: Final = 130

app = typer.Typer(
    name="fivefold",
    help="x86-64 paging with four and five levels, chosen at boot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("boot")(boot.boot)
app.command("image")(image.image)
app.command("info")(info.info)
app.command("walk")(walk.walk)
app.command("dump")(dump.dump)
app.command("roots")(roots.roots)
app.command("audit")(audit.audit)
app.command("diff")(diff.diff)
app.command("find")(find.find)
app.command("stats")(stats.stats)
app.command("layout")(layout.layout)
app.command("explain")(explain.explain)


def main() -> None:
    """Run the command line; errors that the package raises on purpose become one line and status 2."""
    try:
        status = app(standalone_mode=False)
    except BrokenPipeError:
        status = 0  # a reader that went away, such as `head`, is no error
    except FivefoldError as error:
        status = _refuse(str(error))
    except OSError as error:
        status = _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except typer.Abort:
        status = INTERRUPTED
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:  # click's usage errors; typer does not export their class
        if not hasattr(error, "format_message"):
            raise
        status = _refuse(error.format_message())
    _flush()
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> int:
    print(f"fivefold: {' '.join(message.split())}", file=sys.stderr)
    return COULD_NOT


def _flush() -> None:
    """Write out what is left; where the reader went away there is nobody to tell."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
