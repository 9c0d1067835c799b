"""The imprint layer against its closed form, on updates that the engine's own training loop made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal

from attacks.metrics import clopper_pearson
from attacks.pictures import psnr
from attacks.reconstruction.imprint import (
    BIAS,
    KINDS,
    WEIGHT,
    Imprint,
    ImprintKnowledge,
    Imprints,
    Kind,
    Ruler,
    alone,
    brightness,
    empirical,
    projection,
    ruler,
    trap_ruler,
)
from fl_core.architectures import MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD
from fl_core.sampling import ExampleFeed
from fl_core.seeds import generator
from fl_core.views import MaliciousServer, SecureServer
from tests.observations import observation

SHAPE, CLASSES, BATCH = (1, 8, 8), 10, 64


def gain_of(bins: int, kind: Kind) -> float:
    return float(bins) if kind == "dense" else 16.0


def even_ruler(bins: int, kind: Kind = "dense") -> Ruler:
    """For pictures of independent uniform pixels, whose projections are normal to within the tests' counting error."""
    if kind == "traps":
        public = torch.rand(20 * bins, *SHAPE, generator=generator(0, "public"))
        return trap_ruler(projection(SHAPE, 0, bins), public)
    row = projection(SHAPE, run=0)
    mean, deviation = row.double().sum() / 2, (row.double().square().sum() / 12).sqrt()
    return ruler(row, bins, Normal(mean, deviation).icdf)


@dataclass(frozen=True)
class Trial:
    """Batches of pictures [batches, pictures, ...], what was recovered, and which units each fires [..., bins]."""

    pictures: Tensor
    found: Imprints
    fires: Tensor

    @property
    def held(self) -> Tensor:
        """How many pictures fire each unit [batches, bins]."""
        return self.fires.sum(1)

    @property
    def alone(self) -> Tensor:
        """Which pictures are alone in some unit [batches, pictures]."""
        return (self.fires & (self.held == 1)[:, None]).any(2)

    @property
    def decibels(self) -> Tensor:
        """Of each picture against what its own unit says, the best one where it fires several [batches, pictures]."""
        batch, picture, unit = self.fires.nonzero(as_tuple=True)
        each = psnr(self.found.pictures[batch, unit].clamp(0, 1), self.pictures[batch, picture])
        best = torch.full(self.fires.shape[:2], -torch.inf).double()
        place = batch * best.shape[1] + picture
        return best.view(-1).scatter_reduce(0, place, torch.from_numpy(each), "amax").view(best.shape)


def trial(
    bins: int,
    kind: Kind,
    *,
    batches: int,
    steps: int = 1,
    fresh: bool = True,
    lr: float = 1.0,
    gain: float | None = None,
    dtype: torch.dtype = torch.float32,
    size: int = BATCH,
) -> Trial:
    """Each batch is one client's; with `fresh` a client has as many batches as steps, each used once."""
    attack = Imprint(bins=bins, kind=kind, gain=gain_of(bins, kind) if gain is None else gain)
    rule = even_ruler(bins, kind)
    model = attack.model(MLP(SHAPE, CLASSES, hidden=(16,)), SHAPE, CLASSES)
    one = attack.plant(initial_parameters(model, 0), rule)
    start = {name: value.to(dtype).expand(batches, *value.shape).contiguous() for name, value in one.items()}
    own = size * steps if fresh else size
    draw = generator(0, "pictures")
    pictures = torch.rand(batches * own, *SHAPE, generator=draw, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (batches * own,), generator=draw)
    plan = [
        [own * lane + torch.arange(size) + (size * step if fresh else 0) for step in range(steps)]
        for lane in range(batches)
    ]
    feed = ExampleFeed(pictures, labels, plan)
    moved = descend(start, ClassificationLosses(model.to(dtype)), feed, SGD(lr=lr), backend="loop")
    found = attack.run(observed(start, moved), ImprintKnowledge(ruler=rule, shape=SHAPE))
    return Trial(pictures.view(batches, own, *SHAPE), found, rule.fires(pictures).view(batches, own, bins))


