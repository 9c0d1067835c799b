"""What there is to call: `python -m experiments`."""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

from experiments.terminal import say

ROOT = Path(__file__).parent
INSIDE = ("__main__", "secagg_client")
"""Modules that are called, but by no person."""


def commands(folder: Path) -> dict[str, str]:
    """The modules of a folder that can be called, and the first sentence of what each says of itself."""
    files = [path for path in sorted(folder.glob("*.py")) if path.stem not in (*INSIDE, "__init__")]
    found = {path.stem: path.read_text(encoding="utf-8") for path in files}
    called = {name: text for name, text in found.items() if 'if __name__ == "__main__"' in text}
    packages = {path.parent.name: path.read_text(encoding="utf-8") for path in folder.glob("*/__main__.py")}
    return {name: first_sentence(text) for name, text in sorted((called | packages).items())}


def first_sentence(source: str) -> str:
    """Of a module's docstring, up to its first full stop or colon, in one line."""
    paragraph = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    return paragraph.split(": `python")[0].split(". ")[0].rstrip(".:")


def listing() -> str:
    """The commands, a line or two each, and the names of the benchmarks."""

    def entries(names: dict[str, str], package: str) -> list[str]:
        return [
            textwrap.fill(
                f"{f'{package}.{name}':<27} {told}", 118, initial_indent="  ", subsequent_indent=" " * 30,
                break_on_hyphens=False, break_long_words=False,
            )
            for name, told in names.items()
        ]  # fmt: skip

    benchmarks = ", ".join(commands(ROOT / "benchmarks"))
    return "\n".join(
        [
            "Mirage: how much a federated-learning run leaks, to whom, and what each defence buys.",
            "",
            "Commands, as in `python -m experiments.run`; each takes --help:",
            *entries(commands(ROOT), "experiments"),
            "",
            "Measured claims, as in `python -m experiments.benchmarks.lanes --help`:",
            textwrap.fill(benchmarks, 118, initial_indent="  ", subsequent_indent="  "),
            "",
            "Start with `python -m experiments.run experiment=leakage_vs_epsilon`; results go to results/.",
        ]
    )


def main() -> None:
    if set(sys.argv[1:]) - {"-h", "--help"}:
        name = sys.argv[1].removeprefix("experiments.")
        say(f"python -m experiments only lists the commands; call one as python -m experiments.{name}")
        sys.exit(2)
    print(listing())


if __name__ == "__main__":
    main()
