"""Why did this fault, fault twice, fault three times.

``fivefold.explain(log, memory)`` is `explain`: this package is the function it is named after
(see `fivefold.callable_package`).
"""

from fivefold.callable_package import make_callable
from fivefold.explain.answer import explain, explain_event
from fivefold.explain.read_log import read_log
from fivefold.explain.result import Cause, Explanation, Told, WhatIf
from fivefold.explain.ruling import MANUAL
from fivefold.explain.situation import Given
from fivefold.explain.trace import Strike, Trace

make_callable(__name__)

__all__ = [
    "MANUAL",
    "Cause",
    "Explanation",
    "Given",
    "Strike",
    "Told",
    "Trace",
    "WhatIf",
    "explain",
    "explain_event",
    "read_log",
]
