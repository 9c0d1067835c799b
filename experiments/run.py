"""One run, a sweep, or a study: `python -m experiments.run [experiment=NAME] [field=value ...]`.

`--help` lists the groups (conf/hydra/help/mirage.yaml); conf/ documents every field where it stands.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments import sweep, sweep_paper
from experiments.cell import build
from experiments.execute import execute
from experiments.studies.perform import perform
from experiments.terminal import command, one_line_errors
from fl_core.errors import InputError


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def app(config: DictConfig) -> None:
    """Run one cell; in a sweep, Hydra calls this once a cell, after `sweep.Study` has checked them all."""
    settings = HydraConfig.get()
    with one_line_errors(debug=config.debug is True):
        sweep.check_fields(settings.overrides.task)
        if settings.mode == RunMode.RUN and sweep.runs_away(settings):
            raise InputError(
                "hydra/launcher starts the cells of a sweep, and this is none; add --multirun, or leave it out"
            )
        if config.study is not None:
            perform(sweep.resolved(config), list(settings.overrides.task), command())
            return
        cell = build(sweep.settled(config, settings))
        epsilon = config.defense.get("epsilon")
        bound = "" if epsilon is None else f", ε = {epsilon:g}"
        if settings.mode == RunMode.MULTIRUN:
            sweep.attempt(cell, f"cell {settings.job.num + 1}{bound}", away=sweep.runs_away(settings))
        else:
            folder = execute(cell, f"{config.name}{bound}")
            sweep_paper.write([folder], config.name, config.title, command())


def groups() -> str:
    """The groups of conf/ with their options, for `--help`."""
    loader = GlobalHydra.instance().config_loader()
    names = [name for name in loader.list_groups("") if name != "hydra"]
    lines = [(name, ", ".join(loader.get_group_options(name))) for name in ("experiment", *names) if name]
    return "\n".join(
        textwrap.fill(text, 116, initial_indent=f"    {name:<15} ", subsequent_indent=" " * 20, break_on_hyphens=False)
        for name, text in dict(lines).items()
    )


OmegaConf.register_new_resolver("groups", groups, replace=True)


def check_flags(arguments: Sequence[str]) -> None:
    """InputError for what looks like a flag and is none of Hydra's, which would answer with a page."""

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; fields are set as FIELD=VALUE, and --help lists them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args([one for one in arguments if one != "--version"])


def main() -> None:
    with one_line_errors(debug="debug=true" in command().split()):
        check_flags(sys.argv[1:])
        sweep.with_lost_jobs_again(app)


if __name__ == "__main__":
    main()
