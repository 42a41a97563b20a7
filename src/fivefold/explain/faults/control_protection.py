"""A control-protection exception: its error code names the instruction that control-flow enforcement refused."""

from __future__ import annotations

from typing import Final

from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.logs.trace import RaisedException
from fivefold.explain.rules.situation import Situation

_CODES: Final = {
    1: "a near RET whose return address is not the one on the shadow stack",
    2: "a far RET or IRET whose return address is not the one on the shadow stack",
    3: "an indirect CALL or JMP to an instruction that is no ENDBR",
    4: "RSTORSSP found no valid restore token",
    5: "SETSSBSY found no valid token",
}
"""Intel SDM, "Control Protection Exception (#CP)"."""
_ENCLAVE: Final = 1 << 15


def control_protection(here: Situation, raised: RaisedException) -> FaultFinding:
    """What the error code of a #CP says."""
    code = raised.error_code
    if raised.says is not None:
        return FaultFinding("control-protection", f"#CP: {raised.says}", "likely", here)
    if code is None:
        return FaultFinding("control-protection", "#CP, without its error code", "likely", here)
    known = _CODES.get(code & ~_ENCLAVE)
    sentence = f"#CP({code:#x}): {known or 'an error code that the manual does not define'}"
    return FaultFinding("control-protection", sentence, "likely" if known else "guess", here)
