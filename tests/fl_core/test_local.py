"""Local training as jobs: what they take of memory, and processes that share them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fl_core.algorithms.fedavg import FedAvg
from fl_core.cohort import tiles
from fl_core.data import ImageSet
from fl_core.federation import Federation, run
from fl_core.sampling import Shuffled
from tests.fl_core.test_engine import VARIETY, federation, same_bits


@pytest.mark.heavy
def test_worker_processes_change_no_bit():
    for changes in (VARIETY["fedavg under DP-SGD"], VARIETY["scaffold"], VARIETY["fedbuff"]):
        for memory in (None, 1):  # memory short of one lane takes a batch's examples one by one, however many work
            whole = federation(**changes, memory=memory)
            assert same_bits(run(whole, workers=2), run(whole))


@pytest.mark.heavy
def test_a_script_without_a_main_guard_may_use_worker_processes_and_a_model_of_its_own(tmp_path: Path):
    script = tmp_path / "mine.py"
    script.write_text(
        """
import torch
from torch import nn
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.federation import Federation, run
from fl_core.sampling import Shuffled

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, pixels):
        return self.layer(pixels.flatten(1))

federation = Federation(
    model=Mine(), data=ImageSet(torch.rand(20, 1, 2, 2), torch.arange(20) % 2, ("a", "b")),
    owners=torch.arange(20) % 4, members=torch.ones(1, 20, dtype=torch.bool), sizes=torch.full((4,), 5),
    algorithm=FedAvg(sampler=Shuffled(batch_size=5), lr=0.1), defense=Defense(), rounds=2, run=0, replica_ids=[0],
)
print("finished", run(federation, workers=2).round)
"""
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "finished 2\n", done.stderr


CAPPED = """
import resource, sys, torch
torch.set_num_threads(1)
from tests.fl_core.test_local import wide
from fl_core.federation import run
run(wide(8, memory=None if sys.argv[1] == "all" else 60_000_000))  # imports and first calls, before the cap
used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
try:
    run(wide(96, memory=10**12 if sys.argv[1] == "all" else 60_000_000))
except RuntimeError as error:
    assert "memory" in str(error), error
    print("died")
else:
    print("passed")
"""


def wide(clients: int, memory: int | None) -> Federation:
    """A cohort whose lanes take 5 MB each before they train, and 35 MB as they do."""
    return federation(
        model=nn.Sequential(nn.Flatten(), nn.Linear(36, 34_000), nn.Linear(34_000, 3)),
        data=ImageSet(torch.rand(clients, 1, 6, 6), torch.arange(clients) % 3, ("a", "b", "c")),
        owners=torch.arange(clients),
        members=torch.ones(1, clients, dtype=torch.bool),
        sizes=torch.ones(clients, dtype=torch.long),
        replica_ids=[0],
        rounds=1,
        memory=memory,
        algorithm=FedAvg(sampler=Shuffled(batch_size=1), lr=0.01),
        backend="vmap",
    )


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="caps memory as Linux does")
@pytest.mark.parametrize(("memory", "outcome"), [("budget", "passed"), ("all", "died")])
def test_a_large_cohort_stays_inside_capped_memory_where_all_its_lanes_at_once_do_not(memory: str, outcome: str):
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, memory],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip
    assert done.stdout == f"{outcome}\n", done.stderr[-2000:]


@given(st.integers(1, 7), st.integers(0, 40), st.integers(1, 60))
def test_tiles_cover_every_seat_once_and_hold_no_more_lanes_than_asked(rows: int, columns: int, lanes: int):
    seen = torch.zeros(rows, columns, dtype=torch.long)
    for tile in tiles(rows, columns, lanes):
        seen[tile] += 1
        assert seen[tile].numel() <= max(lanes, 1)
    assert (seen == 1).all()


@pytest.mark.heavy
def test_a_narrow_residual_network_trains_inside_its_memory():
    script = """
import torch
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.federation import federate, run
from fl_core.residual import ResNet
from fl_core.sampling import Shuffled

torch.set_num_threads(1)
data = ImageSet(torch.rand(60, 1, 12, 12), torch.arange(60) % 4, tuple("abcd"))
model = ResNet((1, 12, 12), 4, depth=8, width=4)
algorithm = FedAvg(sampler=Shuffled(local_epochs=2, batch_size=5), lr=0.1)
for backend in ("loop", "vmap"):
    kinds = {"clients": 3, "rounds": 3, "algorithm": algorithm, "defense": Defense(), "backend": backend}
    print("finished", run(federate(model, data, **kinds)).round)
"""
    # glibc checks every block that is freed, and ends a process that wrote past one.
    checked = os.environ | {"MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", script], env=checked, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "finished 3\nfinished 3\n"), done.stderr
