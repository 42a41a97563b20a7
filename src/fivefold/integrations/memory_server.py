"""Physical memory of a source for another program's process, over its pipe.

    python -m fivefold.integrations.memory_server SOURCE

First a line of JSON: ``{"format": …, "extents": [[start, end], …]}`` or ``{"error": …}``. Then the other side writes an
address and a size (8 and 4 bytes, little endian) at a time, and gets a byte and as many as it asked for: the byte is 0,
or 1 where they cannot be read, and then they are zeros. It ends when its input does.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import BinaryIO, Final

from fivefold.errors import FivefoldError, MemoryReadError
from fivefold.memory import Source
from fivefold.units import MIB, PhysAddr

REQUEST: Final = struct.Struct("<QI")
MOST_BYTES: Final = 64 * MIB
"""Of one request; what asks for more is no reader of memory, and ends the process."""


def serve(source: Source, asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer until *asked* ends."""
    extents = [[extent.start, extent.end] for extent in source.extents]
    _tell(answers, {"format": source.format, "extents": extents})
    while len(request := asked.read(REQUEST.size)) == REQUEST.size:
        address, size = REQUEST.unpack(request)
        if size > MOST_BYTES:
            return
        try:
            answer = b"\0" + bytes(source.memory.read(PhysAddr(address), size))
        except MemoryReadError:
            answer = b"\1" + bytes(size)
        answers.write(answer)
        answers.flush()


def _tell(answers: BinaryIO, what: dict[str, object]) -> None:
    answers.write(json.dumps(what).encode() + b"\n")
    answers.flush()


def main(words: list[str]) -> int:
    """Serve the source that is named; 2 where it cannot be opened."""
    from fivefold.memory import open_source

    try:
        if len(words) != 1:
            raise FivefoldError(f"memory_server takes one SOURCE, not {len(words)}")
        with open_source(words[0]) as source:
            serve(source, sys.stdin.buffer, sys.stdout.buffer)
    except (FivefoldError, OSError, ValueError) as error:
        _tell(sys.stdout.buffer, {"error": str(error)})
        return 2
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
