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
import typing
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.util.inspect import TypeAliasForwardRef

from docs.rooms import ROOMS, modules

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
ITEM = re.compile(r"(- |\d+\. )")
LONGEST = 200  # characters of a constant's value that its page shows
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
    """The full name of what `code` names, where that has a place in the reference.

    A single word is a module only beside the one where it stands, or above: elsewhere it is a word like any other.
    """
    found = meant(code, scope)
    if isinstance(found, types.ModuleType):
        here = next((one.__name__ for one in scope if isinstance(one, types.ModuleType)), "")
        near = "." in code or here.startswith(found.__name__.rpartition(".")[0])
        return found.__name__ if near and found.__name__ in modules() else None
    if not isinstance(found, (types.FunctionType, type)) or found.__module__ not in modules():
        return None
    kind = base_of(found, found.__name__)
    full = (
        f"{kind.__module__}.{kind.__qualname__}.{found.__name__}"
        if kind
        else f"{found.__module__}.{found.__qualname__}"
    )
    return None if any(name.startswith(("_", "<")) for name in full.split(".")) else full


def complete(app: Any, doctree: Any) -> None:
    """Give the types in signatures their full names: short ones that several modules use would go astray.

    A value that is long, or that no source has in these characters (`<class ...>`), is left to the source.
    """
    for value in list(doctree.findall(addnodes.desc_annotation)):
        if value.astext().startswith(" = ") and (len(value.astext()) > LONGEST or "<" in value.astext()):
            value.parent.remove(value)
    for shown in doctree.findall(addnodes.desc):
        for paragraph in shown.findall(nodes.paragraph) if shown["objtype"] == "attribute" else ():
            if paragraph.astext().startswith("alias of "):
                paragraph.pop(0)  # a field whose value is a class is no second name of it
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


class _Named(typing.NamedTuple):
    field: int


def is_method(value: Any) -> bool:
    """Whether a class has `value` as a method, a property or a cached property."""
    return inspect.isroutine(value) or isinstance(value, property)


def speaker(kind: type, name: str) -> type | None:
    """The class that says what the method `name` of `kind` gives: the nearest with words for it, of those here.

    What another package says of a method is no word on an override. Nor is the docstring of a plain value that a
    property takes the place of, of the number 0.0 say, though `inspect.getdoc` gives it.
    """
    for one in kind.__mro__:
        own = vars(one).get(name)
        if one.__module__ in modules() and is_method(own) and own.__doc__:
            return one
    return None


def overridden(kind: type) -> dict[type, list[str]]:
    """The public methods of `kind` that leave what they give to a public base, by that base."""
    found: dict[type, list[str]] = {}
    for name, value in vars(kind).items():
        base = speaker(kind, name) if is_method(value) and not name.startswith("_") else None
        if base not in (None, kind) and not base.__name__.startswith("_"):
            found.setdefault(base, []).append(name)
    return found


def owner_of(obj: Any) -> type | None:
    """The class that a method, or a property, was written in."""
    function = inspect.unwrap(getattr(obj, "fget", None) or getattr(obj, "func", None) or obj)
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    found = meant(owner, [sys.modules.get(getattr(function, "__module__", None))])
    return found if inspect.isclass(found) else None


def base_of(obj: Any, name: str) -> type | None:
    """The base whose page says what this method gives; None for one that has words of its own, or none at all."""
    owner = owner_of(obj) if is_method(obj) else None
    return owner and next((base for base, names in overridden(owner).items() if name in names), None)


def taken(obj: Any, scope: list[Any]) -> types.SimpleNamespace:
    """The parameters and fields that a docstring speaks of: names that are no links, whatever else has them."""
    names = set[str]()
    for thing in (obj, scope[0]):
        if inspect.isclass(thing) or inspect.isroutine(thing):
            with contextlib.suppress(TypeError, ValueError):
                names |= inspect.signature(thing).parameters.keys()
        for kind in getattr(thing, "__mro__", ()):
            names |= vars(kind).get("__annotations__", {}).keys()
    return types.SimpleNamespace(**dict.fromkeys(names))


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Methods that a base speaks for are one line under their class, with links to what it says."""
    scope = scope_of(name)
    lines[:] = restructured(lines, [taken(obj, scope), *scope])
    for base, methods in overridden(obj).items() if inspect.isclass(obj) else ():
        full = f"{base.__module__}.{base.__qualname__}"
        links = ", ".join(f":py:obj:`{method} <{full}.{method}>`" for method in methods)
        lines += ["", f"As :py:obj:`{base.__name__} <{full}>` says: {links}.", ""]


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Methods show, unless a base speaks for them; fields stand in the signature already.

    A command's `main` stays out: its module says what it does.
    """
    if name == "main" or base_of(obj, name) or isinstance(obj, type(_Named.field)):
        return True
    return False if skipped and is_method(obj) and not name.startswith("_") else None


def signature(
    app: Any, what: str, name: str, obj: Any, options: Any, own: str | None, gives: str | None
) -> tuple[str, str | None] | None:
    """A protocol is not called. `...` stands for a default that Sphinx cannot read, as a field's factory."""
    if getattr(obj, "_is_protocol", False):
        return "", None
    plain = re.sub(r"<factory>|<function \S*<lambda>>", "...", own or "")
    plain = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", plain)
    return None if plain == (own or "") else (plain, gives)


def name_of(alias: TypeAliasForwardRef) -> str:
    """An alias goes by its name inside of other types, too, where Sphinx prints the object that stands for it."""
    return alias.name


def setup(app: Any) -> dict[str, bool]:
    TypeAliasForwardRef.__repr__ = name_of  # type: ignore[method-assign]
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
