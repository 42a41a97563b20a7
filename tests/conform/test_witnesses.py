"""Each rule of arch is shown by at least one engine, or listed as without a witness, with the reason."""

from __future__ import annotations

import pytest

from fivefold.arch import Cpu
from fivefold.conform.cases.product import systematic
from fivefold.conform.engines.registry import open_engine
from fivefold.conform.judging.witnesses import NO_WITNESS, arch_rules, witnessed

BOCHS = Cpu(phys_bits=40, cet=True, fred=False)
"""What Bochs 3's ``la57`` model has of the features that cases need; the test below asks it."""
UNICORN = Cpu(phys_bits=40, pks=False, pcid=False, invpcid=False)
ARROW_LAKE = Cpu(phys_bits=40, la57=False, lass=True)


def test_a_rule_has_a_witness_or_a_reason() -> None:
    cases = systematic()[:6000]
    writes = [case for case in systematic() if case.what.register is not None]
    seen = witnessed([*cases, *writes], (BOCHS,)) | witnessed(writes, (UNICORN,))
    seen |= witnessed((case for case in cases if "lass" in case.flags), (ARROW_LAKE,))
    assert seen <= arch_rules()
    assert set(NO_WITNESS) <= arch_rules()
    assert arch_rules() - seen == set(NO_WITNESS)


@pytest.mark.bochs
def test_bochs_has_what_the_list_counts_on() -> None:
    cpu = open_engine("bochs").cpu
    for name in ("la57", "nx", "smep", "smap", "pku", "pks", "pge", "pcid", "invpcid", "fsgsbase", "cet"):
        assert getattr(cpu, name), name
