from __future__ import annotations

import fivefold.arch as arch


def test_public_names(vectors: dict[str, list[list[str]]]) -> None:
    assert [[name] for name in sorted(arch.__all__)] == vectors["public_names"]


def test_every_public_name_exists_and_says_what_it_is() -> None:
    for name in arch.__all__:
        value = getattr(arch, name)
        if callable(value) and getattr(value, "__module__", "").startswith("fivefold."):
            assert value.__doc__, name
