"""One run, a sweep, or a study: `python -m experiments.run [experiment=NAME] [field=value ...]`.

`--help` lists the groups; conf/ documents every field where it stands.
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments import sweep, sweep_paper
from experiments.cell import build
from experiments.execute import execute
from experiments.studies.perform import perform
from experiments.terminal import command, one_line_errors


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def app(config: DictConfig) -> None:
    """Run one cell; in a sweep, Hydra calls this once a cell, after `sweep.Study` has checked them all."""
    settings = HydraConfig.get()
    with one_line_errors(debug=config.debug is True):
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


def main() -> None:
    with one_line_errors(debug="debug=true" in command().split()):
        sweep.with_lost_jobs_again(app)


if __name__ == "__main__":
    main()
