"""Membership from a sum of updates: exact likelihood ratios, closed forms, and views that are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from attacks.membership.population import Population, estimate
from attacks.membership.update_product import InnerProduct, MatchedFilter, TargetKnowledge
from attacks.metrics import auc
from fl_core.errors import InputError
from fl_core.views import Participant, SecureServer, Server


def sums(means: Tensor, cohort: int) -> SecureServer:
    """A server's view of means [replicas, parameters], cut into a matrix and a vector."""
    trees = {"weight": means[:, :4].reshape(-1, 2, 2), "bias": means[:, 4:]}
    seats = torch.arange(cohort).expand(len(means), cohort)
    return SecureServer(model={}, models={}, sums={0: trees}, cohorts={0: seats}, divisors={}, dropped={})


def tree(rows: Tensor) -> dict[str, Tensor]:
    return {"weight": rows[:, :4].reshape(-1, 2, 2), "bias": rows[:, 4:]}


def population(dimension: int = 6, seed: int = 0) -> tuple[Population, np.ndarray]:
    """Two leading directions and a floor, and the covariance that they stand for."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(dimension, 2, generator=draw))[0].T
    made = Population(
        mean=torch.randn(dimension, generator=draw),
        directions=directions,
        variances=torch.tensor([3.0, 1.5]),
        floor=0.4,
    )
    exact = directions.double()
    inside = (exact.T * (made.variances.double() - made.floor)) @ exact
    return made, (inside + made.floor * torch.eye(dimension)).numpy()


def test_solving_is_multiplying_by_the_inverse_of_the_covariance_of_a_noisy_sum():
    made, covariance = population()
    vectors = torch.randn(5, 6)
    whole = 7 * covariance + 0.09 * np.eye(6)
    assert np.allclose(made.solve(vectors, 7, 0.3), np.linalg.solve(whole, vectors.numpy().T).T, atol=1e-5)


def test_between_two_known_clients_the_filter_is_the_exact_log_likelihood_ratio():
    made, covariance = population()
    mean, cohort, noise = made.mean.double().numpy(), 5, 0.7
    targets, others, totals = torch.randn(3, 8, 6) * 2
    known = TargetKnowledge(targets=tree(targets), alternatives=tree(others), population=made, noise=noise)
    scores = MatchedFilter().run(sums(totals / cohort, cohort), known)
    spread = (cohort - 1) * covariance + noise**2 * np.eye(6)
    for target, other, total, score in zip(targets, others, totals, scores, strict=True):
        inside, outside = (
            multivariate_normal((cohort - 1) * mean + one.double().numpy(), spread).logpdf(total.numpy())
            for one in (target, other)
        )
        assert score == pytest.approx(inside - outside, abs=1e-4)


def test_scores_of_non_members_are_standard_up_to_the_cohort_s_size_whatever_the_target():
    made, covariance = population()
    cohort, count = 9, 20_000
    draw = np.random.default_rng(0)
    totals = draw.multivariate_normal(cohort * made.mean.numpy(), cohort * covariance, count)
    for length in (0.1, 10.0):
        targets = made.mean + length * torch.randn(1, 6).expand(count, -1)
        known = TargetKnowledge(targets=tree(targets), population=made)
        scores = MatchedFilter().run(sums(torch.tensor(totals).float() / cohort, cohort), known)
        expected = (cohort / (cohort - 0.5)) ** 0.5
        assert abs(scores.mean()) < 4 * expected / count**0.5  # false alarm: 6e-5, as below
        assert abs(scores.std() - expected) < 4 * expected / (2 * count) ** 0.5


def test_a_cosine_and_an_inner_product_are_what_they_say():
    means, targets = torch.randn(2, 7, 6).double()
    known = TargetKnowledge(targets=tree(targets))
    dots = (means * targets).sum(1) / targets.norm(dim=1)
    assert InnerProduct().run(sums(means, 3), known) == pytest.approx(dots.numpy())
    cosines = torch.cosine_similarity(means, targets, dim=1).numpy()
    assert InnerProduct(cosine=True).run(sums(means, 3), known) == pytest.approx(cosines)
    scaled = TargetKnowledge(targets=tree(5 * targets))
    assert InnerProduct().run(sums(means, 3), scaled) == pytest.approx(dots.numpy())


def test_what_the_target_s_own_update_shows_needs_a_server_that_sees_it():
    means, updates = torch.randn(4, 6), torch.randn(4, 2, 6)
    targets = tree(torch.randn(4, 6))
    masked = sums(means, 2)
    fields = {field.name: getattr(masked, field.name) for field in dataclasses.fields(masked)}
    seats = {"weight": updates[..., :4].reshape(4, 2, 2, 2), "bias": updates[..., 4:]}
    bare = Server(**fields, updates={0: seats}, weights={}, versions={})
    known = TargetKnowledge(targets=targets, population=population()[0])
    for attack in (InnerProduct(seat=1), MatchedFilter(seat=1)):
        with pytest.raises(InputError, match="needs the view server; it was given secure_server"):
            attack.run(masked, known)
        alone = dataclasses.replace(attack, seat=None).run(sums(updates[:, 1], 1), known)
        assert attack.run(bare, known) == pytest.approx(alone)
    with pytest.raises(InputError, match="needs the view secure_server; it was given participant"):
        MatchedFilter().run(Participant(model={}, models={}), known)  # type: ignore[arg-type]


def test_the_filter_refuses_what_it_cannot_do():
    known = TargetKnowledge(targets=tree(torch.randn(2, 6)))
    with pytest.raises(InputError, match="needs the population's mean and covariance"):
        MatchedFilter().run(sums(torch.randn(2, 6), 3), known)
    pair = dataclasses.replace(known, population=population()[0], alternatives=known.targets)
    with pytest.raises(InputError, match="needs others or noise"):
        MatchedFilter().run(sums(torch.randn(2, 6), 1), pair)


# What public data tell


def spiked(count: int, dimension: int, seed: int) -> Tensor:
    """Three strong directions, the first three axes, over a floor of .1, around a mean of 2."""
    draw = torch.Generator().manual_seed(seed)
    scales = torch.full((dimension,), 0.1**0.5)
    scales[:3] = torch.tensor([5.0, 3.0, 2.0])
    return 2 + scales * torch.randn(count, dimension, generator=draw)


def test_the_estimate_finds_the_directions_that_stand_out_and_the_floor_of_the_others():
    made = estimate(spiked(600, 120, 0), spiked(200, 120, 1))
    assert 3 <= len(made.variances) <= 8
    assert made.variances[:3].numpy() == pytest.approx([25, 9, 4], rel=0.25)
    assert made.directions[:3, :3].abs().diag().min() > 0.99
    assert made.floor == pytest.approx(0.1, rel=0.1)
    assert made.mean.numpy() == pytest.approx(2, abs=0.8)
    assert torch.allclose(made.directions @ made.directions.T, torch.eye(len(made.variances)), atol=1e-5)


def test_an_attacker_with_enough_public_data_does_as_well_as_one_who_knows_the_population():
    bank, cohort, count = spiked(4000, 120, 2), 20, 1500
    draw = torch.Generator().manual_seed(3)
    truth = Population(
        mean=torch.full((120,), 2.0), directions=torch.eye(120)[:3], variances=torch.tensor([25.0, 9.0, 4.0]), floor=0.1
    )
    guessed = estimate(spiked(900, 120, 4), spiked(300, 120, 5))
    targets = spiked(count, 120, 6)
    others = bank[torch.randint(len(bank), (2, count, cohort - 1), generator=draw)].sum(2)
    fresh = bank[torch.randint(len(bank), (count,), generator=draw)]
    totals = torch.cat([others[0] + targets, others[1] + fresh])
    members = np.repeat([True, False], count)
    areas = []
    for known in (truth, guessed):
        filters = known.solve(targets - known.mean, cohort - 0.5)
        filters = filters / (filters * (targets - known.mean)).sum(1, keepdim=True).sqrt()
        areas.append(auc(((totals - cohort * known.mean) * filters.repeat(2, 1)).sum(1).double().numpy(), members))
    assert areas[0] > 0.9
    assert areas[1] > areas[0] - 0.03


def test_pixels_that_no_public_picture_lights_give_large_scores_and_no_infinite_ones():
    lit = spiked(100, 40, 7)
    lit[:, 30:] = 0
    made = estimate(lit, lit.flip(0) + 0)
    filters = made.solve(torch.eye(40)[35:36], 3.0)
    assert torch.isfinite(filters).all()
    assert filters[0, 35] > 100 * made.solve(torch.eye(40)[:1], 3.0)[0, 0]


def test_too_few_public_updates_are_refused():
    with pytest.raises(InputError, match="needs at least 2 updates"):
        estimate(torch.randn(1, 4), torch.randn(5, 4))
