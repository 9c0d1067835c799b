"""The reference shows every public module, everything public says what it is, and docstrings read as they are meant."""

from __future__ import annotations

import ast
import importlib
import inspect
import types
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from docutils.utils import new_document
from sphinx import addnodes
from sphinx.util.inspect import TypeAliasForwardRef
from sphinx.util.typing import stringify_annotation
from torch import nn

import attacks.audit
import defenses.dp_fedavg
import fl_core.federation
from defenses.base import Defense
from defenses.composed import Composed
from docs import docstrings, rooms
from docs.docstrings import is_method, restructured, scope_of, skip, speaker, target_of
from fl_core.memory import Footprint
from fl_core.participation import Everyone, Fixed, Participation


def test_every_file_of_the_rooms_is_a_module_of_the_reference():
    root = rooms.ROOT
    files = {path.relative_to(root) for room in rooms.ROOMS for path in (root / room).rglob("*.py")}
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert set(rooms.modules()) == {name for name in names if "._" not in name}
    assert len(names) > 200


def test_a_module_without_a_page_is_a_warning_and_so_an_error(monkeypatch: pytest.MonkeyPatch):
    conf = importlib.import_module("docs.conf")  # it imports every module, and a worker that only collects need not
    warned: list[str] = []
    logger = SimpleNamespace(warning=lambda text, name: warned.append(text % name))
    monkeypatch.setattr(conf.logging, "getLogger", lambda _: logger)
    pages = {f"api/{name}" for name in rooms.modules()}
    conf.complete(None, SimpleNamespace(found_docs=pages))
    assert warned == []
    conf.complete(None, SimpleNamespace(found_docs=pages - {"api/fl_core.lanes"}))
    assert warned == ["the reference has no page for api/fl_core.lanes"]


def undocumented(module: types.ModuleType) -> list[str]:
    """The public functions and classes of a module that say nothing; `main` leaves that to its module."""
    silent = [] if module.__doc__ else [module.__name__]
    for name, value in vars(module).items():
        own = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
        # A dataclass without words gets its signature for a docstring.
        if own and not name.startswith("_") and name != "main" and (value.__doc__ or f"{name}(").startswith(f"{name}("):
            silent.append(f"{module.__name__}.{name}")
    return silent


def test_every_public_module_function_and_class_says_what_it_is():
    found, lacking = rooms.imported()
    assert lacking <= {"breaching", "flwr", "pfl"}
    assert [name for module in found for name in undocumented(module)] == []


def test_a_silent_dataclass_and_a_silent_function_are_found():
    made = types.ModuleType(__name__, "Words.")
    silent = dataclass(type("Silent", (), {"__annotations__": {"x": int}, "__module__": __name__}))
    made.__dict__.update(Silent=silent, not_told=asked_nothing, told=undocumented)
    assert undocumented(made) == [f"{__name__}.Silent", f"{__name__}.not_told"]


def asked_nothing() -> None: ...


def undocumented_methods(module: types.ModuleType) -> list[str]:
    """The public methods and properties of a module's public classes that say nothing and override none that does."""
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
    return [
        f"{module.__name__}.{kind.__qualname__}.{name}"
        for kind in kinds
        for name, value in vars(kind).items()
        if is_method(value) and not kind.__name__.startswith("_") and not name.startswith("_")
        if speaker(kind, name) is None
    ]


def test_every_public_method_and_property_says_what_it_gives_or_overrides_one_that_does():
    assert [name for module in rooms.imported()[0] for name in undocumented_methods(module)] == []


class Told(Protocol):
    """Stands in a module of the reference, as far as anybody is told."""

    __module__ = "attacks.audit"
    length: float = 0.0

    def told(self) -> None:
        """Words."""

    def hidden(self) -> None: ...


class Telling(Told, nn.Module):
    __module__ = "attacks.audit"

    def told(self) -> None: ...

    def forward(self) -> None: ...

    def _private(self) -> None: ...

    @property
    def length(self) -> float:  # type: ignore[override]
        return 1.0

    @classmethod
    def made(cls) -> None: ...

    @cached_property
    def kept(self) -> float:
        return 1.0


def test_silent_methods_are_found_and_inherited_words_count():
    made = types.ModuleType("attacks.audit")
    made.__dict__.update(Told=Told, Telling=Telling)
    silent = ["Told.hidden", "Telling.forward", "Telling.length", "Telling.made", "Telling.kept"]
    assert undocumented_methods(made) == [f"attacks.audit.{name}" for name in silent]


