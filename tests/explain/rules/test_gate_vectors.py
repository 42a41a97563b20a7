"""Which gate an error code names, as a CPU has it and as QEMU's TCG had it until 8.0."""

from __future__ import annotations

import pytest

from fivefold.explain.rules.error_codes import gate_vectors


@pytest.mark.parametrize("vector", [0, 3, 8, 13, 14, 32, 127])
def test_gates(vector: int) -> None:
    code = vector * 8 + 2
    assert gate_vectors(code, False) == gate_vectors(code | 1, False) == gate_vectors(code | 1, True) == (vector,)
    doubled = vector * 16 + 2
    assert gate_vectors(doubled, True) == ((vector, 2 * vector) if vector else (0,))
    assert gate_vectors(doubled, False) == (2 * vector,)
    # Bits 2 and 3 are in no code that TCG makes of a vector times 16.
    assert gate_vectors(doubled | 4, True) == (2 * vector,)
    assert gate_vectors(doubled | 8, True) == (2 * vector + 1,)
