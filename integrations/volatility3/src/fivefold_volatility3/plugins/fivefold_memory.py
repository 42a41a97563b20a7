# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Physical memory in the formats that fivefold reads and volatility does not, through a process of fivefold.

Volatility's own layers come first; what they leave as a plain file is shown to fivefold. A process keeps the two
programs, and their licences, apart; it may run on another interpreter, and ends with this one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib import parse, request

from volatility3 import framework
from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import physical

framework.require_interface_version(2, 0, 0)

vollog = logging.getLogger(__name__)

INTERPRETER = "FIVEFOLD_PYTHON"
"""The environment variable that names a Python which has fivefold."""

POINTER = b"fivefold source\n"
"""How a file begins that `fivefold volatility` wrote for a source that is no file; JSON with its name follows."""

_REQUEST = struct.Struct("<QI")
_MOST_AT_ONCE = 16 << 20
_PLAIN = ("raw", "elf")
"""Formats of fivefold, by their beginnings, that need no layer of ours where volatility has none for them."""


class FivefoldLayer(interfaces.layers.DataLayerInterface):
    """Physical memory as fivefold reads it; addresses in holes are invalid."""

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        name: str,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(context=context, config_path=config_path, name=name, metadata=metadata)
        self._source: str = self.config["source"]
        told = _server_of(self._source).told
        self.format: str = told["format"]
        self._extents: list[tuple[int, int]] = [(start, end) for start, end in told["extents"]]

    @property
    def minimum_address(self) -> int:
        return self._extents[0][0]

    @property
    def maximum_address(self) -> int:
        return self._extents[-1][1] - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        return any(start <= offset and offset + length <= end for start, end in self._extents)

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        found = b""
        while len(found) < length:
            at = offset + len(found)
            size = min(length - len(found), _MOST_AT_ONCE)
            good, part = _server_of(self._source).read(at, size)
            if not good and not pad:
                raise exceptions.InvalidAddressException(self.name, at, f"fivefold cannot read {size} bytes there")
            found += part if good else self._padded(at, size)
        return found

    def _padded(self, offset: int, length: int) -> bytes:
        """What there is of a range with holes, zeros elsewhere."""
        found = bytearray(length)
        for start, end in self._extents:
            low, high = max(start, offset), min(end, offset + length)
            if low < high:
                good, part = _server_of(self._source).read(low, high - low)
                found[low - offset : high - offset] = part if good else bytes(high - low)
        return bytes(found)

    def write(self, offset: int, data: bytes) -> None:
        vollog.warning(f"fivefold only reads: nothing is written at {offset:#x}")

    def _scan_iterator(self, scanner: Any, sections: Iterable[tuple[int, int]]) -> Iterable[Any]:
        """Only what is there: volatility would leave a chunk with a hole out altogether."""
        inside = [
            (max(start, low), min(start + size, high) - max(start, low))
            for start, size in sections
            for low, high in self._extents
            if max(start, low) < min(start + size, high)
        ]
        return super()._scan_iterator(scanner, inside)

    @classmethod
    def get_requirements(cls) -> list[interfaces.configuration.RequirementInterface]:
        return [requirements.StringRequirement(name="source", optional=False)]


class FivefoldStacker(interfaces.automagic.StackerLayerInterface):
    """Takes the place of the plain file where fivefold knows its format."""

    stack_order = 25

    @classmethod
    def stack(
        cls,
        context: interfaces.context.ContextInterface,
        layer_name: str,
        progress_callback: constants.ProgressCallback = None,
    ) -> interfaces.layers.DataLayerInterface | None:
        """Return a layer, None where volatility reads this itself, or fivefold is not here or does not know it."""
        layer = context.layers[layer_name]
        if not isinstance(layer, physical.FileLayer):
            return None
        source, is_pointer = _source_of(layer)
        if source is None:
            return None
        name = context.layers.free_layer_name("FivefoldLayer")
        context.config[interfaces.configuration.path_join(name, "source")] = source
        try:
            made = FivefoldLayer(context, name, name)
        except _CannotServeError as error:
            vollog.warning(f"fivefold: {error}")
            return None
        if made.format.lower().startswith(_PLAIN) and not is_pointer:
            _SERVERS.pop(source).end()
            return None
        vollog.info(f"fivefold: {source} is read as {made.format}")
        return made


def _source_of(layer: physical.FileLayer) -> tuple[str | None, bool]:
    """What fivefold is to open, the file itself or what the file says, and whether it was the latter."""
    head = layer.read(0, min(len(POINTER) + 4096, layer.maximum_address + 1))
    if head.startswith(POINTER):
        try:
            return str(json.loads(head[len(POINTER) :])["source"]), True
        except (ValueError, KeyError, TypeError) as error:
            vollog.warning(f"fivefold: {layer.location} names no source: {error!r}")
            return None, True
    place = parse.urlparse(layer.location)
    return (request.url2pathname(place.path) if place.scheme == "file" else None), False


class _CannotServeError(Exception):
    """Why there is no process of fivefold for a source, in one line."""


class _Server:
    """The process that reads: *told* is what it said first."""

    def __init__(self, source: str) -> None:
        command = [_interpreter(), "-m", "fivefold.integrations.memory_server", source]
        try:
            # In a session of its own, so that Ctrl-C at the terminal is ours to handle; it ends when its input does.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise _CannotServeError(f"{command[0]} does not start: {error.strerror}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout
        self._lock = threading.Lock()
        self.parent = os.getpid()
        try:
            self.told: dict[str, Any] = json.loads(self._answers.readline())
        except ValueError as error:
            self.end()
            raise _CannotServeError(f"{command[0]} has no fivefold of this version: set {INTERPRETER}") from error
        if "error" in self.told or not self.told.get("extents"):
            self.end()
            raise _CannotServeError(self.told.get("error", f"{source}: there is no memory in it"))

    def read(self, address: int, size: int) -> tuple[bool, bytes]:
        with self._lock:
            try:
                self._asks.write(_REQUEST.pack(address, size))
                self._asks.flush()
                answer = self._answers.read(1 + size)
            except OSError:
                answer = b""
        return (answer[:1] == b"\0", answer[1:]) if len(answer) == 1 + size else (False, bytes(size))

    def end(self) -> None:
        for pipe in (self._asks, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()


_SERVERS: dict[str, _Server] = {}
"""By source: volatility makes a layer several times, and a guest's socket serves one at a time."""


def _server_of(source: str) -> _Server:
    """The process for *source*: volatility's own processes each have one."""
    known = _SERVERS.get(source)
    if known is None or known.parent != os.getpid():
        known = _SERVERS[source] = _Server(source)
    return known


def _interpreter() -> str:
    """A Python that has fivefold: the one that is named, this one, or the one beside which this file is installed."""
    named = os.environ.get(INTERPRETER)
    if named:
        return named
    if importlib.util.find_spec("fivefold") is not None:
        return sys.executable
    for folder in Path(__file__).resolve().parents:
        if (folder / "pyvenv.cfg").exists():
            return str(folder / "bin" / "python")
    raise _CannotServeError(f"no Python with fivefold is known, to read other formats with: set {INTERPRETER}")
