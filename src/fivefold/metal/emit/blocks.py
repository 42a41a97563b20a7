"""The lines of a function in LLVM IR: numbered results, and blocks that are opened and ended."""

from __future__ import annotations


class Blocks:
    """Lines under way. A block is open until a jump ends it; what is written then is where no path leads."""

    def __init__(self) -> None:
        """Begin in the open block ``entry``, whose label the owner writes."""
        self._lines: list[str] = []
        self._count = 0
        self._block = "entry"
        self._open = True

    def emit(self, instruction: str) -> str:
        """Append an instruction that has a result; return the name of it."""
        self._count += 1
        self.do(f"%t{self._count} = {instruction}")
        return f"%t{self._count}"

    def do(self, instruction: str) -> None:
        """Append an instruction; after the end of a block that opens one that nothing enters."""
        if not self._open:
            self._start(self._label("dead"))
        self._lines.append(f"  {instruction}")

    def pointer(self, address: str) -> str:
        """Turn an i64 into a pointer; in 32-bit code the upper half falls off."""
        return self.emit(f"inttoptr i64 {address} to ptr")

    def _label(self, what: str) -> str:
        self._count += 1
        return f"{what}{self._count}"

    def _start(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block, self._open = label, True

    def _end(self, instruction: str) -> None:
        if self._open:
            self._lines.append(f"  {instruction}")
        self._open = False

    def _jump(self, label: str) -> None:
        self._end(f"br label %{label}")

    def _branch(self, test: str, yes: str, no: str) -> None:
        if not self._open:
            self._start(self._label("dead"))
        self._end(f"br i1 {test}, label %{yes}, label %{no}")

    def _current(self) -> str:
        """Return the label of the open block, opening one where no path leads."""
        if not self._open:
            self._start(self._label("dead"))
        return self._block
