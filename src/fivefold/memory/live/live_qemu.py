"""A running QEMU: found by its QMP socket or by its process, neither stopped nor changed unless asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.errors import MachineError, both_told
from fivefold.memory.banked import MAX_COPY, BankedMemory, PagedMemory
from fivefold.memory.live import live_ram
from fivefold.memory.live.connection import NoAnswerError
from fivefold.memory.live.frozen import QmpGuest, StoppedGuest
from fivefold.memory.live.monitor import Monitor
from fivefold.memory.live.mtree import RamRange, ram_ranges
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.memory.registers import parse_info_registers
from fivefold.memory.source import Source

WAYS: Final = ("auto", "file", "process", "pmemsave")


def attach_qmp(
    address: str,
    *,
    freeze: bool = False,
    ram: str = "auto",
    timeout: float = 10.0,
    max_copy: int = MAX_COPY,
    pid: int | None = None,
) -> Source:
    """Attach to the QEMU behind a QMP socket: a path, or HOST:PORT.

    *ram* forces one way to its memory: ``file`` needs RAM in a shared file or memfd, ``process``
    the right to read the process, ``pmemsave`` works also where both are refused and has QEMU write what is read;
    ``auto`` takes the first that works in this order. With *freeze* the guest stands still
    until the source is closed; without it the guest goes on and what is read may be torn, as the
    source says. *pid* is QEMU's process when the socket does not say. Raises `MachineError`.
    """
    check_way(ram)
    client = QmpClient(address, timeout=timeout)
    unknown = "the process is not known over TCP; give pid:NUMBER"
    at = AttachedQemu(client, pid or client.peer_pid, unknown, f"qmp:{address}", max_copy)
    return at.open(QmpGuest(client, timeout), freeze=freeze, ram=ram)


def check_way(ram: str) -> None:
    """Refuse a way to RAM that there is not, with `ValueError`."""
    if ram not in WAYS:
        raise ValueError(f"unknown way to read RAM {ram!r}; expected one of {', '.join(WAYS)}")


class AttachedQemu(NamedTuple):
    """What the ways to RAM need: a monitor, QEMU's process, or why that is not known, and what may be copied."""

    client: Monitor
    pid: int | None
    no_pid: str
    name: str
    max_copy: int

    def open(self, guest: StoppedGuest, *, freeze: bool, ram: str) -> Source:
        """The guest as a source, read by the way *ram*; *guest* is let go on when it is closed, or refused."""
        try:
            running = guest.is_running()
            if freeze and running:
                guest.freeze()
            cpus = parse_info_registers(self.client.monitor("info registers -a"))
            way, memory, remarks = self.memory(ram, ram_ranges(self.client.monitor("info mtree -f")))
        except BaseException as error:  # Ctrl-C too must let the guest go on
            with both_told(error):
                guest.leave()
            raise
        memory.when_closed(guest.leave)
        torn = running and not freeze
        if torn:
            remarks = (*remarks, "the guest runs on: two reads may disagree unless it is frozen")
        return Source(
            memory=memory,
            format=f"live QEMU, RAM by {way}",
            cpus=cpus,
            notes=remarks,
            live=True,
            torn=torn,
            guest=None if way == "pmemsave" else guest,
        )

    def memory(self, way: str, ranges: Sequence[RamRange]) -> tuple[str, BankedMemory | PagedMemory, tuple[str, ...]]:
        """RAM by *way*, or by the first that works; `MachineError` with all reasons when none does.

        A QEMU that falls silent or goes away ends the search: it would do so for every way.
        """
        refusals = []
        for each in WAYS[1:] if way == "auto" else (way,):
            try:
                memory, remarks = self._by(each, ranges)
            except NoAnswerError:
                raise
            except MachineError as error:
                refusals.append(f"{each}: {error}")
                continue
            # What holds QEMU up with each read is the last resort: say why it came to that.
            why = [f"not read by {refusal}" for refusal in refusals] if each == "pmemsave" else []
            return each, memory, (*remarks, *why)
        raise MachineError(f"cannot read RAM of {self.name}; " + "; ".join(refusals))

    def _by(self, way: str, ranges: Sequence[RamRange]) -> tuple[BankedMemory | PagedMemory, tuple[str, ...]]:
        if way == "pmemsave":
            return live_ram.saved_memory(self.client, ranges, self.name, self.max_copy), ()
        if self.pid is None:
            raise MachineError(self.no_pid)
        located = live_ram.locate(self.client, ranges)
        if way == "file":
            return live_ram.shared_memory(self.pid, located, self.name)
        return live_ram.process_memory(self.pid, located, self.name, self.max_copy), ()


