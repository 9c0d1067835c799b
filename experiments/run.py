"""One run, or a sweep: `python -m experiments.run [experiment=NAME] [field=value ...]`.

`--help` lists the groups; conf/ documents every field where it stands.
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments import report
from experiments.cell import build
from experiments.execute import execute
from experiments.sweep import resolved
from experiments.terminal import command, one_line_errors


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def app(config: DictConfig) -> None:
    """Run one cell; in a sweep, Hydra calls this once a cell, after `sweep.Study` has checked them all."""
    settings = HydraConfig.get()
    with one_line_errors(debug=config.debug is True):
        cell = build(resolved(config))
        sweeping = settings.mode == RunMode.MULTIRUN
        epsilon = config.defense.get("epsilon")
        number = f"cell {settings.job.num + 1}" if sweeping else str(config.name)
        label = number if epsilon is None else f"{number}, ε = {epsilon:g}"
        folder = execute(cell, label)
        if not sweeping:
            report.write([folder], config.name, config.title, command())


def main() -> None:
    with one_line_errors(debug="debug=true" in command().split()):
        app()


if __name__ == "__main__":
    main()
