"""Who holds what, who is a canary, who is a member."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom, chi2

from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.partition import IID, Dirichlet, draw_members, plant_canaries, split

LABELS = torch.arange(1000) % 10


def image_set(labels: torch.Tensor, classes: int = 10) -> ImageSet:
    return ImageSet(torch.rand(len(labels), 1, 2, 2), labels, tuple(map(str, range(classes))))


def counts(owners: torch.Tensor, clients: int) -> torch.Tensor:
    """Examples of each class that each client holds [clients, 10]."""
    return torch.bincount(owners * 10 + LABELS, minlength=clients * 10).view(clients, 10)


@pytest.mark.parametrize("partition", [IID(), Dirichlet(alpha=0.5), Dirichlet(alpha=100.0)])
def test_a_partition_gives_every_example_one_owner_and_is_a_function_of_the_run(partition):
    owners = split(partition, image_set(LABELS), 7, run=1)
    assert owners.shape == (1000,)
    assert owners.unique().tolist() == list(range(7))
    assert torch.equal(split(partition, image_set(LABELS), 7, run=1), owners)
    assert not torch.equal(split(partition, image_set(LABELS), 7, run=2), owners)


def test_iid_sizes_differ_by_at_most_one():
    sizes = split(IID(), image_set(LABELS), 7, run=0).bincount()
    assert sizes.max() - sizes.min() <= 1


def test_iid_does_not_look_at_the_labels():
    # Independence of owner and label: chi-square on 4 x 10 cells, false alarm 1e-6 (and the seed is fixed).
    table = counts(split(IID(), image_set(LABELS), 4, run=0), 4).double()
    statistic = (table - 25).square().sum() / 25
    assert chi2.sf(statistic.item(), 27) > 1e-6


def test_a_small_alpha_makes_uneven_clients_and_a_large_one_even_clients():
    def largest_share(alpha: float) -> float:
        table = counts(split(Dirichlet(alpha=alpha), image_set(LABELS), 5, run=3), 5).double()
        return float((table / table.sum(0)).max(0).values.mean())

    assert largest_share(1000.0) < 0.25
    assert largest_share(0.05) > 0.8


def test_a_partition_that_leaves_a_client_with_nothing_is_refused():
    with pytest.raises(InputError, match=r"clients without an example; use fewer clients or a larger alpha"):
        split(Dirichlet(alpha=0.001), image_set(LABELS), 20, run=0)
    with pytest.raises(InputError, match=r"clients is 11, but there are only 10 examples"):
        split(IID(), image_set(torch.zeros(10, dtype=torch.long)), 11, run=0)
    with pytest.raises(InputError, match="clients is 0"):
        split(IID(), image_set(LABELS), 0, run=0)
    with pytest.raises(InputError, match=r"partition\.alpha is 0"):
        Dirichlet(alpha=0)


def test_canaries_are_the_stated_number_with_a_wrong_label_and_nothing_else_changes():
    data = image_set(LABELS)
    planted, canary = plant_canaries(data, 0.1, run=0)
    assert int(canary.sum()) == 100
    assert torch.equal(planted.labels != data.labels, canary)
    assert planted.labels.min() >= 0
    assert planted.labels.max() <= 9
    assert torch.equal(planted.images, data.images)
    assert torch.equal(data.labels, LABELS), "the data that were given stay"
    again, same = plant_canaries(data, 0.1, run=0)
    assert torch.equal(again.labels, planted.labels)
    assert torch.equal(same, canary)


def test_with_two_classes_a_canary_gets_the_other_one():
    labels = torch.arange(50) % 2
    planted, canary = plant_canaries(image_set(labels, classes=2), 0.5, run=0)
    assert torch.equal(planted.labels[canary], 1 - labels[canary])


def test_no_canaries_leave_the_data_as_they_are():
    planted, canary = plant_canaries(image_set(LABELS), 0.0, run=0)
    assert not canary.any()
    assert torch.equal(planted.labels, LABELS)


def test_membership_is_one_coin_an_example_and_a_replica():
    members = draw_members(64, 500, 0.3, run=0)
    # False alarm 1e-6 for the total, and for the spread of each replica's and each example's counts
    # (chi-square), of which an exactly-half design would have none.
    total = int(members.sum())
    assert 2 * min(binom.cdf(total, 32_000, 0.3), binom.sf(total - 1, 32_000, 0.3)) > 1e-6
    for axis, trials in ((0, 64), (1, 500)):
        hits = members.sum(axis).double()
        statistic = ((hits - 0.3 * trials).square() / (trials * 0.21)).sum().item()
        assert 2 * min(chi2.cdf(statistic, len(hits)), chi2.sf(statistic, len(hits))) > 1e-6


def test_a_replica_s_members_do_not_depend_on_how_many_replicas_there_are():
    assert torch.equal(draw_members(8, 100, 0.5, run=0)[:3], draw_members(3, 100, 0.5, run=0))


def test_at_rate_one_everyone_is_a_member_and_at_rate_zero_it_is_refused():
    assert draw_members(2, 100, 1, run=0).all()
    with pytest.raises(InputError, match="membership is 0"):
        draw_members(2, 100, 0, run=0)
