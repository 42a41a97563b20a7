"""The commands `ff …` of a gdb session: gdb lends its target's memory, and a `fivefold` process does the work.

gdb's Python is often not the one that Fivefold is installed in, so this file runs in gdb and imports nothing of ours:
`fivefold gdb` prints the line that executes it, with the interpreter to start as ``PYTHON``. QEMU's stub serves one
client, which is gdb; so on a socket of its own this file is a stub, too, and passes on what reads.
"""

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile

import gdb

PYTHON = globals()["PYTHON"]
"""The interpreter that has Fivefold; the line of `fivefold gdb` says it."""
COMMANDS = {
    "info": "What the guest is: mode, root, kernel, each with its evidence.",
    "dump": "What is mapped, with which effective rights.",
    "walk": "Every entry that the CPU reads for an address: ff walk $rip",
    "audit": "What breaks W^X, isolation and the architecture's rules.",
    "explain": "Why the access faulted, by the registers of this stop.",
    "find": "Who maps a frame or bytes: ff find --phys 0x1000",
}
STEP = 2048
"""Bytes that one packet asks the target for: as many as QEMU's stub gives."""
PACKET = re.compile(rb"\$([^#]*)#[0-9a-fA-F]{2}")
FLAGS = ("--json", "--force", "--freeze", "--html", "--legend")
"""The options of `walk` that take no value."""
START = """
import sys
sys.argv[0] = 'ff'
try:
    from fivefold.cli import source_options
    from fivefold.cli.main import main
except ImportError as error:
    print(f"fivefold: {sys.executable} lacks Fivefold ({error}); print the line anew: fivefold gdb", file=sys.stderr)
    sys.exit(2)
source_options.TELL_EVERY = float("inf")
main()
"""
CPU = re.compile(r"^(?=CPU#\d+)", re.MULTILINE)


def remote():
    """gdb's connection to a stub, or `gdb.GdbError` with what to do."""
    inferior = gdb.selected_inferior()
    if not hasattr(inferior, "connection"):
        raise gdb.GdbError("ff: this gdb lends no packets; expected gdb 12 or newer")
    connection = inferior.connection
    if connection is None or not connection.is_valid():
        raise gdb.GdbError("ff: there is no target; expected one of QEMU's stub: target remote localhost:1234")
    if not hasattr(connection, "send_packet"):
        raise gdb.GdbError(f"ff: the target is {connection.type}; expected the stub of a machine: target remote …")
    thread = gdb.selected_thread()
    if thread is None:
        raise gdb.GdbError("ff: the target shows no CPU; is it gone?")
    if thread.is_running():
        raise gdb.GdbError("ff: the guest runs; expected it stopped: interrupt")
    name = gdb.selected_frame().architecture().name()
    if not name.startswith(("i386", "i8086")):
        raise gdb.GdbError(f"ff: the target is {name}; expected x86-64")
    return connection


class Lender:
    """A stub on a socket that answers one client through gdb's own connection; it passes on only what reads.

    With *cpu* the client hears of that CPU's registers alone.
    """

    def __init__(self, connection, cpu):
        self.connection = connection
        self.cpu = cpu
        self.before = None

    def give_back(self):
        """Have gdb's own reads be virtual again, as they were."""
        if self.before is not None:
            self.connection.send_packet(b"Qqemu.PhyMemMode:" + self.before)

    def answers(self, request):
        """The packets that answer *request*; an empty one where the target, or this stub, does not know it."""
        if request.startswith(b"qSupported"):
            return [b"PacketSize=8000;fivefold-lent+"]
        if request == b"Qqemu.PhyMemMode:1":
            return [self._physical(request)]
        if request.startswith(b"m"):
            return [self._memory(request)]
        if request.startswith(b"qRcmd,"):
            return self._monitor(bytes.fromhex(request[6:].decode()).decode())
        return [b"OK" if request == b"D" else b""]

    def _physical(self, request):
        before = self.connection.send_packet(b"qqemu.PhyMemMode")
        if before not in (b"0", b"1"):
            return b""
        self.before = before
        return self.connection.send_packet(request)

    def _memory(self, request):
        address, size = (int(number, 16) for number in request[1:].split(b","))
        parts = []
        for at in range(address, address + size, STEP):
            part = self.connection.send_packet(b"m%x,%x" % (at, min(STEP, address + size - at)))
            if not part or part.startswith(b"E"):
                return b"E14"
            parts.append(part)
        return b"".join(parts)

    def _monitor(self, line):
        if not line.startswith("info "):
            return [b""]
        try:
            printed = gdb.execute(f"monitor {line}", False, True)
        except gdb.error:
            return [b""]
        if self.cpu is not None and line == "info registers -a":
            printed = "".join(block for block in CPU.split(printed) if block.split()[:1] == [f"CPU#{self.cpu}"])
        text = printed.encode().hex().encode()
        return [b"O" + text[at : at + 8000] for at in range(0, len(text), 8000)] + [b"OK"]


