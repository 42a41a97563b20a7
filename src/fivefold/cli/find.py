"""`fivefold find`: who maps this memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fivefold.cli import values
from fivefold.cli.choices import TableFormat
from fivefold.cli.source_options import JsonOption, SourceChoice, on_source

if TYPE_CHECKING:
    from fivefold.memory import Source
    from fivefold.report.text.find import Question


def memory_range(text: str) -> range:
    """A physical address, or a range of them as in `values.window`."""
    from fivefold.arch import MAX_PHYS_BITS

    found = values.window(text) if set(text) & set("-+") else range(values.address(text), values.address(text) + 1)
    if not 0 <= found.start < found.stop <= 1 << MAX_PHYS_BITS:
        raise typer.BadParameter(f"{text!r} is not physical memory; expected less than {1 << MAX_PHYS_BITS:#x}")
    return found


def pattern(text: str) -> bytes:
    """Bytes in hexadecimal."""
    try:
        found = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not bytes; expected pairs of hexadecimal digits: 7f454c46") from error
    if not found:
        raise typer.BadParameter("nothing to search for; expected one byte or more")
    return found


@on_source
def find(
    chosen: SourceChoice,
    phys: Annotated[
        list[range] | None,
        typer.Option("--phys", parser=memory_range, metavar="ADDRESS|A-B|A+SIZE", help="Physical memory."),
    ] = None,
    raw: Annotated[
        list[bytes] | None, typer.Option("--bytes", parser=pattern, metavar="HEX", help="Bytes anywhere in memory.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", parser=values.words, metavar="WORDS", help="Text in UTF-8.")
    ] = None,
    limit: Annotated[
        int, typer.Option(parser=values.count(1), metavar="N", help="List at most N places of the same bytes.")
    ] = 20,
    format: Annotated[TableFormat, typer.Option(help="How to print it.")] = TableFormat.text,
    as_json: JsonOption = False,
) -> int:
    """List which virtual addresses, under all roots in the memory, lead to a frame, or to bytes wherever they are.

    With --cr3 only that root is asked. Status 1 when nothing maps it.
    """
    if not (phys or raw or text):
        raise typer.BadParameter("nothing to find; expected --phys, --bytes or --text")
    patterns = [(f"bytes {one.hex()}", one) for one in raw or []] + [
        (f"text {one!r}", one.encode()) for one in text or []
    ]
    from fivefold.survey.find import find_mappings
    from fivefold.survey.guest.root_spaces import root_spaces

    with chosen.open_source() as source:
        asked = [*_of_memory(phys or []), *_of_bytes(chosen, source, patterns, limit)]
        roots = root_spaces(source, chosen.check_given(), chosen.symbols, progress=chosen.progress)
        answers = iter(find_mappings(roots.spaces(), [target for _, targets, _ in asked for target in targets]))
        from fivefold.report.text import find as find_text

        questions = [find_text.Question(name, [next(answers) for _ in targets], more) for name, targets, more in asked]
        form = TableFormat.json if as_json else format
        if form is TableFormat.json:
            from fivefold.report.json_text import write_document

            write_document(find_text.find_json(roots, questions), sys.stdout)
        elif form is TableFormat.csv:
            find_text.write_csv(questions, sys.stdout)
        else:
            from fivefold.report.sheet import sheet

            find_text.write_text(roots, questions, sheet())
    return 0 if _is_found(questions) else 1


def _of_memory(ranges: list[range]) -> Iterator[tuple[str, list[range], bool]]:
    for one in ranges:
        text = f"{one.start:#x}" if one.stop == one.start + 1 else f"{one.start:#x}-{one.stop:#x}"
        yield f"phys {text}", [one], False


def _of_bytes(
    chosen: SourceChoice, source: Source, patterns: list[tuple[str, bytes]], limit: int
) -> Iterator[tuple[str, list[range], bool]]:
    from fivefold.survey.find import search_memory

    for name, wanted in patterns:
        hits = search_memory(source.memory, wanted, limit + 1, progress=chosen.progress)
        yield name, [range(hit, hit + len(wanted)) for hit in hits[:limit]], len(hits) > limit


def _is_found(questions: list[Question]) -> bool:
    return any(answer.places or answer.tables for question in questions for answer in question.answers)
