# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Volatility 3: its layer for Linux on x86-64, over a file in which the tables of one vector after the other lie."""

from __future__ import annotations

import logging
from functools import partial

from volatility3.framework import constants, contexts, exceptions
from volatility3.framework.layers import intel, physical

from vectors_protocol import answer, request, tell, written

NONE = exceptions.InvalidAddressException


def translate(layer: intel.LinuxIntel32e, va: int) -> int:
    """Where *va* leads, whose sign the layer does not know."""
    found: int = layer.translate(va & layer.maximum_address)[0]
    return found


logging.disable()
asked = request()
answers = []
for one in asked["tables"]:
    with written(asked["raw"], one["words"]):
        # A context for each: layers remember tables and addresses.
        context = contexts.Context()
        context.config["file.location"] = "file://" + asked["raw"]
        context.add_layer(physical.FileLayer(context, "file", "memory"))
        context.config["space.memory_layer"], context.config["space.page_map_offset"] = "memory", one["root"]
        layer = intel.LinuxIntel32e(context, "space", "space")
        context.add_layer(layer)
        answers.append([answer(partial(translate, layer, va), NONE) for va in one["addresses"]])
        context.layers["memory"].destroy()
tell(constants.PACKAGE_VERSION, answers)
