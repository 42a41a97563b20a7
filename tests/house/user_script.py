"""What a user writes: checked by ``mypy --strict`` and run, never imported."""

from __future__ import annotations

import sys

import fivefold as ff


def look(path: str, va: int) -> list[str]:
    with ff.open(path) as space:
        told = [f"{space.levels} levels, {space.mode.value.name}"]
        for r in space.regions():
            row: tuple[int, int, int, ff.Rights, str | None] = (r.start, r.end, r.size, r.rights, r.area)
            assert isinstance(r, ff.Region) and row[0] + row[2] == row[1]
        told += [str(step) for step in ff.walk(space, va)]
        found: ff.Mapped | ff.Unmapped = ff.translate(space, va)
        told.append(str(found))
        verdict: ff.Allowed | ff.Fault = ff.access(space, ff.Access(ff.Kind.WRITE, va=va), user=True)
        told.append(str(verdict))
        regions: ff.Regions = ff.regions(space)
        told.append(f"{sum(region.size for region in regions)} bytes")
        findings: list[ff.Finding] = ff.audit(space).findings
        told += [f"{finding.rule.name} {finding.message}" for finding in findings]
        story: ff.Explanation = ff.explain(memory=space, cr2=va, vector=14, error_code=7)
        told.append(story.cause.sentence)
    return told


if __name__ == "__main__":
    sys.stdout.write("\n".join(look(sys.argv[1], int(sys.argv[2], 16))) + "\n")
