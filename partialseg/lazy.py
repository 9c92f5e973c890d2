"""Names of a package that are looked up when first used, so that importing it costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names live in modules that are imported late (PEP 562).

    Args:
        package: `__name__` of the package.
        where: For each name the module that defines it.

    Returns:
        A function that imports the name's module and keeps the value in the package.

    Raises:
        AttributeError: By the function, for a name that `where` does not list.

    Example:
        >>> lookup = lazy_names("partialseg.data", {"read_card": "partialseg.data.cards"})
        >>> lookup("read_card").__name__
        'read_card'
    """

    def lookup(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(where[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return lookup
