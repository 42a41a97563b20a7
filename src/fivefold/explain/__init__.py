"""Why did this fault, fault twice, fault three times.

``fivefold.explain(log, memory)`` is `explain`: this package is the function it is named after
(see `fivefold.callable_package`).
"""

from fivefold.callable_package import make_callable
from fivefold.explain.answer import explain, explain_event
from fivefold.explain.logs.read_log import read_log
from fivefold.explain.logs.trace import RaisedException, Trace
from fivefold.explain.result import ExplainedException, Explanation, FaultCause, WhatIf
from fivefold.explain.rules.ruling import MANUAL
from fivefold.explain.rules.situation import GivenState

make_callable(__name__)

__all__ = [
    "MANUAL",
    "ExplainedException",
    "Explanation",
    "FaultCause",
    "GivenState",
    "RaisedException",
    "Trace",
    "WhatIf",
    "explain",
    "explain_event",
    "read_log",
]
