"""Workers of a Dask cluster. Each must have this package in the same release, and the programs that the work starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fivefold.campaign.parts import TRIES, CampaignError, PartEnd, PartLost, Work, attempt, end_of

PATIENCE: Final = "10s"
"""How long a scheduler may take to answer."""


def on_cluster(work: Work, parts: Mapping[str, Any], address: str) -> Iterator[PartEnd]:
    """The end of each part, done on the workers of the scheduler at *address*; it does those of a dead worker again."""
    try:
        from distributed import Client, as_completed
        from distributed.comm.addressing import parse_address, parse_host_port
    except ImportError as error:
        raise CampaignError("Dask is not installed; install it with: pip install 'fivefold[cluster]'") from error
    for name in ("distributed", "tornado"):  # their tracebacks are told in a line of ours
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # A client that does not get an address complains once more when it is forgotten.
        parse_host_port(parse_address(address)[1])
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise CampaignError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise CampaignError(f"the Dask scheduler at {address} has no workers")
        names = {client.submit(attempt, work, argument, pure=False): name for name, argument in parts.items()}
        with client.as_current():
            ends = as_completed(names)
        for future in ends:
            yield _end(names[future], future)


def _end(name: str, future: Any) -> PartEnd:
    if future.status == "finished":
        return end_of(name, future.result())
    if future.status == "error" and type(future.exception()).__name__ == "KilledWorker":
        return PartLost(name, f"its worker died {TRIES} times or more")
    return PartLost(
        name, f"the cluster gave it up: {future.exception() if future.status == 'error' else future.status}"
    )
