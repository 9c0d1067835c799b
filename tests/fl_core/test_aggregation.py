"""How the server weighs a cohort."""

from __future__ import annotations

import pytest
import torch

from fl_core.aggregation import weighted_sum, weights
from fl_core.errors import InputError


def test_shares_are_equal_or_proportional_to_the_sizes():
    sizes = torch.tensor([[1, 3], [2, 2], [0, 5]])
    assert weights("uniform", sizes).tolist() == [[0.5, 0.5]] * 3
    assert weights("by_examples", sizes).tolist() == [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]]


def test_shares_sum_to_one_a_replica():
    sizes = torch.randint(1, 1000, (7, 13))
    for weighting in ("uniform", "by_examples"):
        torch.testing.assert_close(weights(weighting, sizes).sum(1), torch.ones(7))


def test_a_cohort_without_any_example_has_no_share_and_no_nan():
    assert weights("by_examples", torch.zeros(1, 3, dtype=torch.long)).tolist() == [[0.0, 0.0, 0.0]]


def test_an_unknown_weighting_is_refused():
    with pytest.raises(InputError, match=r"algorithm\.weighting is 'by_example'.*did you mean 'by_examples'"):
        weights("by_example", torch.ones(1, 1))


def test_the_weighted_sum_is_each_replica_s_own():
    updates = {"weight": torch.randn(3, 4, 2, 5), "bias": torch.randn(3, 4, 2), "scale": torch.randn(3, 4)}
    shares = torch.rand(3, 4)
    total = weighted_sum(updates, shares)
    for name, value in updates.items():
        assert total[name].shape == value[:, 0].shape
        for replica in range(3):
            expected = sum(shares[replica, client] * value[replica, client] for client in range(4))
            torch.testing.assert_close(total[name][replica], expected)
