"""What clients hold: exact counts from one full step, regressions against brute force, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from attacks.clients.properties import (
    RIDGES,
    BlindShares,
    LabelCounts,
    OutputLayerRegression,
    PropertyKnowledge,
    ridge,
    to_simplex,
    total_variation,
)
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.federation import Federation, run
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.views import Participant, Recorder, ReleasedModel, SecureServer, Server
from tests.observations import observation

CLIENTS, EACH, CLASSES, LR = 5, 16, 10, 0.1
POOL, PUBLIC = digits()
NET = MLP(POOL.shape, CLASSES, hidden=(100,))


def full_step(replicas: range, rounds: int = 1) -> tuple[Server, np.ndarray]:
    """Untrained networks after one full step of each client, and the shares that clients hold."""
    rows = torch.stack(
        [torch.randperm(len(POOL), generator=generator(0, "rows", one))[: CLIENTS * EACH] for one in replicas]
    )
    data = POOL.select(rows.flatten())
    recorder = Recorder(Server)
    run(
        Federation(
            model=NET, data=data, owners=torch.arange(CLIENTS).repeat_interleave(EACH).repeat(len(replicas)),
            members=torch.eye(len(replicas), dtype=torch.bool).repeat_interleave(CLIENTS * EACH, 1),
            sizes=torch.full((CLIENTS,), EACH),
            algorithm=FedAvg(sampler=Shuffled(batch_size=None, local_steps=1), lr=LR), defense=Defense(),
            rounds=rounds, run=0, replica_ids=replicas, backend="vmap",
        ),
        recorder,
    )  # fmt: skip
    seen = recorder.observation()
    assert isinstance(seen, Server)
    labels = POOL.labels[rows].view(len(replicas), CLIENTS, EACH)
    return seen, torch.nn.functional.one_hot(labels, CLASSES).double().mean(2).numpy()


@pytest.mark.parametrize(("reads", "units"), [("update", CLIENTS), ("sum", 1), ("step", 1)])
def test_shares_are_exact_after_one_full_step_of_an_untrained_network(reads: Any, units: int):
    seen, shares = full_step(range(3))
    truth = shares if units > 1 else shares.mean(1, keepdims=True)
    examples = EACH if units > 1 else EACH * CLIENTS
    known = PropertyKnowledge(model=NET, images=PUBLIC.images, examples=examples, descent=LR)
    found = LabelCounts(reads=reads).run(seen, known)
    assert found.shape == (3, units, CLASSES)
    assert total_variation(found, truth).max() < 1e-12


def test_a_regression_on_shadows_comes_near_where_updates_are_seen_and_the_blind_share_does_not():
    seen, shares = full_step(range(4))
    shadows, theirs = full_step(range(4, 44))
    known = PropertyKnowledge(model=NET, images=PUBLIC.images, shadows=shadows, shares=theirs)
    near = total_variation(OutputLayerRegression(reads="update").run(seen, known), shares)
    blind = total_variation(BlindShares().run(seen, known), shares)
    assert near.mean() < 0.2 * blind.mean()


def test_the_penalty_is_the_one_that_leaves_one_out_best_by_brute_force():
    rng = np.random.default_rng(0)
    x, asked = rng.standard_normal((30, 12)), rng.standard_normal((4, 12))
    y = x[:, :2] @ rng.standard_normal((2, 3)) + 2 * rng.standard_normal((30, 3))

    def fit(rows: np.ndarray, targets: np.ndarray, penalty: float, new: np.ndarray) -> np.ndarray:
        """Ridge with an intercept, on the standardisation of all rows, by the normal equations."""
        scaled = (rows - x.mean(0)) / x.std(0)
        wide = np.column_stack([np.ones(len(rows)), scaled])
        weight = penalty * len(x) * np.diag([0.0] + [1.0] * 12)
        coefficients = np.linalg.solve(wide.T @ wide + weight, wide.T @ targets)
        found: np.ndarray = np.column_stack([np.ones(len(new)), (new - x.mean(0)) / x.std(0)]) @ coefficients
        return found

    errors = [
        sum(
            float(((fit(np.delete(x, i, 0), np.delete(y, i, 0), penalty, x[[i]]) - y[i]) ** 2).sum())
            for i in range(len(x))
        )
        for penalty in RIDGES
    ]
    best = RIDGES[int(np.argmin(errors))]
    assert ridge(x, y, asked) == pytest.approx(fit(x, y, best, asked))


def test_a_linear_map_is_learned_exactly():
    rng = np.random.default_rng(1)
    x, asked, weight = rng.standard_normal((50, 4)), rng.standard_normal((6, 4)), rng.standard_normal((4, 2))
    assert ridge(x, x @ weight + 3, asked) == pytest.approx(asked @ weight + 3, abs=1e-3)


def test_shares_are_moved_to_the_nearest_point_of_the_simplex():
    assert to_simplex(np.array([[0.2, 0.8], [2.0, 0.0], [0.5, 1.5], [-1.0, -1.0]])) == pytest.approx(
        np.array([[0.2, 0.8], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    )
    row = np.array([0.9, -0.3, 0.4, 0.35])
    solved = minimize(
        lambda share: ((share - row) ** 2).sum(), np.full(4, 0.25), bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda share: share.sum() - 1},
    )  # fmt: skip
    assert to_simplex(row[None])[0] == pytest.approx(solved.x, abs=1e-3)


def test_the_distance_between_shares_is_what_has_to_move():
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    assert total_variation(np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])) == pytest.approx(0.1)


NARROWER = [
    ("update", SecureServer, "server"),
    ("update", Participant, "server"),
    ("update", ReleasedModel, "server"),
    ("sum", Participant, "secure_server"),
    ("sum", ReleasedModel, "secure_server"),
    ("step", ReleasedModel, "participant"),
]


@pytest.mark.parametrize("attack", [LabelCounts, OutputLayerRegression])
@pytest.mark.parametrize(("reads", "kind", "needed"), NARROWER)
def test_a_view_that_shows_too_little_is_refused_in_words(attack: Any, reads: Any, kind: Any, needed: str):
    with pytest.raises(InputError, match=f"{reads} needs the view {needed}; it was given {kind.view}"):
        attack(reads=reads).run(observation(kind), PropertyKnowledge(model=NET))


def test_what_is_missing_is_refused_in_words():
    seen, shares = full_step(range(2))
    with pytest.raises(InputError, match="needs public images, the number of examples and the descent"):
        LabelCounts(reads="update").run(seen, PropertyKnowledge(model=NET))
    with pytest.raises(InputError, match="needs shadows and what their clients hold"):
        OutputLayerRegression(reads="update").run(seen, PropertyKnowledge(model=NET))
    with pytest.raises(InputError, match="output layer regression, update needs public images"):
        OutputLayerRegression(reads="update").run(seen, PropertyKnowledge(model=NET, shadows=seen, shares=shares))
    with pytest.raises(InputError, match="needs shadows and what their clients hold"):
        BlindShares().run(seen, PropertyKnowledge(model=NET))
    longer, _ = full_step(range(2), rounds=2)
    with pytest.raises(InputError, match=r"was shown rounds \[0\], but shadows of rounds \[0, 1\]"):
        OutputLayerRegression(reads="update").run(
            seen, PropertyKnowledge(model=NET, images=PUBLIC.images, shadows=longer, shares=shares)
        )
    with pytest.raises(InputError, match=r"shadows show \(2, 1\) replicas x units, but shares are \(2, 5\)"):
        OutputLayerRegression(reads="sum").run(
            seen, PropertyKnowledge(model=NET, images=PUBLIC.images, shadows=seen, shares=shares)
        )
    with pytest.raises(InputError, match="reads is 'loss'; allowed: step, sum, update"):
        LabelCounts(reads="loss")  # type: ignore[arg-type]
