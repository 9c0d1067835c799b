"""A Sphinx extension for docstrings as this project writes them: plain text, with Markdown's backticks and lists.

Names between backticks become links where they name something public of the same class or module. What is indented
under a line stays as it stands (pseudocode, commands).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from sphinx import addnodes
from sphinx.util.inspect import TypeAliasForwardRef

from docs.rooms import ROOMS, modules

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
ITEM = re.compile(r"(- |\d+\. )")
MARKUP = re.compile(r"([*|\\]|_(?!\w))")  # what reStructuredText would read as more than a character


def inline(text: str, scope: list[Any]) -> str:
    """`text` as reStructuredText; `scope` is where the names in it are looked up, the nearest first."""
    parts = CODE.split(text)
    for at, part in enumerate(parts):
        if at % 2 == 0:
            parts[at] = MARKUP.sub(r"\\\1", part)
            continue
        code = " ".join(part.split())
        target = target_of(code, scope)
        role = f":py:obj:`{code} <{target}>`" if target else f"``{code}``"
        # Markup ends at a space or some of the punctuation; anywhere else "\\ " is its end, and does not show.
        open_before = re.search(r"(^|[\s'\"(\[{<\-/:])$", parts[at - 1])
        open_after = re.match(r"$|[\s'\")\]}>\-/\\:.,;!?]", parts[at + 1])
        parts[at] = ("" if open_before else "\\ ") + role + ("" if open_after else "\\ ")
    return "".join(parts)


def meant(code: str, scope: list[Any]) -> Any:
    """What `code` names, and None where it names nothing."""
    if re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", code):
        for start in scope:
            with contextlib.suppress(AttributeError):
                found = functools.reduce(getattr, code.split("."), start)
                return found.__wrapped__ if isinstance(found, functools._lru_cache_wrapper) else found
    return None


def target_of(code: str, scope: list[Any]) -> str | None:
    """The full name of what `code` names, where that has a place in the reference."""
    found = meant(code, scope)
    if isinstance(found, types.ModuleType):
        return found.__name__ if found.__name__ in modules() else None
    if not isinstance(found, (types.FunctionType, type)) or found.__module__ not in modules():
        return None
    full = f"{found.__module__}.{found.__qualname__}"
    return None if any(name.startswith(("_", "<")) for name in full.split(".")) else full


def complete(app: Any, doctree: Any) -> None:
    """Give the types in signatures their full names: short ones that several modules use would go astray."""
    for signature in doctree.findall(addnodes.desc_signature):
        if "module" not in signature:
            continue
        scope = scope_of(f"{signature['module']}.{signature['fullname']}")
        above = [sys.modules.get(kind.__module__) for kind in getattr(scope[0], "__mro__", ())]  # where fields are from
        for node in list(signature.parent.findall(addnodes.pending_xref)):
            found = meant(node["reftarget"].lstrip("."), [*scope, *above]) if node["reftype"] == "class" else None
            if isinstance(found, type) and found.__module__ != "builtins":
                node["reftarget"] = f"{found.__module__}.{found.__qualname__}"
            elif found is not None and not isinstance(found, type):
                node.replace_self(node.children)  # the alias of a type, which has no place of its own


def blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Cut a docstring into its `text`, its `items` and what is `fixed` in form, which are all that there is."""
    kind, held = "text", list[str]()
    fence = False
    for line in lines:
        if line.startswith("```"):
            fence, new = not fence, "fixed"
            line = ""
        elif fence:
            new = "fixed"
        elif not line.strip():
            held.append("")
            continue
        elif line[0] == " ":
            new = kind if kind in ("items", "fixed") else "fixed"
        else:
            new = "items" if ITEM.match(line) else "text"
        if new != kind and held:
            yield kind, held
            held = []
        kind = new
        held.append(line)
    yield kind, held


def restructured(lines: list[str], scope: list[Any]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    written: list[str] = []
    for kind, held in blocks(lines):
        if kind == "fixed":
            written += ["", ".. code-block:: text", "", *(f"   {line}" for line in held), ""]
        else:
            written += ["", *inline("\n".join(held), scope).split("\n")]
    return written


def scope_of(name: str) -> list[Any]:
    """The class and the module that `name` is in, or is."""
    parts = name.split(".")
    at = max(at for at in range(1, len(parts) + 1) if ".".join(parts[:at]) in sys.modules)
    scope = [sys.modules[".".join(parts[:at])]]
    for part in parts[at:]:
        inner = getattr(scope[0], part, None)
        if not inspect.isclass(inner):
            break
        scope.insert(0, inner)
    return [*scope, *map(importlib.import_module, ROOMS)]


def from_elsewhere(obj: Any, scope: list[Any]) -> bool:
    """Whether a method without words of its own would show those of a class of another package."""
    if getattr(obj, "__doc__", None) or not inspect.isfunction(obj) or not inspect.isclass(scope[0]):
        return False
    documented = [kind for kind in scope[0].__mro__ if getattr(vars(kind).get(obj.__name__), "__doc__", None)]
    return bool(documented) and documented[0].__module__ not in modules()


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    scope = scope_of(name)
    lines[:] = [] if from_elsewhere(obj, scope) else restructured(lines, scope)


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Methods show without words of their own (a protocol's speak for them); fields stand in the signature already.

    A command's `main` stays out: its module says what it does.
    """
    if name == "main":
        return True
    method = inspect.isroutine(obj) or isinstance(obj, (property, functools.cached_property))
    return False if skipped and method and not name.startswith("_") else None


def name_of(alias: TypeAliasForwardRef) -> str:
    """An alias goes by its name inside of other types, too, where Sphinx prints the object that stands for it."""
    return alias.name


def setup(app: Any) -> dict[str, bool]:
    TypeAliasForwardRef.__repr__ = name_of  # type: ignore[method-assign]
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
