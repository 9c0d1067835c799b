"""A Hydra sweep as one study: every cell is checked before the first one trains, and the report is drawn at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from experiments import report, store
from experiments.cell import Cell, build
from experiments.terminal import command, one_line_errors


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, without Hydra's own part; a value still missing is an error."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items() if name not in ("hydra", "experiment")}


class Study(Callback):
    """Hydra calls this around a sweep (`hydra.callbacks` in conf/config.yaml)."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Build every cell of the sweep, so that a bad value in the last one costs no training."""
        with one_line_errors(debug=config.debug is True):
            for overrides in expand(config):
                self.cells.append(build(resolved(compose(config_name or "config", overrides=overrides))))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Draw the study's figures and tables from the stored runs."""
        with one_line_errors(debug=config.debug is True):
            folders = list(dict.fromkeys(store.RUNS / cell.hash for cell in self.cells))
            if all(Path(folder).exists() for folder in folders):
                report.write(folders, config.name, config.title, command())


def expand(config: DictConfig) -> list[list[str]]:
    """The overrides of each cell, in the order in which Hydra's own sweeper runs them."""
    swept = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    given = [str(one) for one in config.hydra.overrides.task]
    # Later ones win: a field swept on the command line replaces the sweep that the experiment's file asks for.
    overrides = OverridesParser.create().parse_overrides(swept + given)
    return [list(cell) for batch in BasicSweeper.split_arguments(overrides, None) for cell in batch]
