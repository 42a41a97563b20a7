"""Parts of a campaign, and what becomes of each.

A part has a name and one argument; a function of a module makes a result of it that JSON can hold. Workers get both by
pickle, so the function must be importable where they run. A part that fails costs itself and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from fivefold.errors import FivefoldError

TRIES: Final = 3
"""How often a part is begun whose workers die."""

Work = Callable[[Any], Any]
"""What is done with the argument of a part: a function of a module, with a result that JSON can hold."""


class CampaignError(FivefoldError):
    """The queue cannot be served, or the state file is another campaign's."""


class PartDone(NamedTuple):
    """The result of a part."""

    name: str
    result: Any


class PartLost(NamedTuple):
    """A part without a result, and why: its work raised, or its worker died `TRIES` times."""

    name: str
    reason: str


PartEnd = PartDone | PartLost


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does the work: this process, *jobs* processes of this machine, or the Dask scheduler at *dask*."""

    jobs: int = 1
    dask: str | None = None


def run_campaign(
    work: Work, parts: Mapping[str, Any], plan: Mapping[str, Any], workers: Workers, state: Path | None = None
) -> Iterator[PartEnd]:
    """Yield the end of every part once, in any order: first what *state* has of an earlier run, then the rest.

    *plan* says in JSON what the parts are made from; a state file of another plan raises `CampaignError`. A
    result is in the file before it is yielded, so a run that is stopped at any moment loses the parts at work.
    """
    from fivefold.campaign.state_file import open_state

    with open_state(state, plan) as kept:
        left = dict(parts)
        for done in kept.done():
            if left.pop(done.name, kept) is not kept:
                yield done
        for end in _ends(work, left, workers):
            if isinstance(end, PartDone):
                kept.add(end)
            yield end


def _ends(work: Work, parts: Mapping[str, Any], workers: Workers) -> Iterator[PartEnd]:
    if not parts:
        return
    if workers.dask is not None:
        from fivefold.campaign.cluster import on_cluster

        yield from on_cluster(work, parts, workers.dask)
    elif workers.jobs > 1 and len(parts) > 1:
        from fivefold.campaign.processes import in_processes

        yield from in_processes(work, parts, workers.jobs)
    else:
        for name, argument in parts.items():
            yield end_of(name, attempt(work, argument))


def attempt(work: Work, argument: Any) -> tuple[bool, Any]:
    """Do the work of one part: whether it has a result, and that or the reason."""
    try:
        return True, work(argument)
    except FivefoldError as error:
        return False, str(error)
    except Exception as error:  # noqa: BLE001 - a fault of ours costs this part, and the caller is told
        return False, f"{type(error).__name__}: {error}"


def end_of(name: str, told: tuple[bool, Any]) -> PartEnd:
    """What `attempt` said of the part *name*."""
    has_result, value = told
    return PartDone(name, value) if has_result else PartLost(name, value)
