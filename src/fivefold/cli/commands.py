"""The commands: every command is parse, one call of the library, one renderer, an exit status.

0: all is well. 1: a check failed. 2: it could not be done, with one line on stderr. 3: an unexpected error,
with one line on stderr and its trace in the file that ``--report`` names.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from fivefold.cli import values
from fivefold.cli.bounds import MAX_MEMORY, bounded
from fivefold.cli.choices import ColorChoice
from fivefold.cli.failures import (
    COULD_NOT,
    STOP_GIT,
    UNFORESEEN,
    refuse,
    refuse_system,
    unforeseen,
    write_report_to,
)
from fivefold.cli.help_page import CONTEXT, GENERAL, HelpfulCommand
from fivefold.cli.printing import clean_streams, print_to_nobody, printing
from fivefold.errors import FivefoldError
from fivefold.units import format_size

COMMANDS: Final = {
    "boot": "Boot one image with five levels and with four, check both",
    "image": "Write the bootable image",
    "judge": "Whether a machine passed, from its serial log alone",
    "info": "What a guest is: format, memory, mode, root, kernel, bases",
    "walk": "Every entry that the CPU reads for an address",
    "dump": "What is mapped, with which effective rights",
    "roots": "Page-table roots in a memory, without registers",
    "audit": "What breaks W^X, isolation and the architecture's rules",
    "diff": "What differs between two address spaces",
    "watch": "What changes in the tables of a live guest",
    "find": "Who maps a frame, or bytes, under all roots",
    "stats": "What page tables take and map",
    "layout": "What a kernel puts where, and what an address is",
    "view": "An address space as one page of HTML",
    "conform": "Which rules of paging an emulator or hypervisor breaks",
    "matrix": "Whether a kernel boots with four and five levels, everywhere",
    "vectors": "Write test vectors for page-table walkers",
    "explain": "Why a fault happened, and how it became a triple fault",
    "gdb": "The line that brings these commands into a gdb session",
    "volatility": "Symbols and layers for volatility3, five levels too",
    "drgn": "drgn on a guest whose memory has no VMCOREINFO note",
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
        command = getattr(import_module(f"fivefold.cli.{cmd_name}"), cmd_name)
        one.command(cmd_name, cls=HelpfulCommand, context_settings=CONTEXT)(_printing(cmd_name, command))
        return typer.main.get_command(one)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what goes after the command, and words beside options that end the program."""
        if args and args[0].startswith("--"):
            self._check_first(ctx, args)
        return super().parse_args(ctx, args)  # type: ignore[no-any-return, unused-ignore]

    def _check_first(self, ctx: Any, args: list[str]) -> None:
        option = args[0].partition("=")[0]
        own = [parameter for parameter in ctx.command.params if option in parameter.opts]
        if not own and option in _options_of_commands():
            ctx.fail(f"{option} goes after the command: fivefold COMMAND {option}")
        if option in _COMPLETION and args[1:] and all(getattr(parameter, "is_flag", False) for parameter in own):
            ctx.fail(f"{option} is for the shell that it is called from; expected it alone, without {args[1]!r}")

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command; ``help COMMAND`` is its ``--help``, and a name that is none gets the nearest that are."""
        if args[0] == "help":
            args = [*args[1:2], "--help"]
            if len(args) == 1:
                ctx.command.main(args, standalone_mode=False)
                raise typer.Exit
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(_no_such(args[0]))
        return super().resolve_command(ctx, args)  # type: ignore[no-any-return, unused-ignore]

    def format_commands(self, ctx: object, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


_COMPLETION: Final = ("--install-completion", "--show-completion")
_INSTRUCTION: Final = re.compile("(complete|source)_(bash|zsh|fish|powershell|pwsh)")


def _options_of_commands() -> set[str]:
    group = _Commands()
    return {option for name in COMMANDS for one in group.get_command(None, name).params for option in one.opts}


def _check_completion() -> None:
    """Refuse what a shell's completion does not ask for."""
    asked = os.environ.get("_FIVEFOLD_COMPLETE")
    if asked and not _INSTRUCTION.fullmatch(asked):
        raise FivefoldError(
            f"_FIVEFOLD_COMPLETE is {asked!r}; expected complete_ or source_ and a shell: complete_bash"
        )


def _no_such(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, 2, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(COMMANDS)}"
    return f"there is no command {name!r}; {hint}"


ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE", help="Write the trace of an internal error to FILE.", rich_help_panel=GENERAL
    ),
]
ColorOption = Annotated[
    ColorChoice, typer.Option("--color", help="Colours; auto heeds NO_COLOR and pipes.", rich_help_panel=GENERAL)
]


MemoryOption = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        parser=values.size,
        metavar="SIZE",
        help=f"Give up beyond this much memory; {format_size(MAX_MEMORY)} unless given, and half of what is free for "
        "copies of a guest.",
        rich_help_panel=GENERAL,
    ),
]
UNBOUNDED: Final = frozenset({"boot", "image", "matrix"})
"""Commands whose memory is a machine's, which is given by its own option."""


