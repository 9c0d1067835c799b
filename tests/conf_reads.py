"""Which options of conf/ the code reads, told from its source: an option that is only checked is not read."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from attacks.reconstruction.gradient_matching import GradientMatching
from experiments.studies.base import Study
from fl_core.data import Choice
from tests.conf_files import ConfFile, Option

ROOT = Path(__file__).parent.parent
ROOMS = ("fl_core", "attacks", "defenses", "experiments")

CHECKS = ("__post_init__", "_check")
"""Functions that look at a value to refuse it: being looked at there is not being read."""

FORWARDS = {"choice": Choice, "changes": GradientMatching}
"""What takes the options that a function passes on, by the name of its ** parameter."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """What is below a node, without the functions that only check."""
    left = [node]
    while left:
        for child in ast.iter_child_nodes(left.pop()):
            if not (isinstance(child, ast.FunctionDef) and child.name in CHECKS):
                left.append(child)
                yield child


def _source(thing: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def _attributes_of(tree: ast.AST, names: Iterable[str]) -> set[str]:
    """What is read as `name.attribute` of variables with these names, outside of checks."""
    return {
        node.attr
        for node in walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
    }


@cache
def _read_of_itself(kind: type) -> frozenset[str]:
    """What a class and its bases read as `self.name`."""
    ours = [one for one in kind.__mro__ if one.__module__.split(".")[0] in (*ROOMS, kind.__module__.split(".")[0])]
    return frozenset().union(*(_attributes_of(_source(one), ["self"]) for one in ours))


@cache
def _read_by_annotation() -> dict[str, set[str]]:
    """What functions read of their parameters, by the parameters' annotations."""
    found: dict[str, set[str]] = {}
    for function in (node for path in sources(*ROOMS) for node in walk(parsed(path))):
        if isinstance(function, ast.FunctionDef):
            told = {
                one.arg: one.annotation.id
                for one in (*function.args.args, *function.args.kwonlyargs)
                if isinstance(one.annotation, ast.Name) and one.annotation.id[0].isupper()
            }
            for name, kind in told.items():
                found.setdefault(kind, set()).update(_attributes_of(function, [name]))
    return found


def _read_of_parameters(kind: type) -> set[str]:
    """What functions read of a parameter that is annotated with a class or one of its bases."""
    return set().union(*(_read_by_annotation().get(one.__name__, set()) for one in kind.__mro__))


@cache
def _read_elsewhere() -> frozenset[str]:
    """What is read as `something.name`, but for `self.name`: whose the name is, the source does not say."""
    return frozenset(
        node.attr
        for path in sources(*ROOMS)
        for node in walk(parsed(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        if not (isinstance(node.value, ast.Name) and node.value.id == "self")
    )


def _beside(kind: type) -> list[ast.Module]:
    """The modules of a class's folder that speak of it, its own among them."""
    return [
        parsed(path) for path in Path(inspect.getfile(kind)).parent.glob("*.py") if kind.__name__ in path.read_text()
    ]


def resolved(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def unused(target: Any, name: str) -> str:
    """Empty where `target`, a class or a function, takes the option `name` and uses it; otherwise what is wrong."""
    parameters = inspect.signature(target).parameters
    if name not in parameters:
        rest = [one.name for one in parameters.values() if one.kind is one.VAR_KEYWORD]
        return unused(FORWARDS[rest[0]], name) if rest else f"is no option of {target.__qualname__}"
    if not dataclasses.is_dataclass(target):
        body = _source(target.__init__ if isinstance(target, type) else target)
        used = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
    else:
        assert isinstance(target, type)
        used = {*_read_of_itself(target), *_read_of_parameters(target)}
        if issubclass(target, Study):
            used |= set().union(*(_attributes_of(tree, ["study"]) for tree in _beside(target)))
        else:
            used |= _read_elsewhere()
    return "" if name in used else f"is not read by {target.__qualname__}"


def unread_options(options: Iterable[Option]) -> list[str]:
    """Options of a `_target_` that it does not take or does not use."""
    found = []
    for option in options:
        if option.target is not None and not option.within_entry:
            why = unused(resolved(option.target), option.name)
            found += [f"{option} {why}"] if why else []
    return found


def unread_fields(config: ConfFile, trees: Sequence[ast.AST]) -> list[str]:
    """Fields of config.yaml itself, but for those that only hold others, that nothing looks up."""
    names = [option.path for option in config.options]
    leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    read = paths_read(trees)
    return [f"{config.file.name}: {name} is not read" for name in leaves if name not in read]


def unread_of_studies(kinds: Iterable[type[Study]]) -> list[str]:
    """Entries of a study's `reads` that neither it nor a function that it is handed to looks up."""
    found = []
    for kind in kinds:
        trees = _beside(kind)
        read = paths_read(trees) | {
            node.args[0].value
            for tree in trees
            for node in walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "make"
            if node.args and isinstance(node.args[0], ast.Constant)
        }
        if any(_attributes_of(tree, ["setting"]) & {"pool", "test"} for tree in trees):
            read.add("data")
        found += [f"{kind.__qualname__}.reads: {name} is not read" for name in kind.reads if name not in read]
    return found


def paths_read(trees: Sequence[ast.AST]) -> set[str]:
    """The dotted names that functions look up in a configuration, outside of checks.

    A configuration is what is called `config` or `.config`; a part of it may have been given another name in the same
    function (`attack = config["attack"]`).
    """
    found: set[str] = set()
    for tree in trees:
        for function in [tree, *(node for node in walk(tree) if isinstance(node, ast.FunctionDef))]:
            found |= _paths_read_by(function)
    return found


def _paths_read_by(function: ast.AST) -> set[str]:
    names: dict[str, tuple[str, ...]] = {"config": (), "composed": ()}
    found = set()
    for _ in range(2):  # a part may be named before or after it is looked into
        for node in walk(function):
            for name, value in _assigned(node):
                where = _path(value, names)
                if where and name not in ("config", "composed"):
                    names[name] = where
            if isinstance(node, ast.Subscript | ast.Call | ast.Attribute) and (where := _path(node, names)):
                found.add(".".join(where))
    return found


def _assigned(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """The names and values of an assignment, also of several at once."""
    if not isinstance(node, ast.Assign):
        return []
    target, value = node.targets[0], node.value
    pairs = zip(target.elts, value.elts, strict=False) if _both_tuples(target, value) else [(target, value)]
    return [(one.id, other) for one, other in pairs if isinstance(one, ast.Name)]


def _both_tuples(target: ast.AST, value: ast.AST) -> bool:
    return isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)


def _path(node: ast.expr, names: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Where in the configuration an expression looks: ("attack", "fpr") for config["attack"]["fpr"]; None elsewhere."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        if node.attr == "config":
            return ()
        around = _path(node.value, names)
        return None if around is None else (*around, node.attr)
    if isinstance(node, ast.Subscript):
        inner, key = node.value, node.slice
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        inner, key = node.func.value, node.args[0]
    else:
        return None
    around = _path(inner, names)
    if around is None or not isinstance(key, ast.Constant) or not isinstance(key.value, str):
        return None
    return (*around, key.value)