def serve(listener, process, lender):
    """Answer the one client until *process* ends."""
    listener.setblocking(False)
    client, buffer = None, b""
    while process.poll() is None:
        ready, _, _ = select.select([client or listener], [], [], 0.05)
        if not ready:
            continue
        if client is None:
            client, _ = listener.accept()
            shutil.rmtree(os.path.dirname(listener.getsockname()))  # noqa: PTH120 - none is left when gdb is killed
            client.setblocking(True)
            continue
        part = client.recv(1 << 16)
        if not part:
            break
        buffer = answered(client, buffer + part, lender)
    if client is not None:
        client.close()
    process.wait()


def answered(client, buffer, lender):
    """Answer the whole packets in *buffer*; return what is left of it."""
    while True:
        found = PACKET.search(buffer)
        if found is None:
            return buffer
        buffer = buffer[found.end() :]
        replies = [b"$%s#%02x" % (body, sum(body) & 0xFF) for body in lender.answers(found.group(1))]
        client.sendall(b"+" + b"".join(replies))


def environment():
    """Ours without what gdb's own Python needs, and as wide as gdb's screen."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    width = gdb.parameter("width")
    return {**kept, "COLUMNS": str(width)} if width else kept


def number(expression):
    """What gdb makes of *expression*: a number as gdb reads it, a register, a symbol; 64 bits of hexadecimal."""
    # gdb itself cuts a longer number without a word.
    if re.fullmatch("0[xX]0*[0-9a-fA-F]{17,}", expression) or (expression.isdecimal() and int(expression) >> 64):
        raise gdb.GdbError(f"ff: {expression} is no address; expected 64 bits")
    try:
        value = gdb.parse_and_eval(expression)
    except gdb.error:
        if re.fullmatch("[0-9a-fA-F_]{9,}", expression):  # an address that was copied from a report
            return expression
        raise
    if value.type.strip_typedefs().code in (gdb.TYPE_CODE_FUNC, gdb.TYPE_CODE_ARRAY, gdb.TYPE_CODE_STRUCT):
        value = value.address
    if value is None:
        raise gdb.GdbError(f"ff: {expression} has no address")
    return f"{int(value) & (1 << 64) - 1:#x}"


def selected_cpu():
    """The number of the CPU that gdb shows as its thread; QEMU's threads count from 1."""
    return gdb.selected_thread().ptid[1] - 1


def words_of(command, argument, source):
    """The words of `fivefold` for what was typed after ``ff``."""
    typed = ["--json" if word == "-j" else word for word in gdb.string_to_argv(argument)]
    given = [source, "--freeze"]
    if command not in ("explain", "find") and not any(word.split("=")[0] in ("--cpu", "--cr3") for word in typed):
        given += ["--cpu", str(selected_cpu())]
    if command == "walk":
        typed = addressed(typed)
    return [command, given[0], *typed, *given[1:]]