def observed(start: dict[str, Tensor], moved: dict[str, Tensor]) -> MaliciousServer:
    """A replica a lane, with a cohort of one."""
    return observation(
        MaliciousServer,
        sums={0: {name: moved[name] - start[name] for name in start}},
        cohorts={0: torch.zeros(len(start[BIAS]), 1, dtype=torch.long)},
        sent={0: {name: value.unsqueeze(1) for name, value in start.items()}},
    )


# Known answers


@pytest.mark.parametrize(
    ("bins", "expected"), [(64, 0.371), (128, 0.610), (256, 0.781), (1024, 0.940)], ids=lambda value: str(value)
)
def test_the_share_that_is_recovered_alone_is_the_closed_form(bins: int, expected: float):
    # One picture a batch, so that the trials are independent; the exact 99.9% interval misses once in 1000.
    done = trial(bins, "sparse", batches=600)
    first = dataclasses.replace(done, pictures=done.pictures[:, :1], fires=done.fires[:, :1])
    recovered = (first.decibels[:, 0] > 50) & done.alone[:, 0]
    interval = clopper_pearson(int(recovered.sum()), 600, confidence=0.999)
    assert alone("dense", bins, BATCH) == alone("sparse", bins, BATCH) == pytest.approx(expected, abs=5e-4)
    assert interval.low < expected < interval.high


@pytest.mark.parametrize("bins", [64, 256])
def test_the_share_alone_in_some_trap_is_the_closed_form(bins: int):
    # One picture a batch; the exact 99.9% interval misses once in 1000. A threshold is off by its public pictures: of
    # 20 that should pass it on average, 20 ± 4.5 do, and by concavity the share falls by some percent.
    done = trial(bins, "traps", batches=300)
    expected = alone("traps", bins, BATCH)
    interval = clopper_pearson(int(done.alone[:, 0].sum()), 300, confidence=0.999)
    assert interval.low < 0.98 * expected
    assert expected < interval.high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bins", [64, 128, 256, 1024])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 200.0), (torch.float32, 50.0)])
def test_whoever_is_alone_is_recovered_and_nobody_else(kind: Kind, bins: int, dtype: torch.dtype, least: float):
    done = trial(bins, kind, batches=10, dtype=dtype)
    assert done.decibels[done.alone].min() > least
    # Two pictures in a bin come out as one picture only where one's gradient is far longer than the other's.
    assert (done.decibels[~done.alone] > 30).double().mean() < 0.05
    assert torch.equal(done.found.occupied, done.held > 0)
    assert bool(done.found.single[done.held == 1].all())


def test_a_sum_over_clients_is_one_larger_batch():
    # 16 clients with 16 pictures each: whoever is alone among all 256 is recovered.
    attack, rule = Imprint(bins=1024, kind="sparse", gain=16.0), even_ruler(1024)
    model = attack.model(MLP(SHAPE, CLASSES, hidden=(16,)), SHAPE, CLASSES)
    start = attack.plant(initial_parameters(model, 0), rule)
    draw = generator(0, "pictures")
    pictures = torch.rand(256, *SHAPE, generator=draw)
    plan = [[rows] for rows in torch.arange(256).split(16)]
    feed = ExampleFeed(pictures, torch.randint(CLASSES, (256,), generator=draw), plan)
    lanes = {name: value.expand(16, *value.shape).contiguous() for name, value in start.items()}
    moved = descend(lanes, ClassificationLosses(model), feed, SGD(lr=1.0), backend="loop")
    seen = observation(
        MaliciousServer,
        sums={0: {name: (moved[name] - lanes[name]).sum(0, keepdim=True) for name in start}},
        cohorts={0: torch.arange(16)[None]},
        sent={0: {name: value[None] for name, value in lanes.items()}},
    )
    found = attack.run(seen, ImprintKnowledge(ruler=rule, shape=SHAPE))
    whole = Trial(pictures[None], found, rule.fires(pictures)[None])
    assert whole.alone.double().mean() == pytest.approx(alone("sparse", 1024, 256), abs=0.1)
    assert whole.decibels[whole.alone].min() > 50


