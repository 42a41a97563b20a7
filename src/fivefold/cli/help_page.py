"""The help of a command: its options in panels, with examples, at the terminal's width.

The man page is made from the same rows, see `fivefold.cli.man_page`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from typer.core import TyperCommand

from fivefold.cli.examples import EXAMPLES

CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}
GENERAL: Final = "General"
SOURCE: Final = "Source"
"""Panels of options that several commands have."""

_LAST: Final = (SOURCE, GENERAL)


class Row(NamedTuple):
    """One argument or option: how it is spelled, and what it is for."""

    name: str
    text: str


def panels(command: Any) -> dict[str, list[Row]]:
    """The arguments and options of *command* by panel, in the order in which they are shown."""
    found: dict[str, list[Row]] = {}
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            found.setdefault(_panel(parameter), []).append(_row(parameter))
    found.setdefault(GENERAL, []).append(Row("-h, --help", "Show this page."))
    return {name: found[name] for name in sorted(found, key=_order)}


def usage(command: Any) -> str:
    """The arguments of *command*, and that there are options."""
    words = [_argument(parameter) for parameter in command.params if parameter.param_type_name == "argument"]
    return " ".join([*words, "[OPTIONS]"])


def description(command: Any) -> list[str]:
    """The paragraphs of its help."""
    return [" ".join(part.split()) for part in (command.help or "").split("\n\n")]


class HelpfulCommand(TyperCommand):
    """A command whose help is this page, and which takes one format at most."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse ``--json`` beside another ``--format`` that was given."""
        left = super().parse_args(ctx, args)
        asked = ctx.params.get("format")
        asked = getattr(asked, "value", asked)
        given = getattr(ctx.get_parameter_source("format"), "name", "") == "COMMANDLINE"
        if ctx.params.get("as_json") and given and asked != "json":
            ctx.fail(f"--json and --format {asked} are two formats; expected one of them")
        return left  # type: ignore[no-any-return, unused-ignore]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page to *formatter*."""
        from fivefold.report.console import rendered

        formatter.write(rendered(_page(self, f"{ctx.command_path} {usage(self)}")))


def _page(command: Any, line: str) -> Iterator[Any]:
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.text import Text

    yield Padding(Text.assemble(("Usage: ", "bold"), line), (0, 1))
    for paragraph in description(command):
        yield Padding(Text(paragraph), (1, 1, 0, 1))
    yield ""
    for name, rows in panels(command).items():
        yield Panel(_Rows(rows), title=name, title_align="left", border_style="dim")
    if examples := EXAMPLES.get(str(command.name)):
        yield Panel(_examples(examples), title="EXAMPLES", title_align="left", border_style="dim")


class _Rows:
    """Names beside what they are for; of a narrow terminal the names take less."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        room = max(14, min(30, options.max_width * 2 // 5))
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(max_width=room, overflow="fold")
        table.add_column(ratio=1)
        for row in self._rows:
            table.add_row(Text(_folded(row.name, room), "cyan"), Text(row.text))
        yield table


def _folded(name: str, room: int) -> str:
    """*name* in lines of *room* columns, broken between words, and between the values of a list that is wider."""
    lines, last = [], ""
    for word in name.split():
        gap = " "
        for part in [word] if len(word) <= room else re.findall(r"[^|]+\|?", word):
            if last and len(last) + len(gap) + len(part) > room:
                lines.append(last)
                last = ""
            last += gap + part if last else part
            gap = ""
    return "\n".join([*lines, last])


def _examples(examples: Sequence[tuple[str, str]]) -> Any:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    lines: list[Any] = []
    for line, text in examples:
        lines += [Text(line, "cyan"), Padding(Text(text), (0, 0, 0, 4))]
    return Group(*lines)


def _order(panel: str) -> tuple[int, str]:
    if panel == "Arguments":
        return 0, ""
    if panel == "Options":
        return 1, ""
    return (3 + _LAST.index(panel), "") if panel in _LAST else (2, panel)


def _panel(parameter: Any) -> str:
    own = getattr(parameter, "rich_help_panel", None)
    if parameter.param_type_name == "argument":
        return own or "Arguments"
    return own or "Options"


def _row(parameter: Any) -> Row:
    text = " ".join((parameter.help or "").split())
    if parameter.param_type_name == "argument":
        return Row(_argument(parameter), text)
    name = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        name = f"{name} / {', '.join(parameter.secondary_opts)}"
    elif not parameter.is_flag:
        name = f"{name} {_value(parameter)}"
    if parameter.required:
        text += " Required."
    elif (default := _default(parameter)) is not None:
        text += f" [default: {default}]"
    return Row(name, text)


def _argument(parameter: Any) -> str:
    name = parameter.metavar or str(parameter.name).upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _value(parameter: Any) -> str:
    """What stands for the value: never the name of a Python type."""
    choices = _choices(parameter)
    return str(parameter.metavar or ("|".join(choices) if choices else str(parameter.name).upper()))


def _choices(parameter: Any) -> list[str]:
    # Typer since 0.20 describes types by itself, before that click does.
    kind = getattr(parameter, "type_descriptor", None) or getattr(parameter, "type", None)
    return [str(getattr(choice, "value", choice)) for choice in getattr(kind, "choices", None) or ()]


def _default(parameter: Any) -> str | None:
    default = parameter.default
    if default is None or default == "" or default is False or callable(default) or parameter.secondary_opts:
        return None
    value = getattr(default, "value", default)
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, str | int) else None
