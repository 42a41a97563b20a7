# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Volatility 3: its layer for Linux on x86-64, over the raw image."""

from __future__ import annotations

import logging

from volatility3.framework import constants, contexts, exceptions
from volatility3.framework.layers import intel, physical

from peer_protocol import Answers, each, request, word

logging.disable()
asked = request()
context = contexts.Context()
context.config["file.location"] = "file://" + asked["raw"]
context.add_layer(physical.FileLayer(context, "file", "memory"))
context.config["space.memory_layer"], context.config["space.page_map_offset"] = "memory", asked["root"]
layer = intel.LinuxIntel32e(context, "space", "space")
context.add_layer(layer)
low = layer.maximum_address  # its addresses have no sign
answers = Answers(constants.PACKAGE_VERSION)
answers.ask("ranges", lambda: [(va, va + size) for va, size, *_ in layer.mapping(0, low, ignore_errors=True)])
refusal = exceptions.InvalidAddressException
answers.ask("phys", lambda: each(asked["addresses"], lambda va: layer.translate(va & low)[0], refusal))
if asked["readable"]:
    answers.ask("words", lambda: each(asked["readable"], lambda va: word(layer.read(va & low, 8)), refusal))
answers.tell()