# Several local steps


def test_a_gentle_sparse_layer_gives_away_who_is_alone_over_all_steps():
    done = trial(256, "sparse", batches=20, steps=5, lr=0.1, gain=1.0)
    assert done.alone.double().mean() == pytest.approx(alone("sparse", 256, 5 * BATCH), abs=0.05)
    assert (done.decibels[done.alone] > 30).double().mean() > 0.9
    assert (done.decibels[~done.alone] > 30).double().mean() < 0.05


def test_a_dense_layer_of_much_gain_keeps_the_first_step_as_if_it_were_the_only_one():
    once = trial(256, "dense", batches=20, lr=0.1)
    often = trial(256, "dense", batches=20, steps=5, fresh=False, lr=0.1)
    assert torch.equal(often.pictures, once.pictures)
    recovered = [(one.decibels > 30).double().mean() for one in (once, often)]
    assert recovered[1] > 0.9 * recovered[0] > 0.6
    fresh = trial(256, "dense", batches=20, steps=5, lr=0.1)
    first, later = fresh.decibels[:, :BATCH], fresh.decibels[:, BATCH:]
    assert (first > 30).double().mean() > 0.6
    assert (later > 30).double().mean() < 0.02


def test_a_dense_layer_of_little_gain_is_blurred_by_more_steps():
    done = trial(256, "dense", batches=20, steps=5, fresh=False, lr=0.1, gain=16.0)
    assert (done.decibels[done.alone] > 30).double().mean() < 0.5


# The ruler


def test_the_quantiles_of_public_pictures_cut_others_into_even_bins():
    pool, public = digits(test_fraction=0.5)
    row = projection(SHAPE, run=3)
    found = ruler(row, 8, empirical(row, public.images))
    fires = found.fires(pool.images)
    assert bool((fires.sum(1) == 1).all())
    counts = fires.sum(0)
    # A share of 1/8 of about 900 deviates by 1%, and its public quantile by as much again: five deviations.
    assert (counts / len(pool) - 1 / 8).abs().max() < 5 * 2**0.5 * (1 / 8 * 7 / 8 / len(pool)) ** 0.5


@pytest.mark.parametrize("family", [Normal, Laplace])
def test_a_guessed_family_gives_rising_edges_around_all_pictures(family):
    rule = ruler(brightness(SHAPE), 32, family(torch.tensor(0.3).double(), torch.tensor(0.05).double()).icdf)
    assert rule.bins == 32
    assert torch.equal(rule.low[1:], rule.high[:-1])
    assert rule.fires(torch.zeros(1, *SHAPE)).nonzero().tolist() == [[0, 0]]
    assert rule.fires(torch.ones(1, *SHAPE)).nonzero().tolist() == [[0, 31]]


def test_a_trap_is_passed_by_one_public_picture_in_as_many_as_there_are_traps():
    pool, public = digits(test_fraction=0.5)
    rule = trap_ruler(projection(SHAPE, 0, 30), public.images[:600])
    assert torch.equal(rule.fires(public.images[:600]).sum(0), torch.full((30,), 20))
    assert rule.fires(pool.images).double().mean() == pytest.approx(1 / 30, rel=0.2)
    with pytest.raises(InputError, match="30 traps need as many public pictures, and there are 20"):
        trap_ruler(projection(SHAPE, 0, 30), public.images[:20])


def test_a_measure_with_too_many_ties_is_refused():
    pool, public = digits()
    with pytest.raises(InputError, match="ties too many pictures"):
        ruler(brightness(SHAPE), 1024, empirical(brightness(SHAPE), public.images))
    assert len(pool) > 1024


# The layer


