"""Every build that the instruments may ask for is among those that a wheel carries."""

from __future__ import annotations

from itertools import product

import pytest

from fivefold.survey.scan.programs import every_program, scan_program, translate_program, walk_program

BOTH = (False, True)
ASKED = {
    **{
        f"scan {levels} {p} {b}": scan_program(levels, prefetch=p, brought=b)
        for levels, p, b in product((4, 5), BOTH, BOTH)
    },
    **{f"translate {levels} {s}": translate_program(levels, scattered=s) for levels, s in product((4, 5), BOTH)},
    **{f"translate {levels} brought": translate_program(levels, scattered=False, brought=True) for levels in (4, 5)},
    **{f"walk {levels} {s}": walk_program(levels, scattered=s) for levels, s in product((4, 5), BOTH)},
}


@pytest.mark.parametrize("name", ASKED)
def test_a_build_is_made_ahead(name: str) -> None:
    assert ASKED[name] in list(every_program())