def _printing(name: str, command: Callable[..., int]) -> Callable[..., int]:
    # Around the command itself: what click makes of a reader that went away is status 1.
    @functools.wraps(command)
    def run(
        report: Path | None = None,
        max_memory: int | None = None,
        color: ColorChoice = ColorChoice.auto,
        **given: Any,
    ) -> int:
        write_report_to(report)
        _colour(color)
        with nullcontext() if name in UNBOUNDED else bounded(max_memory):
            return printing(lambda: command(**given))

    shown = list(inspect.signature(command, eval_str=True).parameters.values())
    added = {"report": ReportOption} if name in UNBOUNDED else {"report": ReportOption, "max_memory": MemoryOption}
    for option, annotation in added.items():
        kind = inspect.Parameter.KEYWORD_ONLY
        shown.append(inspect.Parameter(option, kind, default=None, annotation=annotation))
    shown.append(inspect.Parameter("color", kind, default=ColorChoice.auto, annotation=ColorOption))
    # What reads the signature is to see the command's own with these options more.
    del run.__wrapped__
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def _colour(choice: ColorChoice) -> None:
    """Have reports coloured as *choice* says; nothing is loaded for what is the default."""
    if choice is ColorChoice.auto:
        return
    from fivefold.report.sheet import choose_color

    choose_color("always" if choice is ColorChoice.always else "never")


app = typer.Typer(
    name="fivefold",
    cls=_Commands,
    no_args_is_help=True,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"fivefold {metadata.version('fivefold')}")
        raise typer.Exit


def _man(wanted: bool) -> None:
    if wanted:
        from fivefold.cli.man_page import man_page

        sys.stdout.write(man_page(_Commands(), COMMANDS))
        raise typer.Exit


@app.callback()
def fivefold(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    man: Annotated[
        bool, typer.Option("--man", callback=_man, is_eager=True, help="Print the man page: fivefold --man | man -l -")
    ] = False,
) -> None:
    """x86-64 paging with four and five levels, chosen at boot."""


def run() -> int:
    """Run the command line and return the exit status; whatever is raised becomes one line.

    Ctrl-C raises `KeyboardInterrupt`.
    """
    _open_what_is_closed()
    clean_streams()
    try:
        _check_completion()
        status = app(standalone_mode=False)
    except BrokenPipeError:
        status = 0  # a reader that went away, such as `head`, is no error
    except FivefoldError as error:
        status = refuse(str(error))
    except OSError as error:
        status = refuse_system(error)
    except typer.Abort as error:  # what is made of Ctrl-C in a command
        raise KeyboardInterrupt from error
    except Exception as error:  # a fault of ours must not look like a check that failed
        if _is_interrupt(error):
            raise
        status = _usage(error)
    return _flushed(_for_git(status) if isinstance(status, int) else 0)


def _is_interrupt(error: BaseException | None) -> bool:
    """Tell whether *error* is what Python made of a signal that came while it made a class."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _usage(error: Exception) -> int:
    """Say what was wrong with the call, if that is what *error* is: typer does not export the class of click's."""
    if not hasattr(error, "format_message"):
        return unforeseen(error)
    message = error.format_message()
    if message.startswith("Usage:"):  # no command was given: this is the whole help
        print(message)
        return COULD_NOT
    return refuse(_plainer(" ".join(message.split())))


def _for_git(status: int) -> int:
    """*status*, or what stops ``git bisect run``, which would take 2 and 3 for a bad commit; ``--bisec`` counts too."""
    asked = any(word.startswith("--bis") for word in sys.argv[1:])
    return STOP_GIT if asked and status in (COULD_NOT, UNFORESEEN) else status


def _plainer(message: str) -> str:
    """What click says of a value, without the marks of optional arguments, and with the nearest value that there is."""
    # pydantic, which typer asks about values, puts its own name for the error first.
    message = message.replace(": Value error, ", ": ", 1)
    message = re.sub(r"(Invalid value for '|Missing argument ')\[?([A-Z|]+)\]?(?:\.\.\.)?'", r"\1\2'", message, count=1)
    if choice := re.fullmatch(r"(Invalid value for .*: '(.*)' is not one of (.*?))\.?", message):
        from difflib import get_close_matches

        near = get_close_matches(choice[2], re.findall("'([^']*)'", choice[3]), 1)
        return f"{choice[1]}; did you mean {near[0]}?" if near else message
    return message


def _open_what_is_closed() -> None:
    """Let what is printed to a stream that the shell closed (``>&-``) go nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process


def _flushed(status: int) -> int:
    """Write out what is left, and return *status*; where the reader went away the failure is not reported."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print_to_nobody()
        return status if isinstance(error, BrokenPipeError) else refuse(f"standard output: {error.strerror}")
    return status
