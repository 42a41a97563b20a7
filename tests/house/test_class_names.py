"""One class name means one thing in the whole project."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

PACKAGE = Path(str(resources.files("fivefold")))


def class_names(tree: ast.AST) -> Iterator[str]:
    """The public classes of a module, also those that an ``if`` or a function hides."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def homes(root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(root.rglob("*.py")):
        for name in class_names(ast.parse(path.read_text(encoding="utf-8"))):
            found[name].add(path.relative_to(root).as_posix())
    return found


def test_a_public_class_name_has_one_home() -> None:
    twice = {name: places for name, places in homes(PACKAGE).items() if len(places) > 1}

    assert not twice


def aliases(root: Path) -> dict[str, set[str]]:
    """Names in the spelling of classes that a module gives to a type."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        targets = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
        for name in [target.id for target in targets if isinstance(target, ast.Name)]:
            if name[0].isupper() and not name.isupper():
                found[name].add(path.relative_to(root).as_posix())
    return found


def test_no_other_type_takes_the_name_of_a_class() -> None:
    classes = homes(PACKAGE)

    assert not {name: places for name, places in aliases(PACKAGE).items() if name in classes}


def test_a_name_that_is_defined_twice_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class Region: ...\n")
    (tmp_path / "two.py").write_text("def make():\n    class Region: ...\n")

    assert homes(tmp_path) == {"Region": {"one.py", "two.py"}}
