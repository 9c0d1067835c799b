"""What a client could have noticed: known scores, and verdicts on benign and tampered models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.reconstruction.detectability import Limits, detect, ks_distance
from attacks.reconstruction.fishing import Fishing
from attacks.reconstruction.imprint import Imprint, empirical, projection, ruler
from attacks.reconstruction.label_flip import LabelFlip
from attacks.reconstruction.loki import Loki
from attacks.reconstruction.traps import TrapWeights, fitted_scaling, split_rows, split_ruler
from fl_core.architectures import CNN, MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.models import ClassificationLosses, initial_parameters
from tests.malicious_rounds import CLASSES, SHAPE

POOL, PUBLIC = digits()
HELD = POOL.images[:32], POOL.labels[:32]
MODEL = MLP(SHAPE, CLASSES, hidden=(64,))
START, FRESH = initial_parameters(MODEL, 0), initial_parameters(MODEL, 1)


def test_the_d_snr_is_the_longest_gradient_over_the_sum_of_the_others():
    model = CNN(SHAPE, CLASSES, width=4)
    start = initial_parameters(model, 0)
    found = detect(start, model, start, HELD)
    lent = {name: value.clone().requires_grad_() for name, value in start.items()}
    losses = ClassificationLosses(model)(lent, *HELD)
    for name in ("conv1.weight", "conv2.weight", "head.weight"):
        each = torch.stack([torch.autograd.grad(loss, lent[name], retain_graph=True)[0].norm() for loss in losses])
        assert found.d_snr[name] == pytest.approx(float(each.max() / (each.sum() - each.max())), rel=1e-4)
    assert len(found.d_snr) == 3


def test_the_distance_is_that_of_two_distribution_functions():
    assert ks_distance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 0
    assert ks_distance(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])) == 1
    assert ks_distance(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.5])) == 0.5
    from scipy.stats import ks_2samp

    first, second = torch.randn(300), 0.2 + torch.randn(200)
    assert ks_distance(first, second) == pytest.approx(ks_2samp(first.numpy(), second.numpy()).statistic)


def test_a_new_model_beside_another_new_one_is_not_noticed():
    found = detect(START, MODEL, FRESH, HELD)
    assert not found.noticed
    assert found.words == ()
    assert found.worst("d_snr") < 0.2
    assert found.worst("deficient") == found.worst("silent") == 0


def test_an_imprint_layer_has_dependent_rows_and_is_an_addition():
    attack = Imprint(bins=32)
    model = attack.model(MODEL, SHAPE, CLASSES)
    row = projection(SHAPE, 0)
    sent = attack.plant(initial_parameters(model, 0), ruler(row, 32, empirical(row, PUBLIC.images)))
    found = detect(sent, model, initial_parameters(MODEL, 1), HELD)
    assert found.deficient["imprint.weight"] == 31 / 32
    assert set(found.added) == {
        "imprint.weight", "imprint.bias", "inner.hidden.0.weight", "inner.hidden.0.bias", "inner.head.weight",
        "inner.head.bias",
    }  # fmt: skip
    benign = detect(sent, model, initial_parameters(model, 1), HELD)
    assert not benign.added
    assert any("rows depend on each other (imprint.weight: 0.969)" in words for words in benign.words)


def test_loki_is_noticed_by_kernels_of_zeros():
    attack = Loki(clients=4, bins=32)
    model = attack.model(MODEL, SHAPE, CLASSES)
    row = projection(SHAPE, 0)
    rule = ruler(row, 32, empirical(row, PUBLIC.images))
    sent = {name: value[1] for name, value in attack.plant(initial_parameters(model, 0), rule, SHAPE).items()}
    found = detect(sent, model, initial_parameters(model, 1), HELD)
    # Of four blocks with two channels each, one channel passes the picture on; the constant one's kernel is zero, too.
    assert found.silent["switch.weight"] == 7 / 8
    # All rows are a multiple of one measure, and a threshold.
    assert found.deficient["imprint.weight"] == 30 / 32


def test_fishing_is_noticed_and_a_label_flip_is_not():
    fishing = Fishing(target=int(HELD[1][0]))
    direction = fishing.direction(START)
    found = detect(fishing.cast(START, direction), MODEL, FRESH, HELD)
    assert found.silent["head.weight"] == 0.9
    assert found.extreme["head.weight"] > 1000
    assert len(found.words) >= 2
    flipped = detect(LabelFlip(first=1, second=2).flipped(START), MODEL, FRESH, HELD)
    assert not flipped.noticed


def test_an_example_that_alone_has_a_gradient_has_infinite_d_snr():
    labels = torch.ones(32, dtype=torch.long)
    labels[4] = 5
    fishing = Fishing(target=5)
    found = detect(fishing.cast(START, fishing.direction(START)), MODEL, FRESH, (HELD[0], labels))
    assert found.d_snr["hidden.0.weight"] == float("inf")
    assert any("one example outweighs all others" in words for words in found.words)


def test_trap_weights_have_no_dependent_rows_nor_variables_of_their_own():
    rows = split_rows(SHAPE, 64, run=0)
    rule = split_ruler(rows, fitted_scaling(rows, PUBLIC.images, 1 / 32))
    found = detect(TrapWeights().plant(START, rule), MODEL, FRESH, HELD)
    assert found.worst("deficient") == 0
    assert not found.added
    assert found.d_snr["hidden.0.weight"] < 1


def tensors(count: int) -> tuple[Tensor, Tensor]:
    return HELD[0][:count], HELD[1][:count]


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="at least two"):
        detect(START, MODEL, FRESH, tensors(1))
    with pytest.raises(InputError, match=r"limits\.silent"):
        Limits(silent=-1.0)
