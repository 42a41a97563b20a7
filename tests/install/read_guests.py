"""Run commands that read guests in this process, one after the other; print what each prints and its status.

Run by whatever Python has the installation that is looked at: it needs nothing of the tests.
"""

from __future__ import annotations

import sys

from fivefold.cli.commands import run


def main(arguments: list[str]) -> None:
    """Take the commands apart at each ``;``."""
    for command in " ".join(arguments).split(" ; "):
        print(f"== {command}", flush=True)
        sys.argv = ["fivefold", *command.split()]
        try:
            status = run()
        except SystemExit as ended:
            status = ended.code
        print(f"status {status}", flush=True)
    for name in ("numpy", "llvmlite", "unicorn"):
        print(f"{name} {'imported' if name in sys.modules else 'not imported'}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
