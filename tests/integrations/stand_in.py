"""A stand-in for pwndbg and gef, executed in gdb: it takes all their names, hooks what they hook, and can tell later.

``NAMES`` is the file of names. The command ``standing`` prints what is not its own any more, and what it saw.
"""

import gdb

seen = []


def command(name):
    class Theirs(gdb.Command):
        def __init__(self):
            super().__init__(name, gdb.COMMAND_USER)

        def invoke(self, argument, from_tty):
            gdb.write(f"theirs {name}\n")

    Theirs()


def parameter(name):
    class Setting(gdb.Parameter):
        """Theirs."""

        set_doc = show_doc = "Theirs."

        def __init__(self):
            super().__init__(name, gdb.COMMAND_SUPPORT, gdb.PARAM_STRING)
            self.value = f"theirs {name}"

        def get_set_string(self):
            return ""

    Setting()


def function(name):
    class Convenience(gdb.Function):
        def __init__(self):
            super().__init__(name)

        def invoke(self, *arguments):
            return f"theirs {name}"

    Convenience()


MAKE = {"command": command, "parameter": parameter, "function": function}
TAKEN = [
    (kind, name)
    for line in open(NAMES).read().splitlines()  # noqa: F821, PTH123, SIM115 - defined by the line that executes this
    if not line.startswith("#")
    for _, kind, *names in [line.split()]
    for name in names
]
for kind, name in TAKEN:
    MAKE[kind](name)


def prompt(_):
    return "theirs> "


def heard(event):
    seen.append(type(event).__name__)


gdb.prompt_hook = prompt
for registry in (
    gdb.events.stop,
    gdb.events.cont,
    gdb.events.exited,
    gdb.events.new_objfile,
    gdb.events.memory_changed,
):
    registry.connect(heard)


def is_theirs(kind, name):
    if kind == "command":
        return gdb.execute(name, False, True) == f"theirs {name}\n"
    if kind == "parameter":
        return gdb.parameter(name) == f"theirs {name}"
    return gdb.parse_and_eval(f"${name}()").string() == f"theirs {name}"


class Standing(gdb.Command):
    def __init__(self):
        super().__init__("standing", gdb.COMMAND_USER)
        self.names = None

    def invoke(self, argument, from_tty):
        lost = [name for kind, name in TAKEN if not is_theirs(kind, name)]
        gdb.write(f"lost {lost} {gdb.prompt_hook is prompt} of {len(TAKEN)}\n")
        gdb.write(f"seen {sorted(set(seen))}\n")


Standing()
