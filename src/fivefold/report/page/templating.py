"""The set of templates, and how a page is made from them: everything is escaped but our own styles and scripts."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fivefold.units import hex64

MOST_DIGITS: Final = 8
"""Of a size that people read: what differs from a whole number by less is shown as that."""
_PACKAGE: Final = "fivefold.report.page"


def render(template: str, **context: object) -> str:
    """The page that *template* makes of *context*; a name that it wants and does not get is a failure."""
    return _environment().get_template(template).render(context)


def about_size(size: int) -> str:
    """*size* to three digits or more, in the largest unit that it fills; a whole number only where it is exact.

    >>> about_size(4096), about_size(524156 << 10), about_size(16256 << 50), about_size((1 << 64) - (1 << 48))
    ('4K', '511.9M', '15.9E', '15.9998E')
    """
    unit = min(max(size.bit_length() - 1, 0) // 10, 6)
    amount = size / (1 << 10 * unit)
    rounded = (f"{amount:.{digits}g}" for digits in range(3 if amount < 100 else 4, MOST_DIGITS))
    exact = size % (1 << 10 * unit) == 0
    shown = next((one for one in rounded if exact or "." in one), f"{amount:.{MOST_DIGITS}g}")
    return f"{shown}{' KMGTPE'[unit].strip()}"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"hex64": hex64, "about": about_size, "data": _data}
    made.globals["asset"] = _asset
    return made


def _asset(name: str) -> Markup:
    """A style or script of ours as it stands; it holds nothing of a guest."""
    return Markup(files(_PACKAGE).joinpath("templates", name).read_text("utf-8"))


def _data(value: Any) -> Markup:
    """*value* as JSON for a ``<script>``: no ``<`` in it, so that no text of a guest can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
