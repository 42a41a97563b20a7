"""Puts native code into the wheel: what reading a guest takes, for each CPU, compiled from the sources here.

An editable installation gets none: there the sources change, and programs are compiled when they are asked for.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface):
    """One file a CPU, beside the module that reads it (`fivefold.metal.prebuilt`)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless *version* says that an editable wheel is made; hatchling includes what was made."""
        if version == "editable":
            return
        self._place = Path(tempfile.mkdtemp(prefix="fivefold-code-"))
        for cpu, code in self._codes().items():
            file = self._place / f"{cpu}.code"
            file.write_bytes(code)
            build_data["force_include"][str(file)] = f"fivefold/metal/{file.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what `initialize` made."""
        if version != "editable":
            shutil.rmtree(self._place)

    def _codes(self) -> dict[str, bytes]:
        """Compile with these sources, wherever else a fivefold is installed."""
        sources = Path(self.root) / "src"
        sys.path.insert(0, str(sources))
        import fivefold

        if not Path(fivefold.__file__).is_relative_to(sources):
            raise RuntimeError(f"fivefold comes from {fivefold.__file__}; expected it below {sources}")
        from fivefold.matrix.kernels.lz4_blocks import PROGRAM
        from fivefold.metal.prebuilt import pack
        from fivefold.metal.run.native import CPUS
        from fivefold.survey.scan.programs import every_program

        return {cpu: pack([*every_program(), PROGRAM], cpu) for cpu in CPUS}