def test_what_a_peers_module_shows_has_words_though_the_peer_is_not_here():
    silent = []
    for module in set(rooms.modules()) - {module.__name__ for module in rooms.imported()[0]}:
        tree = ast.parse((rooms.ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
        for holder in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
            parts = [node for node in holder.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            silent += [f"{module}.{part.name}" for part in parts if not ast.get_docstring(part)]
    assert [name for name in silent if "._" not in name and not name.endswith(".main")] == []


# Docstrings


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("`steps`[k] of several `step`s, half-`open`", "``steps``\\ [k] of several ``step``\\ s, half-``open``"),
        ("|x| of w* and x_ and `|y|`", "\\|x\\| of w\\* and x\\_ and ``|y|``"),
        ("a name like tpr_at_fpr stays", "a name like tpr_at_fpr stays"),
        ("`over\nlines`", "``over lines``"),
    ],
)
def test_backticks_are_code_and_other_marks_are_characters(written: str, wanted: str):
    assert "\n".join(restructured(written.split("\n"), [])).strip() == wanted


def test_pseudocode_under_a_line_and_fences_stay_as_they_stand():
    lines = ["Each round:", "    x ← x + η |S|", "      more", "After it.", "", "```yaml", "a: *b", "```"]
    assert restructured(lines, []) == [
        "",
        "Each round:",
        *("", ".. code-block:: text", "", "       x ← x + η |S|", "         more", ""),
        "",
        "After it.",
        "",
        *("", ".. code-block:: text", "", "   ", "   a: *b", "   ", ""),
    ]


def test_a_list_keeps_its_items_and_what_hangs_under_them():
    lines = ["Of two kinds:", "- one, *so*", "  and on", "- another", "", "End."]
    assert restructured(lines, []) == [
        "",
        "Of two kinds:",
        "",
        "- one, \\*so\\*",
        "  and on",
        "- another",
        "",
        "",
        "End.",
    ]


def test_a_name_becomes_a_link_to_what_it_names_where_it_stands():
    scope = scope_of("defenses.base.Defense.prepare")
    assert scope[0] is Defense
    assert target_of("check", scope) == "defenses.base.Defense.check"
    assert target_of("Plan", scope) == "fl_core.plan.Plan"
    assert target_of("outcomes", scope_of("attacks.audit")) == "attacks.audit.outcomes"
    assert target_of("one_run_epsilon", scope_of("attacks.audit.one_run")) == "attacks.audit.one_run.one_run_epsilon"
    assert target_of("_summing", scope_of("fl_core.federation")) is None
    assert target_of("replace", scope_of("fl_core.federation")) is None  # dataclasses has no page here
    assert target_of("epsilon", scope) is None  # a field: it stands in the class's signature
    assert target_of("not a name", scope) is None


def shown(name: str, obj: Any, *lines: str) -> str:
    written = list(lines)
    docstrings.process(None, "", name, obj, None, written)
    return "\n".join(written).strip()


def test_methods_that_a_base_speaks_for_are_one_line_with_links_to_it():
    full = "fl_core.participation.Participation"
    methods = ", ".join(
        f":py:obj:`{name} <{full}.{name}>`" for name in ("eligible", "draw", "expected", "event", "check")
    )
    written = shown("fl_core.participation.Everyone", Everyone, "All.")
    assert written == f"All.\n\nAs :py:obj:`Participation <{full}>` says: {methods}."
    assert skip(None, "class", "draw", Everyone.draw, False, None) is True
    assert target_of("draw", [Everyone]) == f"{full}.draw"
    composed = vars(Composed)
    assert skip(None, "class", "epsilon", composed["epsilon"], False, None) is None  # it has words of its own
    assert skip(None, "class", "check", Composed.check, False, None) is True


def test_a_parameter_and_a_field_are_no_links_to_what_else_has_their_names():
    assert target_of("cohort", scope_of("fl_core.participation.Fixed")) == "fl_core.cohort"
    assert shown("fl_core.participation.Fixed", Fixed, "`cohort` of them.").startswith("``cohort`` of them.")
    assert shown("fl_core.federation.run", fl_core.federation.run, "`state`") == "``state``"
    assert shown("fl_core.federation", fl_core.federation, "`state`") == ":py:obj:`state <fl_core.state>`"
    assert shown("defenses.dp_fedavg", defenses.dp_fedavg, "`clients`") == "``clients``"  # not attacks.clients


def test_a_protocol_shows_no_call():
    assert docstrings.signature(None, "class", "", Participation, None, "(*args, **kwargs)", "") == ("", None)
    assert docstrings.signature(None, "class", "", Fixed, None, "(cohort: int)", "") is None
    unread = "(x=<function a.<lambda>>, y=<factory>, z=<class 'a.B'>)"
    assert docstrings.signature(None, "", "", None, None, unread, "int") == ("(x=..., y=..., z=B)", "int")


def test_methods_without_words_are_shown_and_fields_and_main_are_not():
    def asked(name: str, obj: Any, skipped: bool = True) -> bool | None:
        return skip(None, "class", name, obj, skipped, None)

    assert asked("prepare", Defense.prepare) is False
    assert asked("_private", Defense.prepare) is None
    assert asked("epsilon", Defense.epsilon) is None
    assert asked("main", importlib.import_module("experiments.run").main, skipped=False) is True
    assert asked("documented", Defense.prepare, skipped=False) is None
    assert asked("shared", Footprint.shared, skipped=False) is True


def test_a_value_shows_where_it_can_be_read():
    def values(*written: str) -> list[str]:
        tree = new_document("page")
        tree += [addnodes.desc_signature("", "", addnodes.desc_annotation("", " = " + value)) for value in written]
        docstrings.complete(None, tree)
        return [node.astext() for node in tree.findall(addnodes.desc_annotation)]

    assert values("32", "{'cosine': <function cosine>}", str(list(range(100)))) == [" = 32"]


def test_type_aliases_go_by_their_names():
    found = rooms.aliases()
    assert {"Tree", "Floats", "Bools"} <= set(found)
    assert not {"ROOMS", "Plan", "T"} & set(found)
    docstrings.setup(SimpleNamespace(connect=lambda *_: None))
    assert stringify_annotation(tuple[TypeAliasForwardRef("Tree"), int]) == "tuple[Tree, int]"


def test_a_package_that_is_missing_here_is_named_and_a_room_never_is(monkeypatch: pytest.MonkeyPatch):
    def fails(name: str) -> types.ModuleType:
        raise ModuleNotFoundError(name=missing)

    monkeypatch.setattr(rooms, "modules", lambda: ("attacks.audit",))
    monkeypatch.setattr(rooms.importlib, "import_module", fails)
    missing = "elsewhere.inner"
    assert rooms.imported.__wrapped__() == ((), frozenset({"elsewhere"}))
    missing = "attacks.gone"
    with pytest.raises(ImportError, match="attacks cannot be imported whole"):
        rooms.imported.__wrapped__()
    assert attacks.audit.__doc__
