"""How the server makes one update of a cohort's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fl_core.aggregation import Krum, Mean, Median, TrimmedMean, weights
from fl_core.errors import InputError


def everyone(sizes: Tensor) -> Tensor:
    return torch.ones_like(sizes, dtype=torch.bool)


def test_shares_are_equal_or_proportional_to_the_sizes():
    sizes = torch.tensor([[1, 3], [2, 2], [0, 5]])
    assert weights("uniform", sizes, everyone(sizes)).tolist() == [[0.5, 0.5]] * 3
    assert weights("by_examples", sizes, everyone(sizes)).tolist() == [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]]


def test_shares_sum_to_one_a_replica_over_those_who_are_present():
    sizes = torch.randint(1, 1000, (7, 13))
    present = torch.rand(7, 13) < 0.6
    present[3] = False
    for weighting in ("uniform", "by_examples"):
        shares = weights(weighting, sizes, present)
        torch.testing.assert_close(shares.sum(1), present.any(1).float())
        assert (shares[~present] == 0).all()


def test_a_cohort_without_any_example_has_no_share_and_no_nan():
    sizes = torch.zeros(1, 3, dtype=torch.long)
    assert weights("by_examples", sizes, everyone(sizes)).tolist() == [[0.0, 0.0, 0.0]]


def test_an_unknown_weighting_is_refused():
    with pytest.raises(InputError, match=r"algorithm\.weighting is 'by_example'.*did you mean 'by_examples'"):
        weights("by_example", torch.ones(1, 1), torch.ones(1, 1).bool())


def test_the_mean_is_each_replica_s_own_weighted_sum():
    updates = {"weight": torch.randn(3, 4, 2, 5), "bias": torch.randn(3, 4, 2), "scale": torch.randn(3, 4)}
    shares = torch.rand(3, 4)
    total = Mean()(updates, shares, torch.ones(3, 4).bool())
    for name, value in updates.items():
        assert total[name].shape == value[:, 0].shape
        for replica in range(3):
            expected = sum(shares[replica, client] * value[replica, client] for client in range(4))
            torch.testing.assert_close(total[name][replica], expected)


PRESENT = torch.tensor([[True, True, True, True, False], [True, False, True, True, False], [False] * 5])
SENT = {"w": torch.tensor([[[1.0], [9.0], [2.0], [4.0], [50.0]], [[3.0], [50.0], [1.0], [8.0], [50.0]], [[50.0]] * 5])}
"""Three replicas, five seats, one weight; absent seats hold a 50 that must not count."""


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        (Median(), [3.0, 3.0, 0.0]),  # of 1, 2, 4, 9 the mean of 2 and 4; of 1, 3, 8 the 3
        (TrimmedMean(trim=0.25), [3.0, 4.0, 0.0]),  # one off each end of 1, 2, 4, 9; none off 1, 3, 8
        (TrimmedMean(trim=0.0), [4.0, 4.0, 0.0]),
    ],
)
def test_robust_means_are_the_numbers_worked_out_by_hand_over_those_present(aggregator, expected):
    total = aggregator(SENT, torch.full((3, 5), 0.2), PRESENT)
    assert total["w"].flatten().tolist() == pytest.approx(expected)


def test_krum_picks_the_update_nearest_to_its_neighbours():
    # n = 5, f = 1: scores over the n - f - 2 = 2 nearest. At 0, 1, 3, 4.5, 100:
    # 0: 1 + 9 = 10;  1: 1 + 4 = 5;  3: 4 + 2.25 = 6.25;  4.5: 2.25 + 12.25 = 14.5;  100: far.
    updates = {"w": torch.tensor([[[0.0], [1.0], [3.0], [4.5], [100.0]]])}
    everyone = torch.ones(1, 5).bool()
    assert Krum(byzantine=1)(updates, torch.ones(1, 5), everyone)["w"].item() == 1.0
    assert Krum(byzantine=1, keep=2)(updates, torch.ones(1, 5), everyone)["w"].item() == 2.0


def test_krum_measures_distances_over_all_variables_together():
    # Alone, "a" would choose 1.0 and "b" would choose 5.0; together the third client is nearest to its neighbours.
    updates = {
        "a": torch.tensor([[[0.9], [1.0], [1.2], [9.0], [1.3]]]),
        "b": torch.tensor([[[9.0], [-9.0], [5.0], [5.0], [5.1]]]),
    }
    total = Krum(byzantine=1)(updates, torch.ones(1, 5), torch.ones(1, 5).bool())
    assert (round(total["a"].item(), 3), round(total["b"].item(), 3)) in {(1.2, 5.0), (1.3, 5.1)}


def test_one_liar_moves_the_mean_without_bound_and_the_robust_means_hardly():
    honest = torch.randn(1, 10, 20)
    present, shares = torch.ones(1, 11).bool(), torch.full((1, 11), 1 / 11)
    lied = {"w": torch.cat([honest, torch.full((1, 1, 20), 1e6)], 1)}
    assert Mean()(lied, shares, present)["w"].abs().min() > 1e4
    for aggregator in (Median(), TrimmedMean(trim=0.1), Krum(byzantine=1)):
        found = aggregator(lied, shares, present)["w"]
        assert (found >= honest.amin(1)).all()
        assert (found <= honest.amax(1)).all()


def test_krum_refuses_a_round_with_too_few_updates():
    with pytest.raises(InputError, match=r"a round has 4 updates, but Krum with aggregator\.byzantine=1"):
        Krum(byzantine=1)({"w": torch.randn(1, 4, 2)}, torch.ones(1, 4), torch.ones(1, 4).bool())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrimmedMean(trim=0.5), r"aggregator\.trim is 0\.5"),
        (lambda: Krum(byzantine=-1), r"aggregator\.byzantine is -1"),
        (lambda: Krum(keep=0), r"aggregator\.keep is 0"),
    ],
)
def test_aggregators_refuse_numbers_that_mean_nothing(make, message):
    with pytest.raises(InputError, match=message):
        make()
