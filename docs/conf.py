"""The docs site: README, docs/ and the docstrings of the public names. `.ci/site build/site` builds it with Sphinx.

The folder that Sphinx reads is the repository itself, so that links in README and docs lead to the same places on the
site and in a clone. Nothing is fetched when a page is read: furo's style has no web fonts, and no page names a script
or a picture of another host.
"""

from __future__ import annotations

import builtins
import importlib
import re
import sys
from types import ModuleType
from typing import NewType

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import fivefold

project = "Fivefold"
copyright = "The Fivefold authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/README.md",
    "docs/**.md",
    "tests/data/ORIGIN.md",
]
root_doc = "docs/index"
html_theme = "furo"
html_title = "Fivefold"
html_copy_source = False
html_show_sourcelink = False
templates_path = ["templates"]
html_additional_pages = {"index": "to_docs.html"}  # the folder's own address leads to the first page

myst_heading_anchors = 3
myst_links_external_new_tab = False
default_role = "code"  # a docstring's `name` is code, not a reference that must lead somewhere
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

MEMBERS = ["   :members:", "   :undoc-members:", "   :show-inheritance:"]
GROUPS = {"module": "Packages", "function": "Functions", "data": "Values"}


def public_names() -> dict[str, str]:
    """Where each public class and function is defined, to the name that a user imports."""
    found = {}
    for name in fivefold.__all__:
        value = getattr(fivefold, name)
        if hasattr(value, "__qualname__"):
            found[f"{value.__module__}.{value.__qualname__}"] = f"fivefold.{name}"
    return found


def plain(value: object, name: str) -> object:
    """What a public name stands for: a package that can be called stands for its function of that name."""
    return getattr(value, name) if isinstance(value, ModuleType) and callable(value) else value


def api(names: list[str]) -> str:
    """The reference of these names, in reStructuredText."""
    lines = []
    for name in names:
        value = getattr(fivefold, name)
        kind = kind_of(value)
        lines += [f".. auto{kind}:: fivefold.{name}"]
        lines += MEMBERS if kind == "class" else []
        lines += ["", *(contents(value) if isinstance(value, ModuleType) else [])]
    return "\n".join(lines)


def kind_of(value: object) -> str:
    """What autodoc calls this kind of thing."""
    if isinstance(value, ModuleType):
        return "module"
    if isinstance(value, type):
        return "class"
    return "function" if callable(value) and not isinstance(value, NewType) else "data"


def contents(package: ModuleType) -> list[str]:
    """A line with the public names of a package."""
    names = ", ".join(f"``{name}``" for name in getattr(package, "__all__", ()))
    return [f"Its names: {names}.", ""] if names else []


def write_api(app: Sphinx, page: str, source: list[str]) -> None:
    """Append to docs/api.md what is in `fivefold.__all__`, in groups."""
    if page != "docs/api":
        return
    groups: dict[str, list[str]] = {title: [] for title in ("Functions", "Classes", "Exceptions", "Values", "Packages")}
    for name in fivefold.__all__:
        value = getattr(fivefold, name)
        if isinstance(value, type):
            groups["Exceptions" if issubclass(value, BaseException) else "Classes"].append(name)
        else:
            groups[GROUPS[kind_of(value)]].append(name)
    for title, names in groups.items():
        if names:
            source[0] += f"\n## {title}\n\n```{{eval-rst}}\n{api(names)}\n```\n"


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element) -> Element | None:
    """Lead a type in a signature to its public name, and leave other types without a link if they exist.

    A name that no module has stays a dead reference, which fails the build.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    home = home_of(target)
    public = PUBLIC.get(home)
    if public is not None:
        return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, text)
    return text if exists(home) else None


def home_of(target: str) -> str:
    """The full name of a type that a signature writes without its module, by what the public names' modules call so."""
    if "." in target or hasattr(builtins, target):
        return target
    modules = {sys.modules[home.rpartition(".")[0]] for home in PUBLIC if home.rpartition(".")[0] in sys.modules}
    values = [getattr(module, target) for module in modules if hasattr(module, target)]
    homes = {f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', target)}" for value in values}
    return homes.pop() if len(homes) == 1 else target


def exists(target: str) -> bool:
    """Whether Python finds this dotted name."""
    if hasattr(builtins, target):
        return True
    module, _, name = target.rpartition(".")
    while module:
        try:
            value: object = importlib.import_module(module)
        except ImportError:
            module, _, more = module.rpartition(".")
            name = f"{more}.{name}"
            continue
        return has(value, name)
    return False


def has(value: object, names: str) -> bool:
    """Whether *value* has this attribute of an attribute."""
    for name in names.split("."):
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def drop_field_numbers(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Drop the docstrings that Python itself writes for the fields of a named tuple."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def plain_defaults(
    app: Sphinx, what: str, name: str, value: object, options: object, given: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Write `...` for a default that is no expression, such as `<factory>`, so that Sphinx can read the signature."""
    return None if given is None else (re.sub(r"<[^<>]*>", "...", given), returned)


for _name in fivefold.__all__:
    setattr(fivefold, _name, plain(getattr(fivefold, _name), _name))
PUBLIC = public_names()
for _name in fivefold.__all__:
    if isinstance(getattr(fivefold, _name), type):
        getattr(fivefold, _name).__name__ = _name  # else a class with another name at home is only told to be an alias


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect("source-read", write_api)
    app.connect("autodoc-process-docstring", drop_field_numbers)
    app.connect("autodoc-process-signature", plain_defaults)
    app.connect("missing-reference", resolve)