@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_that_a_picture_fires_gets_the_same_gradient_to_the_bit(kind: Kind):
    attack = Imprint(bins=32, kind=kind, gain=8.0)
    rule = even_ruler(32, kind)
    model = attack.model(MLP(SHAPE, CLASSES, hidden=(16,)), SHAPE, CLASSES)
    model.load_state_dict(attack.plant(initial_parameters(model, 0), rule))
    pictures = torch.rand(100, *SHAPE, generator=generator(0, "some"))
    fired = rule.fires(pictures)
    picture = int(fired.sum(1).argmax())  # with traps, one that fires several
    torch.nn.functional.cross_entropy(model(pictures[[picture]]), torch.tensor([3])).backward()
    moved, wanted = model.imprint.bias.grad, fired[picture]
    if kind == "dense":  # all units below its own, too
        wanted = torch.arange(32) <= wanted.nonzero().item()
    assert torch.equal(moved != 0, wanted)
    assert moved[wanted].unique().numel() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_model_still_gives_about_the_logits_of_the_inner_one(kind: Kind):
    attack = Imprint(bins=256, kind=kind, gain=16.0)
    model = attack.model(MLP(SHAPE, CLASSES, hidden=(16,)), SHAPE, CLASSES)
    model.load_state_dict(attack.plant(initial_parameters(model, 0), even_ruler(256, kind)))
    pictures = torch.rand(100, *SHAPE, generator=generator(0, "some"))
    assert (model(pictures) - model.inner(pictures)).abs().mean() < 0.6


def test_traps_have_rows_like_any_new_layer_s_and_an_imprint_has_not():
    attack = Imprint(bins=64, kind="traps")
    model = attack.model(MLP(SHAPE, CLASSES, hidden=(16,)), SHAPE, CLASSES)
    new = initial_parameters(model, 0)
    largest = {}
    for name, tree in (
        ("new", new),
        ("traps", attack.plant(new, even_ruler(64, "traps"))),
        ("dense", attack.plant(new, even_ruler(64))),
    ):
        rows = torch.nn.functional.normalize(tree[WEIGHT], dim=1)
        largest[name] = float((rows @ rows.T - torch.eye(64)).abs().max())
    assert largest["dense"] == pytest.approx(1, abs=1e-5)
    assert largest["traps"] == pytest.approx(largest["new"], abs=0.15)


# Refusals


def test_a_view_without_the_server_s_own_broadcast_is_refused():
    seen = observation(SecureServer)
    with pytest.raises(InputError, match="imprint layer needs the view malicious_server; it was given secure_server"):
        Imprint(bins=8).run(seen, ImprintKnowledge(ruler=even_ruler(8), shape=SHAPE))  # type: ignore[arg-type]


def test_a_sum_that_is_not_finite_and_a_round_that_was_not_recorded_are_refused():
    attack, rule = Imprint(bins=8), even_ruler(8)
    model = attack.model(MLP(SHAPE, CLASSES, hidden=()), SHAPE, CLASSES)
    start = {name: value[None] for name, value in attack.plant(initial_parameters(model, 0), rule).items()}
    seen, told = observed(start, start), ImprintKnowledge(ruler=rule, shape=SHAPE)
    with pytest.raises(InputError, match=r"round 2 was not recorded; recorded: \[0\]"):
        attack.run(seen, told, round=2)
    spoilt = seen.sums[0] | {WEIGHT: torch.full_like(seen.sums[0][WEIGHT], float("nan"))}
    with pytest.raises(InputError, match="NaN or infinite"):
        attack.run(dataclasses.replace(seen, sums={0: spoilt}), told)


def test_a_ruler_of_another_length_is_refused():
    model = Imprint(bins=8).model(MLP(SHAPE, CLASSES, hidden=()), SHAPE, CLASSES)
    with pytest.raises(InputError, match="ruler has 16 bins and the imprint layer 8"):
        Imprint(bins=8).plant(initial_parameters(model, 0), even_ruler(16))


@pytest.mark.parametrize("wrong", [{"bins": 1}, {"bins": 8, "gain": 0.0}, {"bins": 8, "kind": "other"}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=r"attack\.(bins|gain|kind)"):
        Imprint(**wrong)
