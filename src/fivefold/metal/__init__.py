"""The subset of Python that becomes machine code; `docs/metal.md` is its contract.

No part of the public interface yet (see `fivefold`): modules may move.
"""
