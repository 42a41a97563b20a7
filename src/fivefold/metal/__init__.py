"""The subset of Python that becomes machine code; `docs/metal.md` is its contract."""