def addressed(typed):
    """The words with each expression as its number; what an option takes stays as it is."""
    words, takes = [], False
    for word in typed:
        words.append(word if takes or word.startswith("-") else number(word))
        takes = word.startswith("-") and "=" not in word and word not in FLAGS
    return words


def run(command, argument):
    """Run one command; its output is gdb's, its refusal one line."""
    if {"-h", "--help"} & set(gdb.string_to_argv(argument)):
        return explained(command)
    connection = remote()
    folder = tempfile.mkdtemp(prefix="ff-gdb-")
    lender = Lender(connection, selected_cpu() if command == "explain" else None)
    try:
        place = f"{folder}/stub"
        words = words_of(command, argument, f"gdb:{place}")
        with (
            socket.socket(socket.AF_UNIX) as listener,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            listener.bind(place)
            listener.listen(1)
            status = helped(words, listener, lender, out, err)
            show(status, *(told(stream, place, connection) for stream in (out, err)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def explained(command):
    """Print the help of `fivefold`, which needs no target."""
    call = [PYTHON, "-P", "-c", START, command, "--help", "--color", "never"]
    done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, env=environment(), check=False)
    show(done.returncode, *(stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr)))


def helped(words, listener, lender, out, err):
    """The status of `fivefold` with *words*, which is ended when anything is raised here."""
    color = "always" if sys.stdout.isatty() and gdb.parameter("style enabled") else "never"
    call = [PYTHON, "-P", "-c", START, *words, "--color", color]
    process = subprocess.Popen(
        call, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(), start_new_session=True
    )
    try:
        serve(listener, process, lender)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        lender.give_back()
    return process.returncode


def told(stream, place, connection):
    """What was written to *stream*, with gdb's name for the target."""
    stream.seek(0)
    return stream.read().decode("utf-8", "replace").replace(place, connection.details or "target")


def show(status, out, err):
    """Print the report, then remarks; a refusal is gdb's error, so that scripts stop."""
    gdb.write(out)
    if status in (0, 1):
        gdb.write(err, gdb.STDERR)
        return
    raise gdb.GdbError(err.strip().replace("fivefold: ", "ff: ", 1) or f"ff: fivefold ended with status {status}")


class Prefix(gdb.Command):
    """Fivefold: page tables of the guest behind QEMU's stub, with four and five levels."""

    def __init__(self):
        super().__init__("ff", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)

    def invoke(self, argument, from_tty):
        self.dont_repeat()
        if argument:
            *most, last = COMMANDS
            names = f"{', '.join(most)} or {last}"
            raise gdb.GdbError(f'ff: "{argument.split()[0]}" is no command; expected {names}')
        for name, text in COMMANDS.items():
            gdb.write(f"ff {name} -- {text}\n")


class Command(gdb.Command):
    """One of the commands."""

    def __init__(self, name, text):
        self.__doc__ = f"{text}\n-j prints JSON, --help the options, which are those of `fivefold {name}`."
        self.name = name
        complete = gdb.COMPLETE_EXPRESSION if name == "walk" else gdb.COMPLETE_NONE
        super().__init__(f"ff {name}", gdb.COMMAND_DATA, complete)

    def invoke(self, argument, from_tty):
        self.dont_repeat()
        try:
            run(self.name, argument)
        except gdb.GdbError:
            raise
        except KeyboardInterrupt:
            raise gdb.GdbError("ff: interrupted") from None
        except gdb.error as error:
            raise gdb.GdbError(f"ff: {error}") from None
        except Exception as error:  # noqa: BLE001 - the prompt of a session is not the place for a traceback
            if getattr(error, "filename", None) == PYTHON:
                raise gdb.GdbError(f"ff: cannot start {PYTHON}; print the line anew: fivefold gdb") from None
            raise gdb.GdbError(f"ff: {type(error).__name__}: {error}") from None


def define():
    """Add the commands, again where they are there."""
    Prefix()
    for name, text in COMMANDS.items():
        Command(name, text)


define()
