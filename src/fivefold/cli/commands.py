"""The commands: every command is parse, one call of the library, one renderer, an exit status.

0: all is well. 1: a check failed. 2: it could not be done, with one line on stderr.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from fivefold.cli.printing import print_to_nobody, printing
from fivefold.errors import FivefoldError

COULD_NOT: Final = 2

COMMANDS: Final = {
    "boot": "Boot one image with five levels and with four, check both",
    "image": "Write the bootable image",
    "info": "What a guest is: format, memory, mode, root, kernel, bases",
    "walk": "Every entry that the CPU reads for an address",
    "dump": "What is mapped, with which effective rights",
    "roots": "Page-table roots in a memory, without registers",
    "audit": "What breaks W^X, isolation and the architecture's rules",
    "diff": "What differs between two address spaces",
    "find": "Who maps a frame, or bytes, under all roots",
    "stats": "What page tables take and map",
    "layout": "What a kernel puts where, and what an address is",
    "view": "An address space as one page of HTML",
    "explain": "Why a fault happened, and how it became a triple fault",
}
"""Commands with their line of help. Each is a function of its name, in a module of its name."""


class _Commands(TyperGroup):
    """Builds only the command that is asked for: help and start-up cost the same however many there are."""

    def list_commands(self, ctx: object) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        one.command(cmd_name)(_printing(getattr(import_module(f"fivefold.cli.{cmd_name}"), cmd_name)))
        return typer.main.get_command(one)

    def format_commands(self, ctx: object, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _printing(command: Callable[..., int]) -> Callable[..., int]:
    # Around the command itself: what click makes of a reader that went away is status 1.
    @functools.wraps(command)
    def run(**given: Any) -> int:
        return printing(lambda: command(**given))

    return run


app = typer.Typer(
    name="fivefold",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"fivefold {metadata.version('fivefold')}")
        raise typer.Exit


@app.callback()
def fivefold(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """x86-64 paging with four and five levels, chosen at boot."""


def run() -> int:
    """Run the command line and return the exit status; errors that the package raises on purpose become one line.

    Ctrl-C raises `KeyboardInterrupt`.
    """
    _open_what_is_closed()
    try:
        status = app(standalone_mode=False)
    except BrokenPipeError:
        status = 0  # a reader that went away, such as `head`, is no error
    except FivefoldError as error:
        status = _refuse(str(error))
    except OSError as error:
        status = _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except typer.Abort as error:  # what is made of Ctrl-C in a command
        raise KeyboardInterrupt from error
    except Exception as error:  # click's usage errors; typer does not export their class
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if message.startswith("Usage:"):  # no command was given: this is the whole help
            print(message)
            status = COULD_NOT
        else:
            status = _refuse(message)
    return _flushed(status if isinstance(status, int) else 0)


def _open_what_is_closed() -> None:
    """Let what is printed to a stream that the shell closed (``>&-``) go nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process


def _refuse(message: str) -> int:
    # pydantic, which typer asks about values, puts its own name for the error first.
    line = " ".join(message.split()).replace(": Value error, ", ": ", 1)
    print(f"fivefold: {line}", file=sys.stderr)
    return COULD_NOT


def _flushed(status: int) -> int:
    """Write out what is left, and return *status*; where the reader went away there is nobody to tell."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print_to_nobody()
        return status if isinstance(error, BrokenPipeError) else _refuse(f"standard output: {error.strerror}")
    return status
