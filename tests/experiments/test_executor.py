"""Where a cell's work runs changes no byte, and what dies or fails on the way is not lost."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from experiments import execute, paper, tasks
from experiments.cell import build
from experiments.executor import Executor, Processes, Ray
from experiments.sweep import resolved
from fl_core.errors import InputError
from tests.experiments.conftest import STUDY, SWEEP, TINY, contents

RUN = [sys.executable, "-m", "experiments.run"]
DIVERGES = [*TINY, "hydra.mode=MULTIRUN", "algorithm.lr=0.2,1e30", "backend=vmap", "workers=1"]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="the extra `slurm` is not installed"
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes by /proc")


def processes(word: str) -> set[int]:
    """The processes that have `word` in their command line and stem from this one, or did before it was orphaned."""
    found, parents = set(), {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if word in (path / "cmdline").read_text():
                found.add(int(path.name))
        except OSError:
            continue

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 1)
        return pid == os.getpid()

    return {pid for pid in found if ours(pid)}


def kill_one(process: subprocess.Popen[str], word: str) -> None:
    """Once a round is on disk, kill one of the processes that have `word` in their command line."""
    wait_for_a_round(process)
    os.kill(max(processes(word)), signal.SIGKILL)


def wait_for_a_round(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not list(Path("results/runs").glob("*.partial/train-*.checkpoint.safetensors")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def start(*arguments: str) -> subprocess.Popen[str]:
    # A shell's background jobs, these tests among them, may have been told to ignore an interrupt.
    heard = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen([*RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)


# What cannot be used


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["executor=rya"], "executor has no option 'rya'; allowed: processes, ray"),
        (["executor.retries=-1"], "executor.retries is -1; it must be a whole number at least 0"),
        (["executor=ray"], "executor.address has no value"),
        (["executor=ray", "executor.address=ray://head:10001"], "it must be auto or host:port"),
        (["executor=ray", "executor.address=auto", "executor.cpus=0"], "executor.cpus is 0"),
        ([*SWEEP, "hydra/launcher=submitit_slum"], "hydra/launcher has no option 'submitit_slum'"),
    ],
)
def test_a_bad_executor_is_one_line_with_exit_code_2(arguments, says, here, mirage, capsys):
    with pytest.raises(SystemExit) as stopped:
        mirage(*arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not list(here.iterdir())


@needs_ray
@pytest.mark.parametrize("arguments", [TINY, SWEEP])
def test_a_cluster_that_does_not_answer_is_one_line_within_seconds(arguments, here, mirage, capsys):
    began = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        mirage(*arguments, "executor=ray", f"executor.address=127.0.0.1:{free_port()}")
    assert stopped.value.code == 2
    assert time.monotonic() - began < 20
    said = capsys.readouterr().err
    assert "no Ray cluster can be used at executor.address=127.0.0.1:" in said
    assert said.count("\n") == 1
    assert not list(here.iterdir())


def test_a_missing_extra_is_named(here, mirage, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stopped:
        mirage(*SWEEP, "executor=ray", "executor.address=auto")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().endswith("which is not installed: pip install 'mirage-fl[ray]'")
    for name in ("submitit_local.yaml", "submitit_slurm.yaml"):
        if name in ConfigStore.instance().repo["hydra"]["launcher"]:
            monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], name)
    with pytest.raises(SystemExit) as stopped:
        mirage(*SWEEP, "hydra/launcher=submitit_slurm")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().endswith("needs Hydra's submitit launcher: pip install 'mirage-fl[slurm]'")
    assert not list(here.iterdir())


@needs_submitit
def test_slurm_without_slurm_is_one_line(here, mirage, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as stopped:
        mirage(*SWEEP, "hydra/launcher=submitit_slurm")
    assert stopped.value.code == 2
    assert "sbatch and srun, which are not on this machine's PATH" in capsys.readouterr().err


# How many workers


def test_a_gpu_gets_one_process_and_a_number_is_taken_as_it_is():
    executor = Processes(retries=0)
    assert executor.workers("auto", torch.device("cuda")) == 1
    assert executor.workers("auto", torch.device("cpu")) >= 1
    assert executor.workers(3, torch.device("cuda")) == 3


@needs_ray
def test_ray_gives_as_many_workers_as_the_cluster_has_room_for(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 9.0, "GPU": 1.0})
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    executor = Ray(retries=0, address="auto", cpus=2, gpus=0)
    assert executor.workers("auto", cpu) == 4
    assert executor.workers(3, cpu) == 3
    for wanted in (5, 1):
        with pytest.raises(InputError, match="room for 4"):
            executor.workers(wanted, cpu)
    with pytest.raises(InputError, match=r"executor\.gpus is 0"):
        executor.workers("auto", cuda)
    assert replace(executor, gpus=0.5).workers("auto", cuda) == 2
    with pytest.raises(InputError, match="room for 1"):
        replace(executor, gpus=1).workers("auto", cuda)


# Workers that die


class Died(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class Deadly(Executor):
    """Every worker dies in the first call that it is given, up to the life of the last cat."""

    lives: list[int]

    def connect(self) -> None:
        pass

    def died(self) -> tuple[type[Exception], ...]:
        return (Died,)

    def workers(self, wanted: int | str, device: torch.device) -> int:
        return 1

    @contextmanager
    def parallel(self, workers: int) -> Iterator[Callable[..., Any]]:
        def run(calls: Any) -> None:
            for call, arguments, _ in calls:
                if self.lives:
                    self.lives.pop()
                    raise Died
                call(*arguments)

        yield run


@pytest.mark.heavy
def test_a_cell_fails_when_its_workers_died_once_more_than_they_may(here, capsys):
    with initialize_config_module("conf", version_base="1.3"):
        cell = build(resolved(compose("config", overrides=[*TINY, "attack.victims=0", "backend=vmap"])))
    with pytest.raises(InputError, match=r"a worker died in each of 3 tries.*raise executor\.retries"):
        execute.execute(replace(cell, executor=Deadly(retries=2, lives=[9] * 3)))
    assert capsys.readouterr().err.count("died; going on from what is on disk") == 2
    folder = execute.execute(replace(cell, executor=Deadly(retries=2, lives=[9] * 2)))
    assert (folder / "leakage.json").exists()


@needs_proc
@pytest.mark.heavy
def test_a_killed_worker_process_costs_no_cell_and_no_byte(here, reference):
    process = start(*SWEEP, "workers=2")
    kill_one(process, "popen_loky_posix")
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert said == "mirage: a worker of cell 1, ε = 8 died; going on from what is on disk (executor.retries: 2 left)\n"
    assert contents() == reference


@needs_proc
@pytest.mark.heavy
def test_an_interrupt_stops_the_sweep_at_once(here):
    process = start(*SWEEP, "workers=2")
    wait_for_a_round(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "mirage: interrupted; the same command goes on from here"
    assert len(list(Path("results/runs").glob("*.partial"))) == 2  # the cell and its replicas
    assert not list(Path("results/runs").glob("*.partial/failed.json"))
    assert not STUDY.exists()


# Cells that fail


@pytest.mark.heavy
def test_a_failed_cell_is_put_down_and_the_sweep_goes_on_with_exit_code_3(here, mirage, capsys):
    why = "training diverged in round"
    for _ in range(2):  # the same command tries it again
        with pytest.raises(SystemExit) as stopped:
            mirage(*DIVERGES)
        assert stopped.value.code == 3
        printed = capsys.readouterr()
        first, last = printed.err.splitlines()
        assert first.startswith(f"mirage: cell 2 failed, the sweep goes on: {why}")
        assert last == "mirage: 1 of 2 cells failed; the same command tries them again"
        assert f"Failed, and not in the table: algorithm.lr=1e+30: {why}" in printed.out
    (told,) = Path("results/runs").glob("*.partial/failed.json")
    facts = json.loads(told.read_text())
    assert facts["type"] == "InputError"
    assert facts["error"].startswith(why)
    assert "Traceback" in facts["traceback"]
    assert set(facts) == {"cell", "error", "revision", "traceback", "type", "when"}
    manifest = json.loads(Path("results/single/manifest.json").read_text())
    assert [one["cell"] for one in manifest["failed"]] == ["algorithm.lr=1e+30"]
    assert len(manifest["cells"]) == 1
    table = Path("results/single/table.md").read_text()
    assert f"- `algorithm.lr=1e+30`: {why}" in table
    paper.draw(Path("results/single"))
    assert Path("results/single/table.md").read_text() == table


@pytest.mark.heavy
def test_a_fault_of_our_own_fails_its_cell_alone_and_is_mended_by_a_later_run(
    here, mirage, reference, capsys, monkeypatch
):
    original = tasks.train

    def breaks_with_noise(config: dict[str, Any], folder: Path, shard: int) -> None:
        if config["defense"]["epsilon"] == 8:
            raise RuntimeError("a bug\nof two lines")
        original(config, folder, shard)

    monkeypatch.setattr(tasks, "train", breaks_with_noise)
    with pytest.raises(SystemExit) as stopped:
        mirage(*SWEEP, "workers=1")
    assert stopped.value.code == 3
    assert "Failed, and not in the table: defense.epsilon=8: RuntimeError: a bug\n" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="a bug"):  # a single run is no sweep
        mirage(*SWEEP[:-1], "hydra.mode=RUN", "defense.epsilon=8", "workers=1")
    monkeypatch.setattr(tasks, "train", original)
    mirage(*SWEEP, "workers=1")
    assert contents() == reference
    assert not list(Path("results/runs").glob("*.partial"))


def test_without_a_finished_cell_there_is_no_report(here, mirage, capsys, monkeypatch):
    monkeypatch.setattr(tasks, "train", lambda *_: 1 / 0)
    with pytest.raises(SystemExit) as stopped:
        mirage(*SWEEP, "workers=1")
    assert stopped.value.code == 3
    assert "mirage: 2 of 2 cells failed" in capsys.readouterr().err
    assert not STUDY.exists()


# Other machines


@needs_submitit
@needs_proc
@pytest.mark.heavy
def test_a_killed_job_of_the_launcher_is_started_again_and_no_byte_changes(here, reference):
    process = start(*SWEEP, "workers=1", "hydra/launcher=submitit_local")
    kill_one(process, "submitit.core._submit")
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert said.startswith("mirage: a job died; going on from what is on disk (executor.retries: 2 left): Job ")
    assert said.count("\n") == 1
    assert contents() == reference
    assert list(Path("results/runs/.submitit").glob("*/*_submitted.pkl"))
    assert {path.name for path in Path().iterdir()} == {"results"}


@needs_submitit
@pytest.mark.heavy
def test_a_cell_that_fails_in_a_job_of_the_launcher_is_seen_on_disk(here):
    process = start(*DIVERGES, "hydra/launcher=submitit_local")
    printed, said = process.communicate()
    assert process.returncode == 3, said
    assert said == "mirage: 1 of 2 cells failed; the same command tries them again\n"
    assert "Failed, and not in the table: algorithm.lr=1e+30: training diverged in round" in printed


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes on this machine, with one core each."""
    import ray
    from ray.cluster_utils import Cluster

    quiet = pytest.MonkeyPatch()
    quiet.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        found.add_node(num_cpus=1)
        yield found.address
    finally:
        ray.shutdown()
        found.shutdown()
        quiet.undo()


@needs_ray
@needs_proc
@pytest.mark.heavy
def test_a_ray_cluster_of_two_nodes_gives_the_same_bytes_even_where_a_worker_is_killed(here, reference, cluster):
    process = start(*SWEEP, "executor=ray", f"executor.address={cluster}")
    kill_one(process, "ray::PoolActor")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert said == "mirage: a worker of cell 1, ε = 8 died; going on from what is on disk (executor.retries: 2 left)\n"
    assert "ray" not in printed.replace("ordinary", "").lower()
    assert contents() == reference
    runs = [json.loads(path.read_text()) for path in Path("results/runs").glob("*/manifest.json")]
    assert {run["workers"] for run in runs} == {2}
