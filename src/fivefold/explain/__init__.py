"""Why did this fault, fault twice, fault three times.

``fivefold.explain(log, memory)`` is `explain`: this package is the function it is named after
(see `fivefold.callable_package`).
"""

from fivefold.callable_package import make_callable
from fivefold.explain.answer import explain, explain_event
from fivefold.explain.logs.read_log import read_log
from fivefold.explain.logs.trace import Strike, Trace
from fivefold.explain.result import Explanation, FaultCause, Told, WhatIf
from fivefold.explain.rules.ruling import MANUAL
from fivefold.explain.rules.situation import GivenState

make_callable(__name__)

__all__ = [
    "MANUAL",
    "Explanation",
    "FaultCause",
    "GivenState",
    "Strike",
    "Told",
    "Trace",
    "WhatIf",
    "explain",
    "explain_event",
    "read_log",
]
