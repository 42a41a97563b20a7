# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Run many plug-ins of volatility3 in one process, on one reading of the symbols; rows as JSON, by plug-in.

many_plugins.py LOCATION PLUGINS SYMBOLS CACHE linux-plug-in...
"""

from __future__ import annotations

import json
import sys
from typing import Any

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import automagic, constants, contexts, interfaces, plugins

location, folder, symbols, constants.CACHE_PATH, *wanted = sys.argv[1:]
volatility3.plugins.__path__ = [folder, *constants.PLUGINS_PATH]
volatility3.symbols.__path__ = [symbols, *constants.SYMBOL_BASEPATHS]
framework.import_files(volatility3.plugins, ignore_errors=True)
known = framework.list_plugins()
context = contexts.Context()
context.config["automagic.LayerStacker.single_location"] = location
first = known[f"linux.{wanted[0]}"]
plugins.construct_plugin(
    context, automagic.choose_automagic(automagic.available(context), first), first, "plugins", None, None
)
kernel = context.config[f"plugins.{first.__name__}.kernel"]


def rows(name: str) -> list[dict[str, Any]]:
    """All rows of one plug-in, over the kernel that the first one found."""
    kind = known[f"linux.{name}"]
    context.config[f"plugins.{kind.__name__}.kernel"] = kernel
    grid: interfaces.renderers.TreeGrid = kind(context, f"plugins.{kind.__name__}").run()
    found: list[dict[str, Any]] = []

    def visit(node: Any, _: None) -> None:
        names = [column.name for column in grid.columns]
        plain = [value if isinstance(value, int | str) else str(value) for value in node.values]
        found.append(dict(zip(names, plain, strict=True)))

    grid.populate(visit, None)
    return found


json.dump({name: rows(name) for name in wanted}, sys.stdout)
