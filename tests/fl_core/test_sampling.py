"""Which examples a step uses, and the event that is accounted for it."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom, chi2

from fl_core.errors import InputError
from fl_core.lanes import descend
from fl_core.optimizers import SGD
from fl_core.sampling import ExampleFeed, Poisson, SamplingEvent, Shuffled
from fl_core.seeds import generator


def test_poisson_draws_each_example_by_its_own_coin_of_the_stated_rate():
    examples = torch.arange(50) + 1000
    batches = Poisson(local_epochs=100, batch_size=5).draw(examples, 50, generator(0, "test"))
    assert len(batches) == 1000
    sizes = torch.tensor([len(batch) for batch in batches])
    # False alarm 1e-6 each: the total, the spread of the sizes, the spread of each example's visits.
    total = int(sizes.sum())
    assert 2 * min(binom.cdf(total, 50_000, 0.1), binom.sf(total - 1, 50_000, 0.1)) > 1e-6
    visits = torch.bincount(torch.cat(batches) - 1000, minlength=50)
    for hits, trials in ((sizes, 50), (visits, 1000)):
        statistic = ((hits - 0.1 * trials).square() / (trials * 0.09)).sum().item()
        assert 2 * min(chi2.cdf(statistic, len(hits)), chi2.sf(statistic, len(hits))) > 1e-6
    assert all(len(batch.unique()) == len(batch) for batch in batches)


def test_a_poisson_batch_may_be_empty_and_stays_in_the_plan():
    batches = Poisson(local_epochs=20, batch_size=1).draw(torch.arange(3), 3, generator(0, "test"))
    assert len(batches) == 60
    assert min(map(len, batches)) == 0
    assert max(map(len, batches)) > 1


@pytest.mark.parametrize("held", [0, 1, 40, 60, 500])
def test_poisson_steps_and_rate_come_from_the_public_size_alone(held: int):
    sampler = Poisson(local_epochs=3, batch_size=8)
    batches = sampler.draw(torch.arange(held), 50, generator(0, "test"))
    assert len(batches) == 3 * 7  # ceil(50 / 8) steps an epoch
    assert sampler.event(50, rounds=4) == SamplingEvent(sampler="poisson", rate=0.16, steps=84)
    drawn = sum(map(len, batches))
    # The rate of the coins stays 8/50 whatever is held; false alarm 1e-6.
    assert held == 0 or 2 * min(binom.cdf(drawn, 21 * held, 0.16), binom.sf(drawn - 1, 21 * held, 0.16)) > 1e-6


def test_one_example_more_changes_no_other_example_s_visits_in_law_nor_the_number_of_steps():
    sampler = Poisson(local_epochs=1, batch_size=8)
    few = sampler.draw(torch.arange(40), 50, generator(0, "test"))
    more = sampler.draw(torch.arange(41), 50, generator(0, "test"))
    assert len(few) == len(more)


def test_a_poisson_rate_never_exceeds_one():
    event = Poisson(local_epochs=2, batch_size=64).event(10, rounds=3)
    assert event == SamplingEvent(sampler="poisson", rate=1.0, steps=6)
    batches = Poisson(local_epochs=2, batch_size=64).draw(torch.arange(10), 10, generator(0, "test"))
    assert [batch.tolist() for batch in batches] == [list(range(10))] * 2


def test_shuffled_visits_each_example_once_an_epoch_in_a_fresh_order():
    examples = torch.randperm(1000)[:23]
    batches = Shuffled(local_epochs=3, batch_size=5).draw(examples, 23, generator(0, "test"))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3] * 3
    epochs = [torch.cat(batches[start : start + 5]) for start in (0, 5, 10)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, examples.sort().values)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_shuffled_gives_a_client_without_examples_no_step():
    assert Shuffled(local_epochs=3, batch_size=5).draw(torch.arange(0), 10, generator(0, "test")) == []


def test_shuffled_claims_no_amplification():
    event = Shuffled(local_epochs=2, batch_size=5).event(1000, rounds=3)
    assert event == SamplingEvent(sampler="shuffled", rate=1.0, steps=6)


@pytest.mark.parametrize("sampler", [Poisson, Shuffled])
def test_samplers_are_functions_of_the_generator(sampler):
    def draw(run: int) -> list[list[int]]:
        plan = sampler(local_epochs=1, batch_size=4).draw(torch.arange(40), 40, generator(run, "test"))
        return [batch.tolist() for batch in plan]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


@pytest.mark.parametrize("sampler", [Poisson, Shuffled])
@pytest.mark.parametrize("wrong", [{"local_epochs": 0}, {"batch_size": 0}, {"batch_size": 2.5}])
def test_samplers_refuse_numbers_that_mean_nothing(sampler, wrong):
    with pytest.raises(InputError, match=rf"sampler\.{next(iter(wrong))}"):
        sampler(**({"local_epochs": 1, "batch_size": 1} | wrong))


def feed(images: torch.Tensor) -> ExampleFeed:
    plan = [[torch.tensor([3, 4, 5]), torch.tensor([6])], [torch.tensor([7])], []]
    return ExampleFeed(images, torch.arange(len(images)), plan)


def test_the_feed_pads_with_a_mask_and_marks_idle_lanes():
    served = feed(torch.arange(8.0).view(8, 1, 1, 1))
    assert served.steps == 2
    first, second = served.stacked(0), served.stacked(1)
    assert first.mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert first.active is not None
    assert first.active.tolist() == [True, True, False]
    assert second.active is not None
    assert second.active.tolist() == [True, False, False]
    images, labels = first.inputs
    assert images[0].flatten().tolist() == [3, 4, 5]
    assert labels[0].tolist() == [3, 4, 5]
    assert labels[1, 0] == 7


def test_one_lane_s_batches_are_the_stacked_ones_without_padding():
    served = feed(torch.arange(8.0).view(8, 1, 1, 1))
    for step in range(served.steps):
        stacked = served.stacked(step)
        for lane in range(3):
            one = served.one(step, lane)
            if one is None:
                assert stacked.active is not None
                assert not stacked.active[lane]
                continue
            assert one.mask.all()
            for whole, alone in zip(stacked.inputs, one.inputs, strict=True):
                assert torch.equal(whole[lane][stacked.mask[lane].bool()], alone[0])


def test_an_empty_batch_inside_a_plan_is_a_step_and_not_an_idle_lane():
    none = torch.empty(0, dtype=torch.long)
    served = ExampleFeed(torch.rand(2, 1, 1, 1), torch.zeros(2), [[none, torch.tensor([1])]])
    assert served.stacked(0).active is None
    one = served.one(0, 0)
    assert one is not None
    assert one.mask.shape == (1, 0)


def test_padded_rows_never_touch_the_result():
    # Padding points at the pool's first example, which may be anyone's: its pixels must not matter, in bits.
    def trained(first: float) -> dict[str, torch.Tensor]:
        images = torch.rand(8, 1, 1, 1, generator=generator(0, "test"))
        images[0] = first
        start = {"weight": torch.tensor([[0.3, 0.1], [0.2, -0.4], [1.0, 1.0]])}

        def losses(variables, pixels, labels):
            return (pixels.flatten(1) @ variables["weight"][None] - labels[:, None]).square().sum(1)

        return descend(start, losses, feed(images), SGD(lr=0.01, momentum=0.5), backend="vmap")

    assert torch.equal(trained(0.0)["weight"], trained(1e6)["weight"])
