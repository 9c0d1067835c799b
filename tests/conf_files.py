"""The YAML files of conf/, read with their comments: which options each sets, and which of them it documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

CONF = Path(__file__).parent.parent / "conf"

NOT_OPTIONS = ("defaults", "hydra")
"""Hydra's own, which refuses what it does not know."""

ENTRIES = (
    "attack.membership",
    "defense.defenses",
    "defenses",
    "membership",
    "study.models",
    "study.cases",
    "study.regimes",
)
"""Mappings whose keys are names that a user chooses."""

OPEN = ("settings", "grid", "options")
"""Mappings of another thing's options, which its own file documents."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option where it stands: its dotted `path` in the file, the `target` that takes it, under which `name`.

    A chosen name in a path is `*`; an entry of such a mapping that has no `_target_` has the target `TARGET:PATH`.
    `documented` says whether a comment on its line or just above it tells what it is, or one at the mapping around it
    that names it.
    """

    file: Path
    path: str
    target: str | None
    name: str
    documented: bool

    @property
    def within_entry(self) -> bool:
        """Whether it belongs to an entry without a target, which the target around it takes as a mapping."""
        return self.target is not None and ":" in self.target

    def __str__(self) -> str:
        return (
            f"{self.file.relative_to(CONF.parent) if self.file.is_relative_to(CONF) else self.file.name}: {self.path}"
        )


@dataclass(frozen=True, kw_only=True)
class ConfFile:
    """A YAML file of conf/: its `package` (the dotted path at which Hydra puts it), what it inherits, its options."""

    file: Path
    package: str
    target: str | None
    inherits: tuple[str, ...]
    header: str
    options: tuple[Option, ...] = field(repr=False)

    @property
    def group(self) -> str:
        return "" if self.file.parent == CONF else self.file.parent.name


PACKAGES = {"reconstruction": "attack.reconstruction", "experiment": "", "schedule": "client_schedule"}


def conf_files() -> list[ConfFile]:
    """All of conf/, but for what is Hydra's own."""
    return [read(path) for path in sorted(CONF.rglob("*.yaml")) if "hydra" not in path.relative_to(CONF).parts]


def read(path: Path) -> ConfFile:
    """One file; its options in the order of the text."""
    text = path.read_text()
    root = yaml.compose(text)
    assert isinstance(root, MappingNode)
    lines = text.splitlines()
    folder = path.parent.name
    package = "" if path.parent == CONF else PACKAGES.get(folder, folder)
    top = {key.value: value for key, value in root.value}
    inherits = tuple(
        one.value
        for one in getattr(top.get("defaults"), "value", [])
        if isinstance(one, ScalarNode) and one.value != "_self_"
    )
    options = tuple(_options(root, lines, path, "", _target(root), ""))
    header = "\n".join(line for line in lines[: root.start_mark.line] if line.startswith("#"))
    return ConfFile(file=path, package=package, target=_target(root), inherits=inherits, header=header, options=options)


def _target(node: MappingNode) -> str | None:
    return next((value.value for key, value in node.value if key.value == "_target_"), None)


def _options(
    node: MappingNode, lines: list[str], file: Path, path: str, target: str | None, around: str
) -> Iterator[Option]:
    """`around` is the comment at the mapping itself, which may name its options."""
    for key, value in node.value:
        name = str(key.value)
        if name.startswith("_") or (not path and name in NOT_OPTIONS):
            continue
        comment = comment_at(key, value, lines)
        chosen = path in ENTRIES
        here = f"{path}.{'*' if chosen else name}".lstrip(".")
        if not chosen:
            told = bool(comment) or f"`{name}`" in around
            yield Option(file=file, path=here, target=target, name=name, documented=told)
        if isinstance(value, MappingNode) and name not in OPEN:
            inner = _target(value) or (f"{target}:{here}" if chosen else target)
            yield from _options(value, lines, file, here, inner, f"{around} {comment}" if chosen else comment)


def comment_at(key: Node, value: Node, lines: list[str]) -> str:
    """The comment after an option on its line, or on the lines just above it; empty where there is none."""
    row = key.start_mark.line
    own_line = lines[row][: key.start_mark.column].strip() == ""
    end = value.end_mark.line if not (isinstance(value, MappingNode) and not value.flow_style) else row
    found = []
    if own_line:  # one of several options on a line has no comment of its own
        at = value.end_mark.column if end == value.end_mark.line and end >= row and value.end_mark.line == end else 0
        rest = lines[end][at:] if at and end != row else lines[row]
        marked = re.search(r"(?:^|\s)#\s*(\S.*)$", _without_strings(rest))
        if marked:
            found.append(marked.group(1))
        above = row - 1
        while above >= 0 and lines[above].strip().startswith("#"):
            found.append(lines[above].strip().lstrip("# "))
            above -= 1
        if above < 0:  # the file's header speaks of the file
            found = found[:1] if marked else []
    return " ".join(found)


def _without_strings(line: str) -> str:
    return re.sub(r"\"[^\"]*\"|'[^']*'", lambda quoted: "_" * len(quoted.group()), line)


def undocumented(files: list[ConfFile]) -> list[str]:
    """Options that no comment explains where they are defined first.

    A group's file documents each of its options itself, unless it inherits them from one that does; what only sets a
    value (an experiment's file, an attack that is listed again with other options) may lean on the place that defines
    the option.
    """
    by_file = {(one.group, one.file.stem): one for one in files}
    targets = {(option.target, option.name) for one in files for option in one.options if option.documented}
    paths = {
        f"{one.package}.{option.path}".lstrip(".")
        for one in files
        if one.group != "experiment" and one.file.stem != "attack_update"
        for option in one.options
        if option.documented
    }
    packages = {one.package for one in files} | {"attack.membership", "defense.defenses"}
    found = []
    for one in files:
        inherited = {
            option.path
            for name in one.inherits
            if (one.group, name) in by_file
            for option in by_file[one.group, name].options
            if option.documented
        }
        defines = one.target is not None and not one.inherits
        for option in one.options:
            elsewhere = option.path in inherited
            if not (defines and "." not in option.path):
                elsewhere |= option.target is not None and (option.target, option.name) in targets
                elsewhere |= one.group == "experiment" and (option.path in paths or option.path in packages)
            if not (option.documented or elsewhere):
                found.append(str(option))
    return found
