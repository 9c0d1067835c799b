"""LOKI on sums that the engine's own training loop made: each client's rows are its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.pictures import psnr
from attacks.reconstruction.imprint import WEIGHT, Imprint, ImprintKnowledge, Ruler, alone, projection, ruler
from attacks.reconstruction.loki import SWITCH, SWITCH_BIAS, Loki, alone_in_time
from fl_core.architectures import MLP
from fl_core.errors import InputError
from fl_core.models import initial_parameters
from fl_core.optimizers import Tree
from fl_core.seeds import generator
from tests.malicious_rounds import CLASSES, SHAPE, seen, spread, updates

CLIENTS, BATCH, BINS = 16, 16, 64


def even_ruler(bins: int = BINS) -> Ruler:
    row = projection(SHAPE, run=0)
    mean, deviation = row.double().sum() / 2, (row.double().square().sum() / 12).sqrt()
    return ruler(row, bins, torch.distributions.Normal(mean, deviation).icdf)


def played(
    clients: int = CLIENTS, steps: int = 1, kind: str = "sparse", dtype: torch.dtype = torch.float32, lr: float = 0.1
) -> tuple[Loki, Tree, Tree, Tensor]:
    """The attack, the updates [clients, ...], what was sent, and the pictures [clients, steps · BATCH, ...]."""
    attack = Loki(clients=clients, bins=BINS, kind=kind)  # type: ignore[arg-type]
    model = attack.model(MLP(SHAPE, CLASSES, hidden=(16,)), SHAPE, CLASSES).to(dtype)
    start = {name: value.to(dtype) for name, value in initial_parameters(model, 0).items()}
    sent = attack.plant(start, even_ruler(), SHAPE)
    draw = generator(0, "pictures")
    pictures = torch.rand(clients * steps * BATCH, *SHAPE, generator=draw, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (len(pictures),), generator=draw)
    plan = [list(rows) for rows in torch.arange(len(pictures)).view(clients, steps, BATCH)]
    moved = updates(model, sent, pictures, labels, plan, lr)
    return attack, moved, sent, pictures.view(clients, -1, *SHAPE)


def decibels(attack: Loki, moved: Tree, sent: Tree, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Of each picture what its own unit says of it, and whether it is alone there [clients, pictures]."""
    found = attack.run(seen((moved, sent)), ImprintKnowledge(ruler=even_ruler(), shape=SHAPE))
    assert found.pictures.shape == (attack.clients, BINS, *SHAPE)
    fires = even_ruler().fires(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
    unit = fires.int().argmax(2)
    said = found.pictures[torch.arange(len(unit))[:, None], unit].clamp(0, 1)
    score = torch.from_numpy(psnr(said.flatten(0, 1), pictures.flatten(0, 1))).view_as(unit)
    return score, fires.sum(1).gather(1, unit) == 1


@pytest.mark.parametrize(("kind", "dtype", "least"), [("sparse", torch.float64, 200), ("sparse", torch.float32, 50)])
def test_a_sum_over_clients_gives_away_what_each_alone_would(kind: str, dtype: torch.dtype, least: float):
    score, lone = decibels(*played(kind=kind, dtype=dtype))
    assert (score[lone] > least).all()
    assert (score[~lone] < 40).all()
    # 256 pictures in the sum: without a split hardly any would be alone. ±0.1 is 4 standard errors.
    assert float(lone.double().mean()) == pytest.approx(alone("sparse", BINS, BATCH), abs=0.1)
    assert alone("sparse", BINS, CLIENTS * BATCH) < 0.02


def test_dense_layers_can_be_split_too():
    score, lone = decibels(*played(kind="dense", dtype=torch.float64))
    assert (score[lone] > 150).all()


def test_a_clients_update_of_several_steps_stays_in_its_own_block():
    _, moved, _, _ = played(clients=3, steps=4)
    blocks = moved[WEIGHT].unflatten(-1, (3, -1)).abs().amax((1, 3))
    kernels = moved[SWITCH].unflatten(1, (3, -1)).abs().amax((2, 3, 4, 5))
    biases = moved[SWITCH_BIAS].unflatten(1, (3, -1)).abs().amax(2)
    others = ~torch.eye(3).bool()
    for part in (blocks, kernels, biases):
        assert (part[others] == 0).all()
        assert (part.diagonal() > 0).all()


def test_in_local_steps_the_first_picture_of_a_unit_comes_out():
    score, _ = decibels(*played(clients=8, steps=4))
    share = float((score > 40).double().mean())
    # Of 512 pictures; a binomial share would be off by 0.06 once in 200 times.
    assert alone("sparse", BINS, 4 * BATCH) < alone_in_time(BINS, BATCH, 4) == pytest.approx(0.563, abs=1e-3)
    assert share == pytest.approx(alone_in_time(BINS, BATCH, 4), abs=0.06)


def test_without_the_split_a_sum_hides_nearly_all():
    attack = Imprint(bins=BINS, kind="sparse", gain=8.0)
    model = attack.model(MLP(SHAPE, CLASSES, hidden=(16,)), SHAPE, CLASSES)
    sent = spread(attack.plant(initial_parameters(model, 0), even_ruler()), CLIENTS)
    draw = generator(0, "pictures")
    pictures = torch.rand(CLIENTS * BATCH, *SHAPE, generator=draw)
    labels = torch.randint(CLASSES, (len(pictures),), generator=draw)
    moved = updates(model, sent, pictures, labels, [[rows] for rows in torch.arange(len(pictures)).view(CLIENTS, -1)])
    found = attack.run(seen((moved, sent)), ImprintKnowledge(ruler=even_ruler(), shape=SHAPE))
    unit = even_ruler().fires(pictures).int().argmax(1)
    score = psnr(found.pictures[0, unit].clamp(0, 1), pictures)
    assert (score > 40).mean() < 0.05


def test_a_cohort_of_another_size_is_refused():
    attack, moved, sent, _ = played(clients=2)
    other = Loki(clients=4, bins=BINS)
    with pytest.raises(InputError, match="the cohort has 2 clients, and there are kernels for 4"):
        other.run(seen((moved, sent)), ImprintKnowledge(ruler=even_ruler(), shape=SHAPE))
    with pytest.raises(InputError, match="the ruler has 32 bins"):
        attack.plant({name: value[0] for name, value in sent.items()}, even_ruler(32), SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "traps"}, "attack.kind is 'traps'; allowed"),
        ({"clients": 0}, "attack.clients"),
        ({"scale": 0.0}, "attack.scale"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        Loki(**({"clients": 2, "bins": 8} | options))  # type: ignore[arg-type]
