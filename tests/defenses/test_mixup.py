"""mixup: what is mixed, with whom, and what the loss of a mixture is."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from defenses.mixup import MixedFeed, Mixup
from fl_core.architectures import CNN
from fl_core.augmentation import FlipAndShift
from fl_core.errors import InputError
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, cross_entropy, initial_parameters
from fl_core.optimizers import SGD
from fl_core.sampling import ExampleFeed
from fl_core.seeds import from_seed, generator

IMAGES = torch.rand(20, 1, 6, 6, generator=generator(0, "pictures"))
LABELS = torch.arange(20) % 3
PLAN = [[[0, 1, 2, 3, 4], [5]], [[], [6, 7, 8]], [[9, 10]]]
SEEDS = [11, 2**62 + 5, 13]


def plain(lanes: tuple[int, ...] = (0, 1, 2)) -> ExampleFeed:
    return ExampleFeed(IMAGES, LABELS, [[torch.tensor(b, dtype=torch.long) for b in PLAN[lane]] for lane in lanes])


def mixed(alpha: float = 1.0, lanes: tuple[int, ...] = (0, 1, 2)) -> MixedFeed:
    return Mixup(alpha=alpha).batch_rule().feed(plain(lanes), [SEEDS[lane] for lane in lanes], 3)


def parts(batch) -> tuple[Tensor, Tensor]:
    pictures, chances = batch.inputs
    return pictures, chances


def test_a_batch_is_mixed_with_a_permutation_of_itself():
    feed = mixed()
    share, partners = feed.draw(SEEDS[0], 0, 5)
    assert 0 < share < 1
    assert sorted(partners.tolist()) == [0, 1, 2, 3, 4]
    pictures, chances = parts(feed.one(0, 0))
    torch.testing.assert_close(pictures[0], share * IMAGES[:5] + (1 - share) * IMAGES[partners])
    for row, partner in enumerate(partners.tolist()):
        expected = torch.zeros(3)
        expected[LABELS[row]] += share
        expected[LABELS[partner]] += 1 - share
        torch.testing.assert_close(chances[0, row], expected)


def test_one_lane_and_the_stack_see_the_same_pictures():
    feed = mixed()
    assert feed.steps == 2
    for step in range(2):
        whole = feed.stacked(step)
        for lane in range(3):
            one = feed.one(step, lane)
            if one is None:
                assert not whole.active[lane]
                continue
            count = one.mask.shape[1]
            for alone, together in zip(parts(one), parts(whole), strict=True):
                assert torch.equal(alone[0], together[lane, :count])


def test_a_lane_s_mixtures_do_not_depend_on_its_neighbours():
    alone = mixed(lanes=(1,)).stacked(1)
    for one, all_lanes in zip(parts(alone), parts(mixed().stacked(1)), strict=True):
        assert torch.equal(one[0], all_lanes[1, : one.shape[1]])


def test_padding_stays_padding_and_no_real_row_takes_part_of_it():
    before, after = plain().stacked(0), mixed().stacked(0)
    assert torch.equal(before.mask, after.mask)
    padding = before.mask == 0
    torch.testing.assert_close(parts(after)[0][padding], before.inputs[0][padding])
    # In a lane of rows 9 and 10 a mixture lies on the line between the two, and its two rows sum to their sum.
    torch.testing.assert_close(parts(after)[0][2, :2].sum(0), IMAGES[9] + IMAGES[10])


@pytest.mark.parametrize(("step", "lane"), [(1, 0), (0, 1)])
def test_a_batch_of_fewer_than_two_is_left_as_it_is(step: int, lane: int):
    before, after = plain().one(step, lane), mixed().one(step, lane)
    assert torch.equal(after.inputs[0], before.inputs[0])
    assert torch.equal(parts(after)[1].argmax(-1), before.inputs[1])
    assert set(parts(after)[1].flatten().tolist()) <= {0.0, 1.0}


def test_chances_sum_to_one_and_can_be_mixed_again():
    once = mixed()
    twice = Mixup(alpha=0.5).batch_rule().feed(once, [1, 2, 3], 3)
    for feed in (once, twice):
        chances = parts(feed.stacked(0))[1]
        torch.testing.assert_close(chances.sum(-1), torch.ones(3, 5))
        assert (chances >= 0).all()
    assert not torch.equal(parts(twice.stacked(0))[0], parts(once.stacked(0))[0])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_beta_distributed_and_fresh_in_each_step_and_lane(alpha: float):
    feed = mixed(alpha)
    shares = [feed.draw(lane, step, 4)[0] for lane in range(20) for step in range(100)]
    assert len(set(shares)) > 1990
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-6  # the chance of a false alarm


def test_partners_are_drawn_evenly():
    counts = torch.zeros(4, 4)
    for step in range(2000):
        counts[torch.arange(4), mixed().draw(3, step, 4)[1]] += 1
    # Each of 16 counts is binomial(2000, 1/4); six deviations are a false alarm of 2e-9 each.
    assert (counts - 500).abs().max() < 6 * math.sqrt(2000 * 3 / 16)


def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses():
    scores = torch.randn(5, 3)
    feed = mixed()
    share, partners = feed.draw(SEEDS[0], 0, 5)
    chances = parts(feed.one(0, 0))[1][0]
    expected = share * cross_entropy(scores, LABELS[:5]) + (1 - share) * cross_entropy(scores, LABELS[partners])
    torch.testing.assert_close(cross_entropy(scores, chances), expected)


def test_backends_train_alike():
    model = CNN((1, 6, 6), 3, width=4)
    starts = [initial_parameters(model, lane) for lane in range(3)]
    start = {name: torch.stack([one[name] for one in starts]) for name in starts[0]}
    trained = {
        backend: descend(start, ClassificationLosses(model), mixed(), SGD(lr=0.5), backend=backend)
        for backend in ("vmap", "loop")
    }
    for name, value in trained["vmap"].items():
        torch.testing.assert_close(trained["loop"][name], value, rtol=0, atol=1e-5)
    unmixed = descend(start, ClassificationLosses(model), plain(), SGD(lr=0.5), backend="vmap")
    assert (unmixed["head.weight"] - trained["vmap"]["head.weight"]).abs().max() > 1e-4


def test_augmented_pictures_are_mixed_after_they_are_looked_at():
    looks = FlipAndShift(shift=1).draw(5, from_seed(4))
    rows = [[torch.arange(5)]]
    before = ExampleFeed(IMAGES, LABELS, rows, [[looks]])
    feed = Mixup(alpha=1.0).batch_rule().feed(before, [1], 3)
    share, partners = feed.draw(1, 0, 5)
    seen = before.one(0, 0).inputs[0][0]
    torch.testing.assert_close(parts(feed.one(0, 0))[0][0], share * seen + (1 - share) * seen[partners])


@pytest.mark.parametrize("alpha", [0, -1, math.inf, math.nan, "a", True])
def test_bad_alphas_are_refused(alpha: object):
    with pytest.raises(InputError, match=r"^defense\.alpha is "):
        Mixup(alpha=alpha)
