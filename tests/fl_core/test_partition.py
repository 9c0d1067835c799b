"""Who holds what, who is a canary, who is a member."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.partition import (
    IID,
    NOBODY,
    Dirichlet,
    Natural,
    QuantitySkew,
    Shards,
    draw_members,
    plant_canaries,
    plant_rarity,
    split,
)

LABELS = torch.arange(1000) % 10


def image_set(labels: torch.Tensor, classes: int = 10) -> ImageSet:
    return ImageSet(torch.rand(len(labels), 1, 2, 2), labels, tuple(map(str, range(classes))))


def counts(owners: torch.Tensor, clients: int) -> torch.Tensor:
    """Examples of each class that each client holds [clients, 10]."""
    return torch.bincount(owners * 10 + LABELS, minlength=clients * 10).view(clients, 10)


@pytest.mark.parametrize(
    "partition", [IID(), Dirichlet(alpha=0.5), Dirichlet(alpha=100.0), Shards(), QuantitySkew()], ids=repr
)
def test_a_partition_gives_every_example_one_owner_and_is_a_function_of_the_run(partition):
    owners = split(partition, image_set(LABELS), 7, run=1)
    assert owners.shape == (1000,)
    assert owners.unique().tolist() == list(range(7))
    assert torch.equal(split(partition, image_set(LABELS), 7, run=1), owners)
    assert not torch.equal(split(partition, image_set(LABELS), 7, run=2), owners)


@given(
    labels=st.lists(st.integers(0, 5), min_size=20, max_size=200),
    clients=st.integers(1, 6),
    partition=st.one_of(
        st.just(IID()),
        st.floats(1e-3, 1e3).map(lambda alpha: Dirichlet(alpha=alpha)),
        st.integers(1, 3).map(lambda shards: Shards(shards_per_client=shards)),
        st.builds(QuantitySkew, alpha=st.floats(1e-3, 1e3), minimum=st.integers(1, 3)),
    ),
    run=st.integers(0, 2**63 - 1),
)
def test_every_partition_gives_every_example_to_one_of_the_clients(labels, clients, partition, run):
    owners = partition.owners(image_set(torch.tensor(labels)), clients, run)
    assert owners.shape == (len(labels),)
    assert owners.dtype == torch.long
    assert int(owners.min()) >= 0
    assert int(owners.max()) < clients
    if not isinstance(partition, Dirichlet):
        assert len(owners.unique()) == clients, "only Dirichlet shares can leave a client with nothing"


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


def test_dirichlet_shares_have_the_variance_of_their_alpha():
    # For Dirichlet(a) over C clients, the squared shares add up to (a + 1) / (C a + 1) on average. Over 400 classes of
    # 500 examples the mean is within 5 of its own standard errors (false alarm 6e-7); rounding moves it by less
    # than 2/500.
    labels = torch.arange(400).repeat(500)
    data = ImageSet(torch.zeros(len(labels), 1, 1, 1), labels, tuple(map(str, range(400))))
    for alpha in (0.1, 1.0, 10.0):
        owners = split(Dirichlet(alpha=alpha), data, 5, run=0)
        shares = torch.bincount(owners * 400 + labels, minlength=2000).view(5, 400).double() / 500
        squares = shares.square().sum(0)
        error = 5 * squares.std() / 20 + 2 / 500
        assert abs(squares.mean() - (alpha + 1) / (5 * alpha + 1)) < error
        assert error < 0.1, "the test can tell the three apart: 0.73, 0.33 and 0.22"


def test_shards_of_whole_classes_give_each_client_at_most_that_many_classes():
    for clients, shards in ((10, 2), (5, 2), (10, 1), (25, 2)):
        table = counts(split(Shards(shards_per_client=shards), image_set(LABELS), clients, run=0), clients)
        # Equal shards, a whole number of them in a class of 100, so none reaches over a class's end.
        assert int((table > 0).sum(1).max()) <= shards
        assert table.sum(1).max() - table.sum(1).min() <= shards
    owners = split(Shards(shards_per_client=1), image_set(LABELS), 10, run=0)
    assert counts(owners, 10).max(1).values.tolist() == [100] * 10, "one shard is one class, whole"


def test_shards_that_cut_through_classes_add_at_most_a_class_each():
    table = counts(split(Shards(shards_per_client=2), image_set(LABELS), 7, run=0), 7)
    assert int((table > 0).sum(1).max()) <= 4
    assert int((table > 0).sum(1).max()) > 2, "14 shards of 10 classes must cut through some"


def test_shards_are_dealt_and_filled_at_random():
    labels = torch.zeros(600, dtype=torch.long)
    one, other = (split(Shards(), image_set(labels), 3, run=run) for run in (0, 1))
    assert not torch.equal(one, other)
    assert len(one[:100].unique()) == 3, "examples of one class come into their shards by chance, not in file order"
    whole = Shards(shards_per_client=1)
    held = {tuple(counts(split(whole, image_set(LABELS), 10, run), 10).argmax(1).tolist()) for run in range(5)}
    assert len(held) == 5, "which client gets which class is drawn too"


def test_quantity_skew_is_even_for_a_large_alpha_and_leaves_the_minimum_for_a_small_one():
    even = split(QuantitySkew(alpha=1e6, minimum=1), image_set(LABELS), 4, run=0).bincount()
    assert (even - 250).abs().max() <= 2
    uneven = split(QuantitySkew(alpha=1e-4, minimum=7), image_set(LABELS), 4, run=0).bincount()
    assert uneven.sort().values.tolist() == [7, 7, 7, 979]
    exact = split(QuantitySkew(minimum=250), image_set(LABELS), 4, run=0).bincount()
    assert exact.tolist() == [250] * 4


def test_quantity_skew_sizes_have_the_variance_of_their_alpha():
    # As for Dirichlet above, over 400 runs: the mean of the summed squared shares, within 5 standard errors (6e-7).
    for alpha in (0.1, 1.0, 10.0):
        partition = QuantitySkew(alpha=alpha, minimum=1)
        data = image_set(LABELS)
        sizes = torch.stack([split(partition, data, 5, run).bincount(minlength=5) for run in range(400)])
        squares = ((sizes.double() - 1) / 995).square().sum(1)
        error = 5 * squares.std() / 20 + 2 / 500
        assert abs(squares.mean() - (alpha + 1) / (5 * alpha + 1)) < error


def test_quantity_skew_does_not_look_at_the_labels():
    # Chi-square of independence of owner and label, given the sizes; false alarm 1e-6 (and the seed is fixed).
    # The examples come sorted by class, so that an unshuffled deal would show.
    sorted_labels = LABELS.sort().values
    owners = split(QuantitySkew(alpha=5.0, minimum=50), image_set(sorted_labels), 4, run=0)
    table = torch.bincount(owners * 10 + sorted_labels, minlength=40).view(4, 10).double()
    expected = table.sum(1, keepdim=True) / 10
    statistic = ((table - expected).square() / expected).sum()
    assert chi2.sf(statistic.item(), 27) > 1e-6
    assert table.sum(1).max() > 1.5 * table.sum(1).min()


def test_natural_owners_are_the_clients():
    owners = LABELS % 3
    data = ImageSet(torch.zeros(1000, 1, 2, 2), LABELS, tuple("0123456789"), owners, ("amy", "bob", "zoe"))
    assert torch.equal(split(Natural(), data, 3, run=0), owners)
    for clients in (2, 4):
        with pytest.raises(InputError, match=rf"clients is {clients}, but the data have 3 owners; set clients=3"):
            split(Natural(), data, clients, run=0)
    with pytest.raises(InputError, match=r"data\.owner_column.*npz.*data\.by_owner"):
        split(Natural(), image_set(LABELS), 3, run=0)


def test_a_partition_that_leaves_a_client_with_nothing_is_refused():
    with pytest.raises(InputError, match=r"clients without an example; use fewer clients or a larger alpha"):
        split(Dirichlet(alpha=0.001), image_set(LABELS), 20, run=0)
    with pytest.raises(InputError, match=r"clients is 11, but there are only 10 examples"):
        split(IID(), image_set(torch.zeros(10, dtype=torch.long)), 11, run=0)
    with pytest.raises(InputError, match="clients is 0"):
        split(IID(), image_set(LABELS), 0, run=0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Dirichlet(alpha=0), r"partition\.alpha is 0"),
        (lambda: Dirichlet(alpha=1e308), r"partition\.alpha is 1e\+308"),
        (lambda: QuantitySkew(alpha=-1), r"partition\.alpha is -1"),
        (lambda: QuantitySkew(minimum=0), r"partition\.minimum is 0"),
        (lambda: Shards(shards_per_client=1.5), r"partition\.shards_per_client is 1\.5"),
        (lambda: split(QuantitySkew(minimum=300), image_set(LABELS), 4, 0), r"minimum is 300.* at most 250"),
        (lambda: split(Shards(shards_per_client=300), image_set(LABELS), 4, 0), r"1200 shards for 4 clients.* 1000 "),
    ],
)
def test_a_partition_s_option_that_means_nothing_is_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


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


def test_a_rarity_is_held_by_one_client_alone_and_nobody_holds_another():
    data = image_set(LABELS)
    owners = split(IID(), data, 5, run=0)
    planted = plant_rarity(data, owners, 7, 3, run=0)
    held = (LABELS == 7) & (planted != NOBODY)
    assert planted[held].tolist() == [3]
    assert (planted[(LABELS == 7) & ~held] == NOBODY).all()
    assert torch.equal(planted[LABELS != 7], owners[LABELS != 7])
    assert (owners != NOBODY).all(), "the owners that were given stay"
    assert torch.equal(plant_rarity(data, owners, "7", 3, run=0), planted)
    chosen = {int(torch.nonzero((plant_rarity(data, owners, 7, 3, run) == 3) & (LABELS == 7))) for run in range(50)}
    # 50 uniform draws from 100 give 39.5 different ones on average; fewer than 20 has a chance below 1e-12.
    assert len(chosen) > 20


def test_a_rarity_is_named_as_the_classes_are():
    data = ImageSet(torch.zeros(40, 1, 2, 2), torch.arange(40) % 2, ("3", "7"))
    owners = torch.arange(40) // 20
    assert (plant_rarity(data, owners, 7, 0, run=0)[data.labels == 0] != NOBODY).all()
    assert int((plant_rarity(data, owners, 1, 0, run=0)[data.labels == 1] != NOBODY).sum()) == 1


def test_among_canaries_the_rarity_is_a_true_one_and_none_that_hides_the_class_is_held():
    data = image_set(LABELS)
    planted, canary = plant_canaries(data, 0.9, run=0)
    owners = split(IID(), planted, 5, run=0)
    for run in range(20):
        rare = plant_rarity(planted, owners, 7, 0, run, true_labels=LABELS)
        bears_or_hides = (planted.labels == 7) | (LABELS == 7)
        held = torch.nonzero(bears_or_hides & (rare != NOBODY)).flatten()
        assert len(held) == 1
        assert not canary[held].any()
        assert LABELS[held].tolist() == [7]
        assert torch.equal(rare[~bears_or_hides], owners[~bears_or_hides])


def test_a_rarity_that_cannot_be_planted_is_refused():
    data, owners = image_set(LABELS), split(IID(), image_set(LABELS), 5, run=0)
    for label, client, says in (
        (10, 0, r"rarity\.label names 10; the data have 10 classes"),
        ("cat", 0, r"rarity\.label names 'cat'"),
        (7, 5, r"rarity\.client is 5; .* at most 4"),
        (7, None, r"rarity\.client is None"),
    ):
        with pytest.raises(InputError, match=says):
            plant_rarity(data, owners, label, client, run=0)
    with pytest.raises(InputError, match="no example of that class"):
        plant_rarity(image_set(LABELS % 5), owners, 7, 0, run=0)
    one_class_each = split(Shards(shards_per_client=1), data, 10, run=0)
    elsewhere = (int(one_class_each[7]) + 1) % 10
    with pytest.raises(InputError, match="takes every example of 1 of 10 clients"):
        plant_rarity(data, one_class_each, 7, elsewhere, run=0)


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


def test_what_nobody_owns_is_a_member_nowhere_and_nothing_else_changes():
    owners = torch.arange(100) % 4 - 1
    members = draw_members(8, 100, 0.5, run=0, owners=owners)
    assert not members[:, owners == NOBODY].any()
    assert torch.equal(members[:, owners >= 0], draw_members(8, 100, 0.5, run=0)[:, owners >= 0])
