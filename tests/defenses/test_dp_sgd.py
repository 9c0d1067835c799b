"""DP-SGD against Opacus's step, and what its guarantee stands on."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import opacus.optimizers.optimizer as opacus_optimizer
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy.stats import chi2, norm
from torch import Tensor

from defenses.base import Defense
from defenses.bounds import epsilon_gaussian
from defenses.clipping import Clipping, norms
from defenses.dp_sgd import DPSGD
from defenses.rules import ClipAndNoise
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN
from fl_core.data import ImageSet
from fl_core.defended import Senders, Summed
from fl_core.errors import InputError
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD, Tree
from fl_core.rules import Step
from fl_core.sampling import ExampleFeed, Poisson, SamplingEvent, Shuffled
from fl_core.seeds import generator
from tests.federations import federation, pictures
from tests.plans import plan

EVENT = SamplingEvent(sampler="poisson", rate=0.1, steps=50)
ROUNDING = 1e-5


def defense(**changes) -> DPSGD:
    return DPSGD(**({"epsilon": 2.0, "delta": 1e-5, "clip_norm": 1.0} | changes))


def random_gradients(lanes: int, batch: int, scale: float = 1.0, seed: int = 0) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3), "bias": (4,)}
    return {name: scale * torch.randn(lanes, batch, *s, generator=draw) for name, s in shapes.items()}


def rule_of(clip: float, sigma: float, expected: float) -> ClipAndNoise:
    return ClipAndNoise(Clipping(norm=clip), sigma, expected)


def stepped(rule: ClipAndNoise, gradients: Tree, mask: Tensor, draws: list[torch.Generator]) -> Tree:
    step = Step({}, draws, {})
    return rule.finish(rule.sum(gradients, mask, (), step), step)


def flat(step: Tree) -> Tensor:
    """[lanes, parameters]."""
    return torch.cat([value.reshape(len(value), -1) for value in step.values()], 1)


def generators(lanes: int, run: int = 0) -> list[torch.Generator]:
    return [generator(run, "noise", lane) for lane in range(lanes)]


def twice_as_many() -> ImageSet:
    data = pictures()
    return ImageSet(torch.cat([data.images] * 2), torch.cat([data.labels] * 2), data.classes)


# The step


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")
@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_opacus_s_under_the_same_noise(backend: str, momentum: float, monkeypatch: pytest.MonkeyPatch):
    clip, sigma, expected, steps = 2.0, 1.3, 4.0, 3
    draw = generator(0, "pool")
    images, labels = torch.rand(20, 1, 6, 6, generator=draw), torch.randint(0, 3, (20,), generator=draw)
    plan = [  # the batches' sizes are not the expected one, and differ between the lanes
        [torch.tensor(rows) for rows in lane]
        for lane in ([[0, 1, 2], [3], [4, 5, 6, 7, 8]], [[9, 10], [11, 12, 13, 14, 15, 16], [17]])
    ]

    def model() -> CNN:
        return CNN((1, 6, 6), 3, width=4, norm="group")

    starts = [initial_parameters(model(), lane) for lane in range(2)]
    ours = descend(
        {name: torch.stack([start[name] for start in starts]) for name in starts[0]},
        ClassificationLosses(model()),
        ExampleFeed(images, labels, plan),
        SGD(lr=0.5, momentum=momentum),
        rule=rule_of(clip, sigma, expected),
        generators=generators(2),
        backend=backend,
    )

    clipped = 0
    for lane in range(2):
        theirs = GradSampleModule(model())
        theirs._module.load_state_dict(starts[lane])
        optimizer = DPOptimizer(
            torch.optim.SGD(theirs.parameters(), lr=0.5, momentum=momentum),
            noise_multiplier=sigma,
            max_grad_norm=clip,
            expected_batch_size=expected,
        )
        # The lane's documented draw: all parameters at once, in their order, from the lane's own generator.
        noise = generators(2)[lane]
        count = sum(value.numel() for value in theirs.parameters())
        served: list[Tensor] = []

        def same_noise(std: float, reference: Tensor, served: list[Tensor] = served, **_: object) -> Tensor:
            taken, served[0] = served[0][: reference.numel()], served[0][reference.numel() :]
            return std * taken.view(reference.shape)

        monkeypatch.setattr(opacus_optimizer, "_generate_noise", same_noise)
        for step in range(steps):
            optimizer.zero_grad()
            rows = plan[lane][step]
            F.cross_entropy(theirs(images[rows]), labels[rows]).backward()
            lengths = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in theirs.parameters()]).norm(dim=0)
            clipped += int((lengths > clip).sum())
            served[:] = [torch.randn(count, generator=noise)]
            optimizer.step()
            assert served[0].numel() == 0
        for name, value in theirs._module.named_parameters():
            torch.testing.assert_close(ours[name][lane], value.detach(), rtol=0, atol=ROUNDING)
    assert 0 < clipped < 18, "some gradients were clipped and some were not"


def test_the_step_is_the_clipped_sum_over_the_public_number():
    gradients = {"x": torch.tensor([[[3.0, 4.0], [0.3, 0.4], [9.0, 9.0]]])}
    step = stepped(rule_of(1.0, 0.0, 8.0), gradients, torch.tensor([[1.0, 1.0, 0.0]]), generators(1))
    torch.testing.assert_close(step["x"], torch.tensor([[0.6 + 0.3, 0.8 + 0.4]]) / 8)


def test_the_denominator_is_not_the_real_batch_size():
    for batch in (1, 3, 9):
        gradients = {"x": torch.full((1, batch, 1), 0.5)}
        step = stepped(rule_of(1.0, 0.0, 4.0), gradients, torch.ones(1, batch), generators(1))
        torch.testing.assert_close(step["x"], torch.tensor([[0.5 * batch / 4]]))


@pytest.mark.parametrize("garbage", [1.0, 1e18, 1e30])
def test_padded_examples_contribute_exactly_zero(garbage: float):
    rule = rule_of(1.0, 0.5, 4.0)
    real = random_gradients(2, 5)
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    dirty = {name: value.clone() for name, value in real.items()}
    clean = {name: value.clone() for name, value in real.items()}
    for name in real:
        dirty[name][mask == 0] = garbage
        clean[name][mask == 0] = 0
    assert torch.equal(flat(stepped(rule, dirty, mask, generators(2))), flat(stepped(rule, clean, mask, generators(2))))


@pytest.mark.parametrize("batch", [0, 3])
def test_an_empty_batch_gives_noise_alone(batch: int):
    # Whether nothing was drawn for the whole stack, or only padding stands in for this lane.
    rule = rule_of(2.0, 0.5, 4.0)
    step = stepped(rule, random_gradients(2, batch), torch.zeros(2, batch), generators(2))
    for lane, draw in enumerate(generators(2)):
        torch.testing.assert_close(flat(step)[lane], torch.randn(16, generator=draw) * 0.5 * 2.0 / 4.0)


@pytest.mark.parametrize("batch", [0, 1, 6])
def test_the_noise_has_the_stated_deviation_whatever_the_batch(batch: int):
    clip, sigma, expected, size = 0.3, 1.7, 5.0, 40_000
    gradients = {"x": torch.randn(2, batch, size)}
    noisy = stepped(rule_of(clip, sigma, expected), gradients, torch.ones(2, batch), generators(2))
    quiet = stepped(rule_of(clip, 0.0, expected), gradients, torch.ones(2, batch), generators(2))
    noise = (flat(noisy) - flat(quiet)).double() * expected / (clip * sigma)
    for lane in noise:
        # False alarm 1e-6 for each: chi-square for the deviation, normal for the mean.
        squares = lane.square().sum().item()
        assert 2 * min(chi2.cdf(squares, size), chi2.sf(squares, size)) > 1e-6
        assert 2 * norm.sf(abs(lane.sum().item()) / math.sqrt(size)) > 1e-6
    # Lanes draw independently: the product's mean is normal with deviation 1/sqrt(size); false alarm 1e-6.
    assert 2 * norm.sf(abs((noise[0] * noise[1]).sum().item()) / math.sqrt(size)) > 1e-6


def test_a_parameter_may_be_one_number():
    gradients = {"x": torch.tensor([[[3.0, 0.0]]]), "scale": torch.tensor([[4.0]])}
    step = stepped(rule_of(1.0, 0.0, 1.0), gradients, torch.ones(1, 1), generators(1))
    torch.testing.assert_close(step["scale"], torch.tensor([0.8]))


def test_noise_is_fresh_in_every_step():
    rule, draws = rule_of(1.0, 1.0, 1.0), generators(1)
    steps = [flat(stepped(rule, random_gradients(1, 0), torch.zeros(1, 0), draws)) for _ in range(2)]
    assert not (steps[0] == steps[1]).any()


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 8),
    scale=st.floats(-8, 8).map(lambda exponent: 10.0**exponent),
    clip=st.floats(-3, 3).map(lambda exponent: 10.0**exponent),
)
def test_neighbouring_batches_sums_differ_by_at_most_the_clip(seed, batch, scale, clip):
    gradients = random_gradients(1, batch, scale, seed)
    rule = rule_of(clip, 0.0, 1.0)
    whole = flat(stepped(rule, gradients, torch.ones(1, batch), generators(1))).double()
    without = {name: value[:, 1:] for name, value in gradients.items()}
    rest = flat(stepped(rule, without, torch.ones(1, batch - 1), generators(1))).double()
    distance = (whole - rest).norm().item()
    # Float rounding of a sum of `batch` vectors, each at most the clip long.
    assert distance <= clip * (1 + 1e-6 * batch)
    assert distance == pytest.approx(min(clip, norms(gradients, 2)[0, 0].item()), rel=1e-4, abs=1e-6 * batch * clip)


# The guarantee


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0, 100.0])
def test_the_stated_epsilon_is_at_most_the_asked_one_and_within_a_fifth_of_a_percent(epsilon: float):
    events = [EVENT, SamplingEvent(sampler="poisson", rate=0.2, steps=25), EVENT]
    prepared = defense(epsilon=epsilon).prepare(plan(events))
    assert isinstance(prepared, DPSGD)
    for view in ("server", "secure_server", "participant", "released_model"):
        stated = prepared.guarantee(view, "example", plan(events))
        assert isinstance(stated, PrivacyStatement)
        assert epsilon * 0.998 <= stated.epsilon <= epsilon
        assert (stated.delta, stated.unit, stated.view) == (1e-5, "example", view)
        assert stated.relation == "add or remove one example"


def test_every_client_is_covered_by_the_noise_that_the_worst_one_needs():
    worst = SamplingEvent(sampler="poisson", rate=0.5, steps=50)
    both = defense().prepare(plan([EVENT, worst]))
    alone = defense().prepare(plan([worst]))
    assert isinstance(both, DPSGD)
    assert isinstance(alone, DPSGD)
    assert both.noise_multiplier == alone.noise_multiplier
    stated = both.guarantee("server", "example", plan([EVENT, worst]))
    assert isinstance(stated, PrivacyStatement)
    assert "rate 0.5, 50 steps" in stated.sampler


def test_a_client_as_a_whole_is_promised_nothing_and_told_why():
    prepared = defense().prepare(plan([EVENT]))
    stated = prepared.guarantee("server", "client", plan([EVENT]))
    assert isinstance(stated, NoGuarantee)
    assert stated.epsilon == math.inf
    assert stated.unit == "client"
    assert "one example" in stated.reason


def test_an_infinite_epsilon_is_no_defence_at_all():
    prepared = defense(epsilon=math.inf).prepare(plan([EVENT]))
    assert type(prepared) is Defense
    assert prepared.example_rule(4.0) is None
    assert not prepared.public_sizes
    assert isinstance(prepared.guarantee("server", "example", plan([EVENT])), NoGuarantee)


def test_no_defence_changes_nothing_and_promises_nothing():
    updates = {"x": torch.randn(1, 2, 3)}
    plain = Defense().prepare(plan([EVENT]))
    assert plain.example_rule(4.0) is None
    assert torch.equal(plain.on_update(updates, Senders({}, [], 2.0))["x"], updates["x"])
    assert torch.equal(plain.on_sum(updates, Summed(0, 0.5, lambda _: [], {}))["x"], updates["x"])
    for unit in ("example", "client"):
        stated = plain.guarantee("released_model", unit, plan([EVENT]))
        assert isinstance(stated, NoGuarantee)
        assert stated.view == "released_model"


def test_given_noise_is_used_as_it_is_and_accounted():
    prepared = defense(noise_multiplier=1.5).prepare(plan([EVENT]))
    assert isinstance(prepared, DPSGD)
    assert prepared.noise_multiplier == 1.5
    assert prepared.example_rule(4.0) == rule_of(1.0, 1.5, 4.0)
    less = defense(noise_multiplier=1.0).guarantee("server", "example", plan([EVENT]))
    assert less.epsilon > prepared.guarantee("server", "example", plan([EVENT])).epsilon


def test_shuffled_batches_are_accounted_without_amplification_and_for_a_replaced_example():
    event = Shuffled(local_epochs=2, batch_size=4).event(40, rounds=3)
    prepared = defense(noise_multiplier=4.0).prepare(plan([event]))
    stated = prepared.guarantee("server", "example", plan([event]))
    assert isinstance(stated, PrivacyStatement)
    # Six visits, each moving the sum by twice the clip: a Gaussian mechanism of that μ.
    assert stated.epsilon == pytest.approx(epsilon_gaussian(2 * math.sqrt(6) / 4.0, 1e-5), rel=1e-4)
    assert stated.relation == "replace one example"
    assert stated.sampler == "shuffled batches, 6 visits"
    amplified = Poisson(local_epochs=2, batch_size=4).event(40, rounds=3)
    assert stated.epsilon > prepared.guarantee("server", "example", plan([amplified])).epsilon


def test_visits_are_those_of_the_smallest_real_client_where_batches_follow_real_sizes():
    # Eight steps of two examples: twice round eight, and four times round the four that client 0 really holds in row 1.
    members = torch.ones(2, 48, dtype=torch.bool)
    members[1, 24::6] = False
    whole = federation(
        data=twice_as_many(),
        members=members,
        sizes=torch.full((6,), 8),
        replica_ids=[0, 1],
        algorithm=FedAvg(sampler=Shuffled(local_steps=8, batch_size=2), lr=0.1),
        defense=defense(noise_multiplier=2.0),
        rounds=3,
    )
    assert [event.steps for event in whole.plan.sampling] == [12, 6, 6, 6, 6, 6]
    counts = Counter()
    for batch in whole.algorithm.sampler.draw(whole.held(1, 0), 8, generator(0, "batches")):
        counts.update(batch.tolist())
    assert max(counts.values()) * 3 == 12
    # Poisson coins know no real size.
    poisson = FedAvg(sampler=Poisson(local_steps=8, batch_size=2), lr=0.1)
    assert {event.steps for event in dataclasses.replace(whole, algorithm=poisson).plan.sampling} == {24}


def test_the_accounted_event_is_the_sampler_s():
    event = Poisson(local_epochs=2, batch_size=5).event(50, rounds=10)
    assert event == SamplingEvent(sampler="poisson", rate=0.1, steps=200)
    prepared = defense().prepare(plan([event]))
    stated = prepared.guarantee("server", "example", plan([event]))
    assert isinstance(stated, PrivacyStatement)
    assert stated.sampler == "Poisson, rate 0.1, 200 steps"


def test_an_uncalibrated_defence_does_not_run():
    for use in (
        lambda: defense().example_rule(4.0),
        lambda: defense().guarantee("server", "example", plan([EVENT])),
    ):
        with pytest.raises(RuntimeError, match="calibrated"):
            use()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0},
        {"epsilon": -1.0},
        {"epsilon": float("nan")},
        {"delta": 0.0},
        {"delta": 1.0},
        {"clip_norm": 0.0},
        {"clip_norm": float("inf")},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
    ],
)
def test_numbers_that_protect_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=rf"defense\.{next(iter(wrong))}"):
        defense(**wrong)
