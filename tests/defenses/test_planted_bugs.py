"""Tests of the tests: an audit that the trained mechanism passes, and that three planted bugs fail.

The worst case is known in closed form. A canary's gradient is constant, longer than the clip, and at right angles to
all others', so that what a step releases is one number: clip·(drawn or not) plus noise, and the best test of "was the
canary there" is the likelihood ratio over the steps. Its true- and false-positive rates are bounded by Clopper–Pearson
intervals and set against the ceiling that the accountant gives (`bounds.trade_off_pld`). A mechanism that is what it
says crosses it in at most 5% of audits.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from scipy.stats import beta, binom
from torch import Tensor, nn

from defenses.bounds import TradeOff, trade_off_pld
from defenses.clipping import Clipping
from defenses.dp_sgd import DPSGD
from defenses.rules import ClipAndNoise
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.federation import Federation
from fl_core.lanes import descend
from fl_core.optimizers import SGD
from fl_core.sampling import ExampleFeed, Poisson, SamplingEvent
from fl_core.seeds import generator
from tests.federations import play

STEPS, SIGMA, CLIP, BATCH, SIZE = 6, 0.8, 0.5, 2, 6
EVENT = Poisson(batch_size=BATCH, local_steps=STEPS).event(SIZE, rounds=1)
LONGER = 3.0  # the canary's gradient, in clips
AUDITS, EACH = 20, 400  # audits, each of so many runs with the canary and as many without
ALARM = 0.05
RATES = (0.01, 0.1, 0.3)  # false-positive rates at which an audit looks


def test_the_worst_case_is_accounted_for_a_third_of_the_examples_in_six_steps():
    assert SamplingEvent(sampler="poisson", rate=1 / 3, steps=6) == EVENT


@functools.lru_cache(maxsize=1)
def steps(sigma: float, clip: float, size: int, run: int) -> Tensor:
    """What each step releases along the canary [AUDITS, 2, EACH, STEPS], in clips: with it, and without.

    The rule, the sampler and the loop are the product's; `sigma` is in units of `clip`.
    """
    pixels = torch.zeros(3, 1, 1, 3)
    pixels[0, 0, 0, 0] = LONGER * CLIP
    pixels[1, 0, 0, 1], pixels[2, 0, 0, 2] = 0.3 * CLIP, 7.0 * CLIP  # others', at right angles
    lanes, expected = AUDITS * 2 * EACH, float(BATCH)
    present = torch.tensor([True, False]).repeat_interleave(EACH).repeat(AUDITS).tolist()
    sampler = Poisson(batch_size=BATCH, local_steps=STEPS)
    coins, noise = generator(run, "coins"), generator(run, "noise")  # one after another, for speed
    plans = [sampler.draw(torch.arange(0 if here else 1, 3), size, coins) for here in present]
    seen = []
    for step in range(STEPS):
        moved = descend(
            {"w": torch.zeros(lanes, 3)},
            lambda variables, images, _: (images.flatten(1) * variables["w"]).sum(1),
            ExampleFeed(pixels, torch.zeros(3, dtype=torch.long), [[plan[step]] for plan in plans]),
            SGD(lr=1.0),
            rule=ClipAndNoise(Clipping(norm=clip), sigma, expected),
            generators=[noise] * lanes,
            backend="vmap",
        )["w"]
        seen.append(-moved[:, 0] * expected / CLIP)
    return torch.stack(seen, 1).view(AUDITS, 2, EACH, STEPS).double()


def likelihood_ratio(released: Tensor, rate: float, sigma: float) -> Tensor:
    """log of the densities' ratio, summed over the steps: the best statistic against the mechanism as it is stated."""
    return torch.log1p(rate * torch.expm1((released - 0.5) / sigma**2)).sum(-1)


def violates(ceiling: TradeOff, inside: Tensor, outside: Tensor) -> bool:
    """Whether some threshold's rates lie above the ceiling, all intervals holding together with 1 − ALARM.

    The thresholds come from the first half of the runs without the canary, and are tried on the rest.
    """
    half = len(outside) // 2
    thresholds = torch.quantile(outside[:half], 1 - torch.tensor(RATES, dtype=torch.float64))
    part = ALARM / (2 * len(RATES))
    for threshold in thresholds:
        hits, n = int((inside > threshold).sum()), len(inside)
        false, m = int((outside[half:] > threshold).sum()), len(outside) - half
        least = beta.ppf(part, hits, n - hits + 1) if hits else 0.0
        most = beta.ppf(1 - part, false + 1, m - false) if false < m else 1.0
        if least > ceiling.tpr_at(float(most)):
            return True
    return False


