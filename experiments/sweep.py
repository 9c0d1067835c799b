"""A Hydra sweep as one study: every cell is checked before the first one trains, a cell that fails is put down and the
sweep goes on, and the report is drawn at the end from the cells that are there.

Cells run in this process one after another, or wherever Hydra's launcher puts them; what became of a cell is read off
the disk alone.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from experiments import store, sweep_paper
from experiments.cell import Cell, build
from experiments.execute import execute
from experiments.store import partial
from experiments.sweep_paper import Failed
from experiments.terminal import CELL_FAILED, choose, command, one_line, one_line_errors, say
from fl_core.checkpoint import read_json, write_json
from fl_core.errors import InputError


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, without Hydra's own part; a value still missing is an error."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items() if name not in ("hydra", "experiment")}


def check_fields(overrides: Iterable[str]) -> None:
    """InputError where a command line takes out a field that every run needs, or adds one that nothing reads.

    What a group's option holds may be taken out and added, such as an attack; the rest may not.
    """
    for one in overrides:
        name = one.lstrip("~+").split("=")[0]
        around, _, field = name.rpartition(".")
        if one[0] not in "~+" or around not in ("", "attack", "signals") or "@" in name:
            continue
        if one.startswith("~"):
            raise InputError(f"{name} cannot be taken out, since every run needs it; set it or leave it")
        there = OmegaConf.select(compose("config"), around) if around else compose("config")
        if field not in there:
            raise InputError(choose(f"there is no option {name}", field, sorted(map(str, there))))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sweep that is under way.

    `cells` are pairs of a run's hash and what sets it apart in the sweep, such as `defense.epsilon=8`.
    """

    cells: tuple[tuple[str, str], ...]
    name: str
    title: str
    retries: int


_plans: list[Plan] = []
"""Of this process. Hydra keeps its callbacks to itself, and ends them without a word where a launcher's job died."""


class Study(Callback):
    """Hydra calls this around a sweep (`hydra.callbacks` in conf/config.yaml)."""

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Build every cell of the sweep, so that a bad value in the last one costs no training."""
        with one_line_errors(debug=config.debug is True):
            if config.study is not None:
                raise InputError(
                    f"{config.name} is one study over its own points, and no sweep; give it lists, as in "
                    "study.FIELD=[1,2], and call it without --multirun or a launcher"
                )
            check_fields(config.hydra.overrides.task)
            away = runs_away(config.hydra)
            check_slurm(config.hydra)
            swept = expand(config)
            cells = []
            for overrides in swept:
                composed = compose(config_name or "config", overrides=overrides)
                cell = build(settled(composed, config.hydra), here=not away)
                own = " ".join(one for one in overrides if not all(one in others for others in swept))
                cells.append((cell.hash, own or str(config.name)))
                executor = cell.executor
            for run, _ in cells:
                if (store.RUNS / run).exists():
                    store.load(store.RUNS / run)
            if not away:
                executor.connect()
            for run, _ in cells:
                (partial(store.RUNS / run) / "failed.json").unlink(missing_ok=True)
            _plans.append(Plan(cells=tuple(cells), name=config.name, title=config.title, retries=executor.retries))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Draw the study's figures and tables from the stored runs."""
        with one_line_errors(debug=config.debug is True):
            finish(_plans[-1])


def runs_away(settings: Any) -> bool:
    """Whether Hydra's launcher runs the cells in other processes than this one; `settings` are Hydra's own."""
    return "submitit" in str(settings.launcher._target_)


def settled(config: DictConfig, settings: Any) -> dict[str, Any]:
    """`resolved`, and where a launcher runs the cells, with the device that its jobs have.

    A run is named after its device, and the machine that starts the sweep cannot look at the one that runs it.
    """
    plain = resolved(config)
    if runs_away(settings) and plain["device"] == "auto":
        asked = (settings.launcher.get(field) for field in ("gpus_per_node", "gpus_per_task", "gres"))
        plain["device"] = "cuda" if any(asked) else "cpu"
    return plain


def check_slurm(settings: Any) -> None:
    """InputError where the launcher wants SLURM and this machine has none."""
    if "SlurmLauncher" in settings.launcher._target_ and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            "hydra/launcher=submitit_slurm needs SLURM's sbatch and srun, which are not on this machine's PATH; start "
            "it on a login node, or use hydra/launcher=submitit_local"
        )


def expand(config: DictConfig) -> list[list[str]]:
    """The overrides of each cell, in the order in which Hydra's own sweeper runs them."""
    swept = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    given = [str(one) for one in config.hydra.overrides.task]
    # Later ones win: a field swept on the command line replaces the sweep that the experiment's file asks for.
    overrides = OverridesParser.create().parse_overrides(swept + given)
    return [list(cell) for batch in BasicSweeper.split_arguments(overrides, None) for cell in batch]


def attempt(cell: Cell, label: str, away: bool) -> None:
    """Run one cell of a sweep. A failure goes to `<hash>.partial/failed.json` and one line on stderr.

    Nothing is raised but an interrupt: the sweep goes on, and the same command tries the cell again.
    """
    try:
        execute(cell, label, wait=away)
    except Exception as error:
        line = one_line(error)
        if cell.config["debug"]:
            traceback.print_exc()
        say(f"{label} failed, the sweep goes on: {line}")
        facts = {
            "cell": label,
            "error": line,
            "type": type(error).__name__,
            "traceback": traceback.format_exc(),
            "revision": store.revision(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(partial(store.RUNS / cell.hash) / "failed.json", facts)


def finish(plan: Plan, lost: str = "its job ended without a word") -> None:
    """Draw the report from the cells that finished and name the others; exit code 3 where there are any.

    `lost` is said of a cell that left no word of its own.
    """
    folders, failed = [], []
    for run, label in dict(plan.cells).items():
        if (store.RUNS / run).exists():
            folders.append(store.RUNS / run)
        else:
            told = partial(store.RUNS / run) / "failed.json"
            failed.append(Failed(run=run, cell=label, error=read_json(told)["error"] if told.exists() else lost))
    if folders:
        sweep_paper.write(folders, plan.name, plan.title, command(), failed)
    if failed:
        say(f"{len(failed)} of {len(failed) + len(folders)} cells failed; the same command tries them again")
        sys.exit(CELL_FAILED)


def with_lost_jobs_again(sweep: Callable[[], Any]) -> None:
    """Call `sweep`, and again, up to `executor.retries` times, where a job of the submitit launcher was lost.

    A job that was killed leaves no answer, and the launcher then gives up on the whole sweep. Cells that finished are
    skipped, and those still at work elsewhere are waited for.
    """
    for tries in itertools.count(1):
        try:
            sweep()
            return
        except RuntimeError as error:
            submitit = sys.modules.get("submitit")
            if submitit is None or not isinstance(error, submitit.core.utils.UncompletedJobError):
                raise
            plan, line = _plans[-1], str(error).splitlines()[0]
            left = plan.retries + 1 - tries
            if left <= 0:
                finish(plan, line)
                return
            say(f"a job died; going on from what is on disk (executor.retries: {left} left): {line}")
