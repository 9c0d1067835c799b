"""The public modules, found where they are: what the reference must show."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
ROOMS = ("fl_core", "attacks", "defenses", "experiments")


@functools.cache
def modules() -> tuple[str, ...]:
    """The full names of all public modules, packages before what is in them."""
    found = []
    for room in ROOMS:
        package = importlib.import_module(room)
        found.append(room)
        found += [one.name for one in pkgutil.walk_packages(package.__path__, f"{room}.")]
    return tuple(name for name in found if not any(part.startswith("_") for part in name.split(".")))


@functools.cache
def imported() -> tuple[tuple[ModuleType, ...], frozenset[str]]:
    """Those that can be imported here, and the packages that the others lack: peers live in an environment of theirs.

    What a module imports for its annotations alone is imported as well, so that these can be read.
    """
    found, lacking = [], set[str]()
    for name in modules():
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            lacking.add(str(error.name).partition(".")[0])
    if lacking & set(ROOMS):
        raise ImportError(f"{', '.join(sorted(lacking & set(ROOMS)))} cannot be imported whole")
    for module in found:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec(compile(ast.Module(node.body, []), str(module.__file__), "exec"), vars(module))
    return tuple(found), frozenset(lacking)


def aliases() -> list[str]:
    """The names of type aliases, `Tree` say, in any module."""
    return sorted(
        {
            name
            for module in imported()[0]
            for name, value in vars(module).items()
            if typing.get_origin(value) is not None and re.fullmatch(r"[A-Z][a-zA-Z]*[a-z][a-zA-Z]*", name)
        }
    )
