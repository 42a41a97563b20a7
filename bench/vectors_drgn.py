"""drgn: the page-table walk behind `follow_phys`, over a core in which the tables of one vector after the other lie."""

from __future__ import annotations

from functools import partial

import drgn
from _drgn import _linux_helper_follow_phys as follow_phys

from vectors_protocol import answer, request, tell, written

asked = request()
programs = {}
for levels, told in asked["vmcoreinfo"].items():
    programs[int(levels)] = drgn.Program(vmcoreinfo=told)
    programs[int(levels)].set_core_dump(asked["core"])
answers = []
for one in asked["tables"]:
    program = programs[one["levels"]]
    with written(asked["core"], one["words"], asked["core_head"]):
        walks = [partial(follow_phys, program, asked["root_at"], va) for va in one["addresses"]]
        answers.append([answer(walk, drgn.FaultError) for walk in walks])
tell(drgn.__version__, answers)
