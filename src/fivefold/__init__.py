"""x86-64 paging with four and five levels, chosen at boot.

    >>> import fivefold as ff
    >>> ff.LA57.va_bits, ff.LA48.is_canonical(0xff11_0000_0000_0000)
    (57, False)

Public are the names in ``__all__`` here, `open` (which is `open_space`, left out of ``__all__`` so that ``from fivefold
import *`` replaces no builtin), and of the packages among them the names in their own ``__all__``. Everything else is
private, however it is spelled: modules move without a word.

Names are loaded when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fivefold import arch as arch
    from fivefold import errors as errors
    from fivefold import layout as layout
    from fivefold import machine as machine
    from fivefold import memory as memory
    from fivefold import units as units
    from fivefold._face import access as access
    from fivefold._face import audit as audit
    from fivefold._face import regions as regions
    from fivefold._face import translate as translate
    from fivefold._face import walk as walk
    from fivefold.arch import FETCH as FETCH
    from fivefold.arch import LA48 as LA48
    from fivefold.arch import LA57 as LA57
    from fivefold.arch import READ as READ
    from fivefold.arch import WRITE as WRITE
    from fivefold.arch import Access as Access
    from fivefold.arch import AddressSpace as AddressSpace
    from fivefold.arch import Allowed as Allowed
    from fivefold.arch import Cause as Cause
    from fivefold.arch import ControlState as ControlState
    from fivefold.arch import Cpu as Cpu
    from fivefold.arch import Entry as Entry
    from fivefold.arch import Fault as Fault
    from fivefold.arch import Flag as Flag
    from fivefold.arch import Kind as Kind
    from fivefold.arch import Level as Level
    from fivefold.arch import Mapped as Mapped
    from fivefold.arch import PagingMode as PagingMode
    from fivefold.arch import Rights as Rights
    from fivefold.arch import Rule as Rule
    from fivefold.arch import Step as Step
    from fivefold.arch import Unmapped as Unmapped
    from fivefold.arch import Vector as Vector
    from fivefold.boot import BootOptions as BootOptions
    from fivefold.boot import BootReport as BootReport
    from fivefold.boot import Image as Image
    from fivefold.boot import boot as boot
    from fivefold.boot import build_image as build_image
    from fivefold.errors import CannotOpenError as CannotOpenError
    from fivefold.errors import CompileError as CompileError
    from fivefold.errors import FivefoldError as FivefoldError
    from fivefold.errors import FormatError as FormatError
    from fivefold.errors import ImageError as ImageError
    from fivefold.errors import LayoutError as LayoutError
    from fivefold.errors import MachineError as MachineError
    from fivefold.errors import MemoryReadError as MemoryReadError
    from fivefold.errors import MissingFileError as MissingFileError
    from fivefold.errors import NotKnownError as NotKnownError
    from fivefold.explain import Explanation as Explanation
    from fivefold.explain import FaultCause as FaultCause
    from fivefold.explain import GivenState as GivenState
    from fivefold.explain import explain as explain
    from fivefold.integrations.drgn_program import to_drgn as to_drgn
    from fivefold.layout import linux_areas as linux_areas
    from fivefold.memory import CpuState as CpuState
    from fivefold.memory import Ram as Ram
    from fivefold.memory import Segment as Segment
    from fivefold.memory import Source as Source
    from fivefold.memory import SourceOptions as SourceOptions
    from fivefold.memory.open_source import open_source as open_source
    from fivefold.survey.audit.audit import Audit as Audit
    from fivefold.survey.audit.audit import Finding as Finding
    from fivefold.survey.audit.policy import Policy as Policy
    from fivefold.survey.audit.policy import load_policy as load_policy
    from fivefold.survey.audit.rules import AuditRule as AuditRule
    from fivefold.survey.audit.rules import Severity as Severity
    from fivefold.survey.diff.diff import Change as Change
    from fivefold.survey.diff.diff import Diff as Diff
    from fivefold.survey.diff.diff import DiffSettings as DiffSettings
    from fivefold.survey.diff.diff import diff as diff
    from fivefold.survey.find import find_mappings as find_mappings
    from fivefold.survey.find import search_memory as search_memory
    from fivefold.survey.guest.evidence import Found as Found
    from fivefold.survey.guest.identify import GivenPaging as GivenPaging
    from fivefold.survey.guest.root_spaces import root_spaces as root_spaces
    from fivefold.survey.guest.roots import Root as Root
    from fivefold.survey.guest.roots import find_roots as find_roots
    from fivefold.survey.paths import Path as Path
    from fivefold.survey.scan.regions import Region as Region
    from fivefold.survey.scan.regions import Regions as Regions
    from fivefold.survey.scan.repeats import regions_with_repeats as regions_with_repeats
    from fivefold.survey.scan.scan import TableScanner as TableScanner
    from fivefold.survey.scan.scan_result import Contiguity as Contiguity
    from fivefold.survey.scan.scan_result import RegionKind as RegionKind
    from fivefold.survey.scan.scan_result import ScanResult as ScanResult
    from fivefold.survey.scan.scan_result import ScanSettings as ScanSettings
    from fivefold.survey.scan.translator import translator_of as translator_of
    from fivefold.survey.space import Space as Space
    from fivefold.survey.space import open_space as open_space
    from fivefold.survey.stats import Stats as Stats
    from fivefold.survey.stats import stats as stats
    from fivefold.units import PhysAddr as PhysAddr
    from fivefold.units import VirtAddr as VirtAddr

    open = open_space

_HOMES: Final = {
    "fivefold._face": "access audit regions translate walk",
    "fivefold.arch": (
        "FETCH LA48 LA57 READ WRITE Access AddressSpace Allowed Cause ControlState Cpu Entry Fault Flag Kind "
        "Level Mapped PagingMode Rights Rule Step Unmapped Vector"
    ),
    "fivefold.boot": "BootOptions BootReport Image boot build_image",
    "fivefold.errors": (
        "CannotOpenError CompileError FivefoldError FormatError ImageError LayoutError MachineError "
        "MemoryReadError MissingFileError NotKnownError"
    ),
    "fivefold.explain": "Explanation FaultCause GivenState explain",
    "fivefold.integrations.drgn_program": "to_drgn",
    "fivefold.layout": "linux_areas",
    "fivefold.memory": "CpuState Ram Segment Source SourceOptions",
    "fivefold.memory.open_source": "open_source",
    "fivefold.survey.audit.audit": "Audit Finding",
    "fivefold.survey.audit.policy": "Policy load_policy",
    "fivefold.survey.audit.rules": "AuditRule Severity",
    "fivefold.survey.diff.diff": "Change Diff DiffSettings diff",
    "fivefold.survey.find": "find_mappings search_memory",
    "fivefold.survey.guest.evidence": "Found",
    "fivefold.survey.guest.identify": "GivenPaging",
    "fivefold.survey.guest.root_spaces": "root_spaces",
    "fivefold.survey.guest.roots": "Root find_roots",
    "fivefold.survey.paths": "Path",
    "fivefold.survey.scan.regions": "Region Regions",
    "fivefold.survey.scan.repeats": "regions_with_repeats",
    "fivefold.survey.scan.scan": "TableScanner",
    "fivefold.survey.scan.scan_result": "Contiguity RegionKind ScanResult ScanSettings",
    "fivefold.survey.scan.translator": "translator_of",
    "fivefold.survey.space": "Space open_space",
    "fivefold.survey.stats": "Stats stats",
    "fivefold.units": "PhysAddr VirtAddr",
}
"""Where each public name is defined."""

_PACKAGES: Final = ("arch", "errors", "layout", "machine", "memory", "units")
_HOME: Final = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "FETCH",
    "LA48",
    "LA57",
    "READ",
    "WRITE",
    "Access",
    "AddressSpace",
    "Allowed",
    "Audit",
    "AuditRule",
    "BootOptions",
    "BootReport",
    "CannotOpenError",
    "Cause",
    "Change",
    "CompileError",
    "Contiguity",
    "ControlState",
    "Cpu",
    "CpuState",
    "Diff",
    "DiffSettings",
    "Entry",
    "Explanation",
    "Fault",
    "FaultCause",
    "Finding",
    "FivefoldError",
    "Flag",
    "FormatError",
    "Found",
    "GivenPaging",
    "GivenState",
    "Image",
    "ImageError",
    "Kind",
    "LayoutError",
    "Level",
    "MachineError",
    "Mapped",
    "MemoryReadError",
    "MissingFileError",
    "NotKnownError",
    "PagingMode",
    "Path",
    "PhysAddr",
    "Policy",
    "Ram",
    "Region",
    "RegionKind",
    "Regions",
    "Rights",
    "Root",
    "Rule",
    "ScanResult",
    "ScanSettings",
    "Segment",
    "Severity",
    "Source",
    "SourceOptions",
    "Space",
    "Stats",
    "Step",
    "TableScanner",
    "Unmapped",
    "Vector",
    "VirtAddr",
    "access",
    "arch",
    "audit",
    "boot",
    "build_image",
    "diff",
    "errors",
    "explain",
    "find_mappings",
    "find_roots",
    "layout",
    "linux_areas",
    "load_policy",
    "machine",
    "memory",
    "open_source",
    "open_space",
    "regions",
    "regions_with_repeats",
    "root_spaces",
    "search_memory",
    "stats",
    "to_drgn",
    "translate",
    "translator_of",
    "units",
    "walk",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that has it."""
    if name in _PACKAGES:
        return import_module(f"fivefold.{name}")
    wanted = "open_space" if name == "open" else name
    if wanted not in _HOME:
        raise AttributeError(f"module 'fivefold' has no attribute {name!r}")
    found = getattr(import_module(_HOME[wanted]), wanted)
    if name == wanted:
        globals()[name] = found  # the next time it is found at once
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "open"])
