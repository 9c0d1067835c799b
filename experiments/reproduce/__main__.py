"""Measure a published table again: `python -m experiments.reproduce NAME [--budget smoke|cpu|full] [--data FOLDER]`.

`all` measures every one. What is finished is skipped, and an interrupted reproduction goes on. The smoke budget takes
seconds and no files; cpu about half an hour at most on two idle cores; full is the published protocol on a GPU, and
says where it is not, such as with pictures that were saved again as JPEG.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from experiments import reproduce
from experiments.reproduce import summary
from experiments.reproduce.base import BUDGETS, JPEG, Reproduction
from experiments.store import RESULTS
from experiments.studies.perform import perform
from experiments.sweep import resolved
from experiments.terminal import Parser, command, one_line_errors, say
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
    overrides = [_filled(one, str(folder)) for one in chosen.overrides]
    config = resolved(compose("config", overrides=[*overrides, *more]))
    path = config["data"].get("path")
    altered = {"altered": JPEG} if budget == "full" and path and holds_jpeg(Path(path)) else {}
    suffix = "" if budget == "cpu" else f"-{budget}"
    return config | {
        "name": f"reproduce/{name}{suffix}",
        "title": kind.title,
        "study": {"_target_": f"{kind.__module__}.{kind.__name__}", "budget": budget, **altered, **chosen.options},
    }


def _filled(override: str, folder: str) -> str:
    """`{data}` in an override put in its place; in quotes, since a path may hold what Hydra reads as more than text."""
    if "{data}" not in override:
        return override
    field, _, value = override.partition("=")
    escaped = folder.replace('"', '\\"')
    return f'{field}="{value.format(data=escaped)}"'


def left_out(made: Mapping[str, Any]) -> dict[str, str]:
    """Of these configurations those whose files are not there, and which; none where that holds for all that read any,
    so that a mistyped folder is an error."""
    files = {
        name: [Path(str(config["data"][field])) for field in ("path", "test_path") if config["data"].get(field)]
        for name, config in made.items()
    }
    absent = {name: next((str(file) for file in each if not file.is_file()), "") for name, each in files.items()}
    found = {name: file for name, file in absent.items() if file}
    return {} if len(found) == sum(bool(each) for each in files.values()) else found


def holds_jpeg(file: Path) -> bool:
    """Whether a parquet file's first picture is a JPEG; the data sets are published without loss. False where it cannot
    be read, which the loader explains."""
    try:
        (first,) = next(pq.ParquetFile(file).iter_batches(1)).to_pylist()
    except (OSError, pa.ArrowException, StopIteration):
        return False
    encoded = [value.get("bytes") or b"" for value in first.values() if isinstance(value, dict)]
    return any(one.startswith(b"\xff\xd8") for one in encoded)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.reproduce", __doc__)
    parser.epilog = "\n".join(f"  {name:24}{kind.title}" for name, kind in reproductions().items())
    parser.add_argument("name", help="one of those below, or all")
    parser.add_argument("--budget", default="cpu", help="smoke, cpu or full")
    parser.add_argument(
        "--data", type=Path, default=Path(),
        help="the folder with mnist-train.parquet, mnist-test.parquet, cifar10-train.parquet and cifar10-test.parquet; "
        "fedmia's full budget reads cifar100-train.parquet and cifar100-test.parquet",
    )  # fmt: skip
    parser.add_argument("--workers", default="auto", help="processes; auto is one a core")
    options = parser.parse_args(arguments)
    with one_line_errors():
        found = reproductions()
        check_choice("budget", options.budget, BUDGETS)
        if options.name != "all":
            check_choice("name", options.name, ("all", *found))
            found = {options.name: found[options.name]}
        more = [f"workers={options.workers}"]
        made = {name: configuration(name, kind, options.budget, options.data, more) for name, kind in found.items()}
        absent = left_out(made)
        for name, config in made.items():
            file = config["data"].get("path")
            if name not in absent and file and not Path(str(file)).is_file():
                raise InputError(f"{file} is not a file; give the folder that holds it with --data")
        for name, file in absent.items():
            say(f"{name} is left out: {file} is not a file")
        for name, config in made.items():
            if name not in absent:
                perform(config, [], command())
        if options.budget != "smoke":
            print(f"Open:\n  {summary.write(RESULTS / 'reproduce')}")


if __name__ == "__main__":
    main()