def failing(sigma: float = SIGMA, clip: float = CLIP, size: int = SIZE, run: int = 0) -> int:
    """How many of the audits a mechanism fails that is accounted with SIGMA, CLIP and EVENT."""
    ceiling = trade_off_pld(SIGMA, [EVENT])
    ratios = likelihood_ratio(steps(sigma, clip, size, run), EVENT.rate, SIGMA)
    return sum(violates(ceiling, inside, outside) for inside, outside in ratios)


def test_the_mechanism_passes_its_audits():
    # 20 audits with a chance of at most 5% each to fail: more than 4 fail together with a chance below 0.3%.
    assert binom.sf(4, AUDITS, ALARM) < 0.003
    assert failing() <= 4


def test_an_audit_sees_the_ceiling_s_own_mechanism_come_close():
    # The statistic is the best one: pooled over all audits, its rates are at the ceiling, within 4 deviations.
    ratios = likelihood_ratio(steps(SIGMA, CLIP, SIZE, 0), EVENT.rate, SIGMA)
    inside, outside = ratios[:, 0].flatten(), ratios[:, 1].flatten()
    ceiling = trade_off_pld(SIGMA, [EVENT])
    for rate in (0.01, 0.05, 0.2):
        tpr = float((inside > torch.quantile(outside, 1 - rate)).double().mean())
        noise = 4 * (0.25 / len(inside)) ** 0.5 * (1 + (1 - tpr) / rate)
        assert ceiling.tpr_at(rate) - noise <= tpr <= ceiling.tpr_at(rate) + noise


@pytest.mark.parametrize(
    "bug",
    [
        {"sigma": SIGMA / 2},
        # The noise stays as it was, but a gradient may be three times as long.
        {"clip": LONGER * CLIP, "sigma": SIGMA / LONGER},
        # The examples are drawn twice as often as is accounted.
        {"size": SIZE // 2},
    ],
    ids=["noise halved", "clipping skipped", "rate misstated"],
)
def test_a_planted_bug_fails_its_audits(bug):
    # All of 20 is a power of at least .86 with a confidence of 95%, and .9 with 88%.
    assert failing(**bug) == AUDITS


# The same through the whole engine: one client, one local step a round, replicas with and without the canary.


class Two(nn.Module):
    """Two classes, so that a gradient's direction is its picture's, whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(pixels.flatten(1))
        return scores


def engine_audit(sigma: float, runs: int = 400) -> bool:
    pixels = torch.zeros(3, 1, 1, 3)
    pixels[0, 0, 0, 0], pixels[1, 0, 0, 1], pixels[2, 0, 0, 2] = 10.0, 0.3, 10.0
    members = torch.ones(2 * runs, 3, dtype=torch.bool)
    members[runs:, 0] = False
    lr = 1e-3  # so small that no gradient shrinks below the clip
    made = Federation(
        model=Two(),
        data=ImageSet(pixels, torch.tensor([0, 1, 1]), ("a", "b")),
        owners=torch.zeros(3, dtype=torch.long),
        members=members,
        sizes=torch.tensor([4]),
        algorithm=FedAvg(sampler=Poisson(batch_size=2, local_steps=1), lr=lr),
        defense=DPSGD(delta=1e-5, clip_norm=CLIP, noise_multiplier=sigma),
        rounds=3,
        run=0,
        replica_ids=range(2 * runs),
        backend="vmap",
    )
    _, seen = play(made)
    updates = torch.stack([seen.updates[round]["head.weight"][:, 0] for round in range(3)], 1).double()
    # The canary's class is 0: its gradient is (p − 1, 1 − p) in its own pixel.
    released = (updates[..., 0, 0] - updates[..., 1, 0]) / 2**0.5 * 2 / (lr * CLIP)
    ratios = likelihood_ratio(released, made.plan.sampling[0].rate, SIGMA)
    stated = dataclasses.replace(made.defense, noise_multiplier=SIGMA).guarantee("server", "example", made.plan)
    assert stated.sampler == "Poisson, rate 0.5, 3 steps"
    return violates(stated.mechanism.trade_off(), ratios[:runs], ratios[runs:])


def test_the_engine_s_own_runs_pass_the_audit_and_fail_it_with_half_the_noise():
    assert not engine_audit(SIGMA)  # false alarm 5%
    assert engine_audit(SIGMA / 2)
