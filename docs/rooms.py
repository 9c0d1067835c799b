"""The public modules, found where they are: what the reference must show."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import typing

ROOMS = ("fl_core", "attacks", "defenses", "experiments")
SEPARATE = tuple(
    f"experiments.benchmarks.peers.{name}"
    for name in ("breaching_matching", "flower_peer", "flower_secagg", "pfl_peer")
)
"""Programs on peers that are timed in an environment of their own: what they import is not at hand."""


@functools.cache
def modules() -> tuple[str, ...]:
    """The full names of all public modules, packages before what is in them."""
    found = []
    for room in ROOMS:
        package = importlib.import_module(room)
        found.append(room)
        found += [one.name for one in pkgutil.walk_packages(package.__path__, f"{room}.")]
    return tuple(name for name in found if not any(part.startswith("_") for part in name.split(".")))


def import_all() -> None:
    """Import every module, and what it imports for its annotations alone, so that all of them can be read."""
    for module in [importlib.import_module(name) for name in modules() if name not in SEPARATE]:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec(compile(ast.Module(node.body, []), str(module.__file__), "exec"), vars(module))


@functools.cache
def aliases() -> tuple[str, ...]:
    """The names of type aliases, `Tree` say; those that are a class's name somewhere else are left out."""
    names, classes = set[str](), set[str]()
    for name in modules():
        if name in SEPARATE:
            continue
        for name, value in vars(importlib.import_module(name)).items():
            if inspect.isclass(value):
                classes.add(name)
            elif typing.get_origin(value) is not None and re.fullmatch(r"[A-Z][a-zA-Z]*[a-z][a-zA-Z]*", name):
                names.add(name)
    return tuple(sorted(names - classes))
