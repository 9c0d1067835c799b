"""Measure a published table again: `python -m experiments.reproduce NAME [--budget smoke|cpu|full] [--data FOLDER]`.

`all` measures every one. What is finished is skipped, and an interrupted reproduction goes on. The smoke budget takes
seconds and no files; cpu at most half an hour each on two cores; full is the published protocol, for a GPU.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from experiments import reproduce
from experiments.reproduce import summary
from experiments.reproduce.base import BUDGETS, Reproduction
from experiments.store import RESULTS
from experiments.studies.perform import perform
from experiments.sweep import resolved
from experiments.terminal import Parser, command, one_line_errors
from fl_core.errors import InputError, check_choice

INFRASTRUCTURE = ("base", "summary", "__main__")


def reproductions() -> dict[str, type[Reproduction]]:
    """Every reproduction by the name of its module."""
    names = sorted(one.name for one in pkgutil.iter_modules(reproduce.__path__) if one.name not in INFRASTRUCTURE)
    found = {}
    for name in names:
        module = importlib.import_module(f"{reproduce.__name__}.{name}")
        kinds = [
            kind for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Reproduction) and kind.__module__ == module.__name__
        ]  # fmt: skip
        if kinds:
            (found[name],) = kinds
    return found


def configuration(name: str, kind: type[Reproduction], budget: str, folder: Path, more: Sequence[str] = ()) -> Any:
    """The resolved configuration of a reproduction; `{data}` in a budget's overrides is `folder`."""
    chosen = kind.budgets[budget]
    if not GlobalHydra.instance().is_initialized():
        initialize_config_module("conf", version_base="1.3")
    overrides = [one.format(data=folder) for one in chosen.overrides]
    config = resolved(compose("config", overrides=[*overrides, *more]))
    suffix = "" if budget == "cpu" else f"-{budget}"
    return config | {
        "name": f"reproduce/{name}{suffix}",
        "title": kind.title,
        "study": {"_target_": f"{kind.__module__}.{kind.__name__}", "budget": budget, **chosen.options},
    }


def _check_files(configs: Mapping[str, Any]) -> None:
    """Raise InputError, before anything is trained, where a reproduction's data are not in the folder."""
    for name, config in configs.items():
        for file in (config["data"].get("path"), config["data"].get("test_path")):
            if file is not None and not Path(file).is_file():
                raise InputError(f"{name} needs {file}, which is not there; name its folder, as in --data=FOLDER")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.reproduce", __doc__)
    parser.epilog = "\n".join(f"  {name:24}{kind.title}" for name, kind in reproductions().items())
    parser.add_argument("name", help="one of those below, or all")
    parser.add_argument("--budget", default="cpu", help="smoke, cpu or full")
    parser.add_argument(
        "--data", type=Path, default=Path(),
        help="the folder with mnist-train.parquet, mnist-test.parquet, cifar10-train.parquet and cifar10-test.parquet",
    )  # fmt: skip
    parser.add_argument("--workers", default="auto", help="processes; auto is one a core")
    options = parser.parse_args(arguments)
    with one_line_errors():
        found = reproductions()
        check_choice("budget", options.budget, BUDGETS)
        if options.name != "all":
            check_choice("name", options.name, ("all", *found))
            found = {options.name: found[options.name]}
        else:
            found = {name: kind for name, kind in found.items() if options.budget in kind.budgets}
        lacking = [name for name, kind in found.items() if options.budget not in kind.budgets]
        if lacking:
            raise InputError(
                f"{lacking[0]} has no budget {options.budget}; it has {', '.join(found[lacking[0]].budgets)}"
            )
        more = [f"workers={options.workers}"]
        made = {name: configuration(name, kind, options.budget, options.data, more) for name, kind in found.items()}
        _check_files(made)
        for config in made.values():
            perform(config, [], command())
        if options.budget != "smoke":
            print(f"Open:\n  {summary.write(RESULTS / 'reproduce')}")


if __name__ == "__main__":
    main()
