"""ROC and intervals over replicas against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import beta

from attacks.metrics import (
    Interval,
    auc,
    balanced_accuracy,
    bootstrap_over_replicas,
    clopper_pearson,
    label_recall,
    mean_interval,
    median_interval,
    roc,
    roc_band,
    share_interval,
    supports,
    tpr_at_fpr,
)
from fl_core.errors import InputError


def test_roc_has_one_point_a_distinct_score_and_ties_enter_together():
    scores = np.array([3.0, 2.0, 2.0, 2.0, 1.0])
    members = np.array([True, True, False, False, True])
    fpr, tpr = roc(scores, members)
    np.testing.assert_allclose(fpr, [0, 0, 1, 1])
    np.testing.assert_allclose(tpr, [0, 1 / 3, 2 / 3, 1])


def test_roc_and_auc_do_not_depend_on_the_order_of_the_examples():
    rng = np.random.default_rng(0)
    scores, members = rng.integers(0, 5, 200).astype(float), rng.random(200) < 0.5
    shuffle = rng.permutation(200)
    for one, other in zip(roc(scores, members), roc(scores[shuffle], members[shuffle]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_auc_is_the_mann_whitney_count_with_ties_half():
    rng = np.random.default_rng(1)
    scores, members = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4
    difference = scores[members][:, None] - scores[~members][None]
    assert auc(scores, members) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean(), abs=1e-12)


def test_constant_scores_are_worth_nothing_at_any_fpr():
    scores, members = np.zeros(2000), np.arange(2000) < 1000
    assert auc(scores, members) == 0.5
    assert tpr_at_fpr(scores, members, 0.01) == 0.0
    assert tpr_at_fpr(scores, members, 1.0) == 1.0


def test_infinite_scores_rank_at_the_ends():
    members = np.array([True, False, True, False])
    assert auc(np.array([np.inf, -np.inf, 0.0, 0.0]), members) == pytest.approx(0.875)


@pytest.mark.parametrize(("mu", "area", "power"), [(0.0, 0.5, 0.01), (1.0, 0.7602, 0.0924), (2.0, 0.921, 0.372)])
def test_gaussian_scores_reach_the_closed_form(mu: float, area: float, power: float):
    # AUC = Φ(μ/√2), TPR(F) = Φ(Φ⁻¹(F) + μ). With 200,000 a side the standard errors are at most .0009 and
    # .0033 (the latter with the threshold's own error, at μ=2); 4 of them, six checks: false alarms below 1
    # in 2,500.
    rng = np.random.default_rng(2)
    members = np.arange(400_000) < 200_000
    scores = rng.standard_normal(400_000) + mu * members
    assert auc(scores, members) == pytest.approx(area, abs=4 * 0.0009)
    assert tpr_at_fpr(scores, members, 0.01) == pytest.approx(power, abs=4 * 0.0033)


def test_tpr_at_fpr_takes_the_last_threshold_within_the_budget_and_interpolates_nothing():
    members = np.array([True] * 4 + [False] * 4)
    scores = np.array([9.0, 7.0, 5.0, 1.0, 8.0, 6.0, 4.0, 3.0])
    assert tpr_at_fpr(scores, members, 0.25) == 0.5  # one of four non-members
    assert tpr_at_fpr(scores, members, 0.49) == 0.5
    assert tpr_at_fpr(scores, members, 0.5) == 0.75


def test_a_stated_fpr_does_not_lose_a_non_member_to_rounding():
    # .29 · 100 is 28.999…: 29 false positives are still within it.
    scores, members = np.arange(200.0)[::-1], np.arange(200) >= 100
    assert tpr_at_fpr(np.concatenate([scores[:29], [500.0], scores[29:199] - 300]), members, 0.29) == 0.0
    order = np.array([*range(29), 100, *range(29, 100), *range(101, 200)])  # 29 non-members, then a member
    ranked = np.empty(200)
    ranked[order] = np.arange(200.0)[::-1]
    assert tpr_at_fpr(ranked, members, 0.29) == pytest.approx(0.01)


def test_an_fpr_that_the_non_members_cannot_support_is_refused_with_the_number_needed():
    scores, members = np.arange(200.0), np.arange(200) < 100
    assert supports(0.01, 100)
    assert not supports(0.01, 99)
    assert not supports(0.001, 719)
    with pytest.raises(InputError, match="needs ≥ 1000 non-members, has 100"):
        tpr_at_fpr(scores, members, 0.001)
    with pytest.raises(InputError, match="needs ≥ 1000 non-members, has 400"):
        bootstrap_over_replicas(np.tile(scores, (4, 1)), np.tile(members, (4, 1)), fpr=0.001)


@pytest.mark.parametrize(
    ("scores", "members", "message"),
    [
        ([1.0, np.nan], [True, False], "1 of 2 scores are NaN"),
        ([1.0, 2.0], [True, True], "2 of 2 are members"),
        ([1.0, 2.0, 3.0], [True, False], "do not fit"),
        ([1.0, 2.0], [1, 0], "booleans"),
    ],
)
def test_unusable_scores_are_refused(scores: list[float], members: list[bool], message: str):
    with pytest.raises(InputError, match=message):
        roc(np.array(scores), np.array(members))


def naive_pool(scores, members, mask, picks, fpr):
    kept = [mask[r] for r in picks]
    pooled = np.concatenate([scores[r][k] for r, k in zip(picks, kept, strict=True)])
    inside = np.concatenate([members[r][k] for r, k in zip(picks, kept, strict=True)])
    return auc(pooled, inside), tpr_at_fpr(pooled, inside, fpr)


@pytest.mark.parametrize("tied", [False, True])
def test_bootstrap_equals_pooling_the_drawn_replicas_one_resample_at_a_time(tied: bool):
    rng = np.random.default_rng(3)
    members = rng.random((6, 90)) < 0.5
    mask = rng.random((6, 90)) < 0.8
    scores = rng.standard_normal((6, 90)) + members + rng.standard_normal((6, 1))
    scores = np.round(scores) if tied else scores
    result = bootstrap_over_replicas(scores, members, mask, fpr=0.1, resamples=60, seed=7)
    weights = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), size=60)
    pools = [naive_pool(scores, members, mask, np.repeat(np.arange(6), w), 0.1) for w in weights]
    for k, interval in enumerate((result.auc, result.tpr)):
        # Student's t with 5 degrees of freedom leaves 2.571 each side; √(6/5) for the plug-in spread.
        reach = 2.5706 * np.sqrt(6 / 5)
        low, high = np.quantile([p[k] for p in pools], [ndtr(-reach), ndtr(reach)])
        value = naive_pool(scores, members, mask, range(6), 0.1)[k]
        if interval is result.tpr:  # never narrower than its own count allows
            exact = clopper_pearson(round(value * result.members), result.members)
            low, high = min(low, exact.low), max(high, exact.high)
        np.testing.assert_allclose([interval.value, interval.low, interval.high], [value, low, high], atol=1e-4)
    assert result.members == int(members[mask].sum())
    assert result.members + result.non_members == int(mask.sum())


def test_a_mask_over_examples_serves_every_replica():
    rng = np.random.default_rng(4)
    members, mask = rng.random((5, 60)) < 0.5, rng.random(60) < 0.5
    scores = rng.standard_normal((5, 60))
    short = bootstrap_over_replicas(scores, members, mask, fpr=0.1, resamples=50)
    assert short == bootstrap_over_replicas(scores, members, np.tile(mask, (5, 1)), fpr=0.1, resamples=50)
    assert short == bootstrap_over_replicas(scores[:, mask], members[:, mask], fpr=0.1, resamples=50)


def test_replicas_with_members_only_can_stand_in_a_pool():
    scores = np.array([[3.0, 2.0], [1.0, 0.0], [0.5, 2.5]])
    members = np.array([[True, True], [False, False], [True, False]])
    result = bootstrap_over_replicas(scores, members, fpr=1.0, resamples=200)
    assert result.auc.value == pytest.approx(6 / 9)
    assert np.isfinite([result.auc.low, result.auc.high, result.tpr.low, result.tpr.high]).all()


def test_a_rate_of_zero_keeps_an_interval():
    scores = np.tile(np.r_[np.full(50, 1.0), np.full(50, 0.0)], (4, 1))  # non-members on top: no member is found
    members = np.tile(np.arange(100) >= 50, (4, 1))
    tpr = bootstrap_over_replicas(scores, members, fpr=0.1).tpr
    assert (tpr.value, tpr.low) == (0.0, 0.0)
    assert tpr.high == pytest.approx(1 - 0.025 ** (1 / 200))  # Clopper and Pearson: 0 of 200


def test_an_interval_over_one_replica_is_refused():
    with pytest.raises(InputError, match="at least 2 replicas"):
        bootstrap_over_replicas(np.array([[1.0, 0.0]]), np.array([[True, False]]), fpr=1.0)


def test_bootstrap_covers_the_truth_when_replicas_differ_where_an_interval_over_examples_does_not():
    # Each replica has its own strength a ~ N(1, .5²); its scores are N(±a/2, 1). Over pairs of different
    # replicas the AUC is Φ(1/√(2 + .125)), within one it is Φ(1/√(2 + .25)), and one pair in 24 is within.
    # The widened percentile interval over 24 replicas covers about 94%; at least 90% of 300 is demanded, which a
    # true 94% fails once in 300 seeds.
    rng = np.random.default_rng(5)
    trials, replicas, examples = 300, 24, 100
    within, between = ndtr(1 / np.sqrt(2.25)), ndtr(1 / np.sqrt(2.125))
    truth = float(within + (replicas - 1) * between) / replicas
    members = np.tile(np.arange(examples) < examples // 2, (replicas, 1))
    over_replicas = over_examples = 0
    for _ in range(trials):
        strength = 1 + 0.5 * rng.standard_normal((replicas, 1))
        scores = rng.standard_normal((replicas, examples)) + strength * (members - 0.5)
        interval = bootstrap_over_replicas(scores, members, fpr=0.05, resamples=200).auc
        over_replicas += interval.low <= truth <= interval.high
        # Hanley and McNeil's standard error, for scores taken as independent; .0098 at this AUC and size.
        over_examples += abs(interval.value - truth) <= 1.96 * 0.0098
    assert over_replicas / trials >= 0.90
    assert over_examples / trials <= 0.75


def test_the_interval_narrows_with_replicas_and_is_the_same_for_the_same_seed():
    rng = np.random.default_rng(6)
    members = rng.random((40, 50)) < 0.5
    scores = rng.standard_normal((40, 50)) + members
    few = bootstrap_over_replicas(scores[:10], members[:10], fpr=0.1, resamples=400)
    many = bootstrap_over_replicas(scores, members, fpr=0.1, resamples=400)
    assert many.auc.high - many.auc.low < few.auc.high - few.auc.low
    assert many == bootstrap_over_replicas(scores, members, fpr=0.1, resamples=400)


def test_the_roc_band_follows_the_pooled_roc_and_encloses_it():
    rng = np.random.default_rng(7)
    members = rng.random((12, 200)) < 0.5
    scores = rng.standard_normal((12, 200)) + members
    band = roc_band(scores, members, points=20, resamples=200)
    non_members = int((~members).sum())
    assert band.fpr[0] == pytest.approx(1 / non_members)
    assert band.fpr[-1] == 1.0
    np.testing.assert_allclose(band.tpr, [tpr_at_fpr(scores.ravel(), members.ravel(), f) for f in band.fpr])
    assert (np.diff(band.tpr) >= 0).all()
    assert (band.low <= band.tpr).all()
    assert (band.tpr <= band.high).all()
    assert band.low[-1] == band.high[-1] == 1.0


def test_mean_interval_covers_an_independent_mean():
    # 95% nominal, about 91% for 40 skewed values; at least 86% of 300 is demanded: a false alarm once in 700.
    rng = np.random.default_rng(8)
    intervals = [mean_interval(rng.exponential(size=40), seed=k, resamples=200) for k in range(300)]
    assert np.mean([i.low <= 1.0 <= i.high for i in intervals]) >= 0.86
    assert mean_interval(np.array([3.0])) == Interval(3.0, 3.0, 3.0)


def test_mean_interval_refuses_what_a_mean_would_hide():
    with pytest.raises(InputError, match="1 of 3 values are not finite"):
        mean_interval(np.array([20.0, np.inf, 21.0]))
    with pytest.raises(InputError, match="at least one"):
        mean_interval(np.array([]))


def test_clopper_pearson_agrees_with_the_beta_quantiles_and_its_closed_ends():
    interval = clopper_pearson(7, 20)
    np.testing.assert_allclose(
        [interval.value, interval.low, interval.high],
        [0.35, beta.ppf(0.025, 7, 14), beta.ppf(0.975, 8, 13)],
        rtol=1e-9,
    )
    none, every = clopper_pearson(0, 100), clopper_pearson(100, 100)
    assert (none.low, every.high) == (0.0, 1.0)
    assert none.high == pytest.approx(1 - 0.025**0.01)
    assert every.low == pytest.approx(0.025**0.01)
    with pytest.raises(InputError, match="successes"):
        clopper_pearson(5, 4)


def test_several_rates_come_with_one_resampling_and_equal_those_of_one():
    rng = np.random.default_rng(5)
    members = rng.random((6, 400)) < 0.5
    scores = rng.normal(size=members.shape) + members
    together = bootstrap_over_replicas(scores, members, fpr=0.1, fprs=(0.1, 0.01))
    assert together.tprs[0.1] == together.tpr
    assert together.tprs[0.01] == bootstrap_over_replicas(scores, members, fpr=0.01).tpr
    with pytest.raises(InputError, match="needs ≥ 100000 non-members"):
        bootstrap_over_replicas(scores, members, fprs=(1e-5,))


def test_balanced_accuracy_takes_its_threshold_from_the_other_replicas():
    rng = np.random.default_rng(6)
    members = rng.random((12, 2000)) < 0.5
    scores = rng.normal(size=members.shape) + members  # the best threshold is a half, the accuracy Φ(½)
    found = balanced_accuracy(scores, members)
    assert found.shape == (12,)
    # 12 x 2000 coins: a deviation of .003; five of them, and what a threshold that is off by .1 loses.
    assert found.mean() == pytest.approx(ndtr(0.5), abs=0.016)
    # A threshold chosen on a replica's own labels finds signal in pure noise; one of the others does not.
    noise = balanced_accuracy(rng.normal(size=members.shape), members)
    assert abs(noise.mean() - 0.5) < 5 * 0.5 / np.sqrt(members.size)
    by_hand = []
    for replica in range(12):
        others = np.arange(12) != replica
        cuts = np.unique(scores[others])
        pooled, inside = scores[others].ravel(), members[others].ravel()
        ins, outs = np.sort(pooled[inside]), np.sort(pooled[~inside])
        below_ins, below_outs = (np.searchsorted(side, cuts) / len(side) for side in (ins, outs))
        cut = cuts[(below_outs - below_ins).argmax()]
        own, mine = scores[replica], members[replica]
        by_hand.append(((own[mine] >= cut).mean() + (own[~mine] < cut).mean()) / 2)
    np.testing.assert_allclose(found, by_hand, atol=2e-3)  # between two scores of the others any threshold will do


def test_median_interval_covers_the_median_and_an_outlier_moves_it_not():
    values = np.arange(21.0)
    found = median_interval(values)
    assert found.value == 10
    assert found.low < 10 < found.high
    values[-1] = 1e6
    assert median_interval(values).value == 10
    assert mean_interval(values).value > 1e4


def test_a_share_of_all_or_nothing_is_counted_exactly_and_any_other_is_resampled():
    assert share_interval(np.ones(12)) == clopper_pearson(12, 12)
    assert share_interval(np.array([0.0, 1.0, 1.0])) == clopper_pearson(2, 3)
    parts = np.array([0.25, 0.5, 1.0, 0.75])
    assert share_interval(parts) == mean_interval(parts)
    with pytest.raises(InputError, match="in \\[0, 1\\]"):
        share_interval(np.array([0.5, 1.5]))


def test_label_recall_counts_multisets_whatever_the_order():
    true = np.array([[3, 3, 5, 0], [1, 1, 1, 1], [2, 4, 6, 8]])
    found = np.array([[5, 3, 7, 3], [1, 1, 0, -1], [-1, -1, -1, -1]])
    np.testing.assert_allclose(label_recall(found, true), [3 / 4, 2 / 4, 0])
    np.testing.assert_allclose(label_recall(true[:, ::-1], true), 1)
    with pytest.raises(InputError, match="do not fit"):
        label_recall(found[:2], true)
    with pytest.raises(InputError, match="start at 0"):
        label_recall(true, found)
