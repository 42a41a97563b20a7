"""`fivefold.explain` is the package and the function of that name, in either order of import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ORDERS = {
    "function first": """
import fivefold
told = fivefold.explain(LOG)
import fivefold.explain.logs.trace
again = fivefold.explain(LOG)
""",
    "package first": """
import fivefold.explain
told = fivefold.explain(LOG)
again = fivefold.explain(LOG)
""",
    "member first": """
from fivefold.explain.logs.trace import Trace
import fivefold
told = again = fivefold.explain(LOG)
""",
    "from": """
from fivefold import explain
told = explain(LOG)
from fivefold.explain import explain
again = explain(LOG)
""",
    "alias": """
import fivefold.explain as package
told = package(LOG)
again = package.explain(LOG)
""",
}


@pytest.mark.parametrize("code", ORDERS.values(), ids=ORDERS)
def test_any_order_of_import(code: str, data: Path) -> None:
    log = str(data / "missing_pml5e.log")
    check = "assert told['cause']['rule'] == again.cause.rule == 'not-present'"
    done = subprocess.run(
        [sys.executable, "-c", f"LOG = {log!r}\n{code}\n{check}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_name_is_listed() -> None:
    import fivefold

    assert "explain" in dir(fivefold)
    assert callable(fivefold.explain)
