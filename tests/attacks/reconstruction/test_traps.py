"""Trap weights in a perceptron's own first layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.pictures import psnr
from attacks.reconstruction.imprint import ImprintKnowledge, Ruler, projection, trap_ruler
from attacks.reconstruction.traps import TrapWeights, fitted_scaling, split_rows, split_ruler
from fl_core.architectures import MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.models import initial_parameters
from fl_core.optimizers import Tree
from tests.malicious_rounds import CLASSES, SHAPE, seen, spread, updates

BINS, BATCH = 256, 32
POOL, PUBLIC = digits()


def rulers() -> dict[str, Ruler]:
    rows = split_rows(SHAPE, BINS, run=0)
    return {
        "split": split_ruler(rows, fitted_scaling(rows, PUBLIC.images, 1 / BATCH)),
        "thresholds": trap_ruler(projection(SHAPE, 0, BINS), PUBLIC.images),
    }


def played(rule: Ruler, clients: int, dtype: torch.dtype = torch.float64) -> tuple[Tree, Tree, Tensor]:
    model = MLP(SHAPE, CLASSES, hidden=(BINS,)).to(dtype)
    start = {name: value.to(dtype) for name, value in initial_parameters(model, 0).items()}
    sent = spread(TrapWeights().plant(start, rule), clients)
    pictures, labels = POOL.images[:BATCH].to(dtype), POOL.labels[:BATCH]
    moved = updates(model, sent, pictures, labels, [[rows] for rows in torch.arange(BATCH).view(clients, -1)])
    return moved, sent, pictures


@pytest.mark.parametrize("kind", ["split", "thresholds"])
@pytest.mark.parametrize("clients", [1, 4])
def test_a_picture_that_is_alone_in_a_unit_is_read_exactly_also_off_a_sum(kind: str, clients: int):
    rule = rulers()[kind]
    moved, sent, pictures = played(rule, clients)
    found = TrapWeights().run(seen((moved, sent)), ImprintKnowledge(ruler=rule, shape=SHAPE))
    fires = rule.fires(pictures)
    picture, unit = (fires & (fires.sum(0) == 1)).nonzero(as_tuple=True)
    assert len(picture.unique()) > BATCH / 4
    # Where hardly any gradient gets to a unit, the quotient is rounded from little.
    score = psnr(found.pictures[0, unit].clamp(0, 1), pictures[picture])
    assert (score > 150).mean() > 0.9


def test_half_of_each_row_is_negative_and_the_other_half_the_same_sizes_scaled():
    rows = split_rows(SHAPE, 8, run=1)
    scaled = split_ruler(rows, 0.9).rows
    assert ((scaled < 0).sum(1) == 32).all()
    assert torch.allclose(scaled.clamp(min=0).sum(1), -0.9 * scaled.clamp(max=0).sum(1))
    assert not torch.equal(split_rows(SHAPE, 8, run=2), rows)
    # A grey picture fires none, whatever its shade, as the negative half outweighs the other.
    assert not split_ruler(rows, 0.9).fires(torch.full((1, *SHAPE), 0.5)).any()


def test_the_scaling_lets_the_share_pass_that_it_was_fitted_for():
    rows = split_rows(SHAPE, BINS, run=0)
    rule = split_ruler(rows, fitted_scaling(rows, PUBLIC.images, 0.03))
    assert float(rule.fires(PUBLIC.images).double().mean()) == pytest.approx(0.03, abs=1e-3)
    assert float(rule.fires(POOL.images).double().mean()) == pytest.approx(0.03, abs=0.01)


def test_the_planted_layer_measures_what_the_ruler_does():
    rule = rulers()["thresholds"]
    model = MLP(SHAPE, CLASSES, hidden=(BINS,))
    sent = TrapWeights().plant(initial_parameters(model, 0), rule)
    layer = (2 * POOL.images[:50].flatten(1) - 1) @ sent["hidden.0.weight"].T + sent["hidden.0.bias"]
    assert ((layer > 0) == rule.fires(POOL.images[:50])).float().mean() > 0.999


def test_bad_input_is_refused():
    rule = rulers()["split"]
    start = initial_parameters(MLP(SHAPE, CLASSES, hidden=(8,)), 0)
    with pytest.raises(
        InputError, match=r"hidden.0.weight is \(8, 64\) and the traps are \(256, 64\); make them alike"
    ):
        TrapWeights().plant(start, rule)
    with pytest.raises(InputError, match="two halves"):
        split_rows((1, 3, 3), 8, run=0)
    with pytest.raises(InputError, match="share"):
        fitted_scaling(split_rows(SHAPE, 8, run=0), PUBLIC.images, 1.0)