def attach_pid(pid_text: str, *, freeze: bool, ram: str, timeout: float, max_copy: int) -> Source:
    """Attach to the QEMU that is process *pid_text*, by the QMP socket on its command line.

    As `attach_qmp`. `MachineError` says how to give QEMU a socket when it has none.
    """
    if not pid_text.isdecimal() or not pid_text.isascii():
        raise ValueError(f"{pid_text!r} is not a process number; expected pid:NUMBER")
    pid = int(pid_text)
    return attach_qmp(
        qmp_address_of(pid),
        freeze=freeze,
        ram=ram,
        timeout=timeout,
        max_copy=max_copy,
        pid=pid,
    )


def qmp_address_of(pid: int) -> str:
    """The QMP socket on the command line of process *pid*: a path, or HOST:PORT."""
    folder = Path(f"/proc/{pid}")
    try:
        words = folder.joinpath("cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError as error:
        raise MachineError(f"cannot read the command line of process {pid}: {error.strerror}") from error
    for address in _qmp_addresses(words):
        # A relative path is relative to where QEMU was started.
        return address if _is_tcp(address) else str(_started_in(folder) / address)
    raise MachineError(
        f"process {pid} has no QMP socket on its command line; start QEMU with "
        "-qmp unix:/path/qmp.sock,server=on,wait=off, or give qmp:SOCKET"
    )


def _started_in(folder: Path) -> Path:
    """The working directory of the process with this folder in /proc."""
    try:
        return folder.joinpath("cwd").resolve()
    except OSError as error:
        raise MachineError(
            f"cannot read {folder}/cwd: {(error.strerror or str(error)).lower()}; run as the same user as the process, "
            "with CAP_SYS_PTRACE, or give qmp:SOCKET"
        ) from error


def _is_tcp(address: str) -> bool:
    return "/" not in address and address.rpartition(":")[2].isdecimal() and ":" in address


def _qmp_addresses(words: Sequence[str]) -> Iterator[str]:
    monitors, chardevs = [], {}
    for option, value in pairwise(words):
        name = option.lstrip("-") if option.startswith("-") else ""
        fields = _fields(value)
        if name in ("qmp", "qmp-pretty"):
            kind, _, address = value.partition(",")[0].partition(":")
            if kind in ("unix", "tcp") and address:
                yield address
            elif kind == "chardev":
                monitors.append(address)
        elif name == "mon" and fields.get("mode") == "control":
            monitors.append(fields.get("chardev", fields[""]))
        elif name == "chardev" and fields[""] == "socket":
            chardevs[fields.get("id", "")] = _chardev_address(fields)
    yield from (found for monitor in monitors if (found := chardevs.get(monitor)))


def _fields(value: str) -> dict[str, str]:
    """``socket,id=m,path=/a`` as a dict; the word without a name has the key ``""``."""
    fields = {"": ""}
    for index, part in enumerate(value.split(",")):
        key, equals, text = part.partition("=")
        fields[key if equals else "" if index == 0 else key] = text if equals else part
    return fields


def _chardev_address(fields: dict[str, str]) -> str:
    if path := fields.get("path"):
        return path
    return f"{fields.get('host') or 'localhost'}:{fields['port']}" if fields.get("port") else ""
