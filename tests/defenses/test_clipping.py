"""No gradient leaves longer than the clip."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch.nn.functional import cross_entropy

from defenses.base import Defense
from defenses.clip import Clip
from defenses.clipping import Clipping, check_quantile_noise, clip_factors, layers, norms, quantile_noise, scaled
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_sgd import DPSGD
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.federation import initial_state
from fl_core.participation import PoissonClients, Uniform
from fl_core.sampling import Shuffled
from tests.federations import CLIENTS, federation, pictures, play, prepared
from tests.federations import flat as flat_of

SHAPES = {"weight": (3, 2), "bias": (3,)}
ROUNDING = 1 + 1e-6


def tree(seed: int, scale: float) -> dict[str, torch.Tensor]:
    """Gradients [2 lanes, 5 examples, ...] with lengths over three orders of magnitude around `scale`."""
    draw = torch.Generator().manual_seed(seed)
    sizes = scale * 10 ** (3 * torch.rand(2, 5, generator=draw) - 1.5)
    return {
        name: torch.randn(2, 5, *shape, generator=draw) * sizes.view(2, 5, *[1] * len(shape))
        for name, shape in SHAPES.items()
    }


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten(2) for value in gradients.values()], 2)


def test_a_norm_is_over_all_leaves_together():
    gradients = {"a": torch.tensor([[[3.0, 0.0]]]), "b": torch.tensor([[[[4.0]]]])}
    assert norms(gradients, 2).tolist() == [[5.0]]
    gradients = tree(0, 1.0)
    torch.testing.assert_close(norms(gradients, 2), flat(gradients).norm(dim=2))
    torch.testing.assert_close(norms(gradients, 1), flat(gradients).flatten(1).norm(dim=1))


@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(-12, 12).map(lambda exponent: 10.0**exponent),
    clip=st.floats(-6, 6).map(lambda exponent: 10.0**exponent),
)
def test_clipped_norms_never_exceed_the_clip_and_short_gradients_stay(seed, scale, clip):
    gradients = tree(seed, scale)
    lengths = norms(gradients, 2)
    factors = clip_factors(lengths, clip)
    clipped = {name: value * factors.view(2, 5, *[1] * (value.dim() - 2)) for name, value in gradients.items()}
    assert (flat(clipped).double().norm(dim=2) <= clip * ROUNDING).all()
    short = lengths < clip
    torch.testing.assert_close(flat(clipped)[short], flat(gradients)[short], rtol=1e-6, atol=0)
    long = lengths > clip
    torch.testing.assert_close(norms(clipped, 2)[long], torch.full_like(lengths[long], clip), rtol=1e-5, atol=0)


def test_a_parameter_may_be_one_number():
    # A learned scale, say: its per-example gradients have no axis of their own.
    gradients = {"a": torch.tensor([[[3.0, 0.0]]]), "scale": torch.tensor([[4.0]])}
    assert norms(gradients, 2).tolist() == [[5.0]]


def test_a_zero_gradient_stays_zero():
    assert clip_factors(torch.zeros(3), 0.1).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("clip", [1e-6, 1.0, 1e6])
def test_a_gradient_too_long_for_a_norm_counts_for_nothing(clip: float):
    assert clip_factors(norms({"x": torch.full((1, 2), 1e30)}, 1), clip).tolist() == [0.0]


# By layers, and by quantiles


def layered(seed: int, scale: float) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "conv.weight": (3, 2),
        "conv.bias": (3,),
        "head.weight": (2, 3),
        "head.bias": (2,),
        "control/conv.bias": (3,),
    }
    sizes = 10 ** (4 * torch.rand(len(shapes), generator=draw) - 2)
    return {
        name: scale * size * torch.randn(2, 5, *shape, generator=draw)
        for (name, shape), size in zip(shapes.items(), sizes.tolist(), strict=True)
    }


@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(-8, 8).map(lambda exponent: 10.0**exponent),
    clip=st.floats(-4, 4).map(lambda exponent: 10.0**exponent),
)
def test_layer_by_layer_each_is_within_its_part_and_the_whole_within_the_clip(seed, scale, clip):
    gradients = layered(seed, scale)
    factors, short = Clipping(norm=clip, how="per_layer").factors(gradients, 2)
    clipped = scaled(gradients, factors)
    groups = [["conv.weight", "conv.bias"], ["head.weight", "head.bias"], ["control/conv.bias"]]
    assert layers(list(gradients)) == groups
    before, after = (
        torch.stack([flat({name: tree[name] for name in group}).double().norm(dim=2) for group in groups])
        for tree in (gradients, clipped)
    )
    assert (after <= clip / math.sqrt(3) * ROUNDING).all()
    assert (flat(clipped).double().norm(dim=2) <= clip * ROUNDING).all()
    # No layer is changed that did not have to be, and those that were too long fill their part.
    torch.testing.assert_close(after, before.clamp(max=clip / math.sqrt(3)), rtol=1e-5, atol=0)
    away_from_the_edge = ((before / (clip / math.sqrt(3)) - 1).abs() > 1e-5).all(0)
    assert (short == (before <= clip / math.sqrt(3)).all(0))[away_from_the_edge].all()


@given(
    seed=st.integers(0, 2**31),
    clips=st.lists(st.floats(-3, 3).map(lambda exponent: 10.0**exponent), min_size=2, max_size=2),
)
def test_each_lane_is_clipped_where_its_own_clip_stands(seed, clips):
    gradients, stands = tree(seed, 1.0), torch.tensor(clips)
    factors, short = Clipping(norm=99.0, how="adaptive").factors(gradients, 2, stands[:, None])
    lengths = norms(scaled(gradients, factors), 2)
    assert (lengths <= stands[:, None] * ROUNDING).all()
    assert torch.equal(short, norms(gradients, 2) <= stands[:, None])


@given(
    noise=st.floats(0.01, 50.0),
    expected=st.floats(1.0, 1e4),
    more=st.one_of(st.none(), st.floats(0.501, 100.0)),
)
def test_the_sum_s_and_the_count_s_noise_together_cost_what_one_mechanism_does(noise, expected, more):
    asked = None if more is None else more * noise
    vectors, count = quantile_noise(noise, expected, asked)
    assert vectors**-2 + (2 * count) ** -2 == pytest.approx(noise**-2, rel=1e-9)
    assert vectors > noise
    if asked is None:
        assert vectors <= noise * (4 / 3) ** 0.5 * ROUNDING  # σ_b is at least z, so that the vectors keep 3/4 of it
    else:
        assert count == asked


def test_a_count_of_too_little_noise_is_refused():
    adaptive = Clipping(norm=1.0, how="adaptive")
    with pytest.raises(InputError, match=r"defense\.quantile_noise is 0\.5; it must be above half"):
        check_quantile_noise(adaptive, 1.0, 0.5)
    check_quantile_noise(adaptive, 1.0, 0.51)
    check_quantile_noise(Clipping(norm=1.0), 1.0, 0.1)


@pytest.mark.parametrize(
    "wrong", [{"norm": 0.0}, {"norm": -1.0}, {"how": "layers"}, {"quantile": 0.0}, {"quantile": 1.0}, {"rate": 0.0}]
)
def test_a_clip_that_bounds_nothing_is_refused(wrong):
    with pytest.raises(InputError, match=r"defense\."):
        Clipping(**({"norm": 1.0} | wrong))


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_the_clip_follows_the_quantile_of_a_known_distribution(quantile, spread):
    draw = torch.Generator().manual_seed(0)
    clipping = Clipping(norm=50.0, how="adaptive", quantile=quantile)
    clip = torch.tensor(50.0)
    stands = []
    for _ in range(300):
        lengths = torch.exp(spread * torch.randn(400, generator=draw))
        clip = clipping.follow(clip, (lengths <= clip).float().mean())
        stands.append(float(clip))
    # A log-normal's quantile. The share of 400 has a deviation of at most 1/40, and a step moves log C by a fifth of
    # it: a stationary deviation of under 0.04·spread, averaged over 100 rounds.
    exact = math.exp(spread * norm.ppf(quantile))
    assert sum(stands[-100:]) / 100 == pytest.approx(exact, rel=0.05 * spread)


# The engine lets lengths be measured, and hardly moves.
STILL = FedAvg(sampler=Shuffled(batch_size=None), lr=1e-5, server_lr=1e-6)


def uneven() -> ImageSet:
    """A client's pictures are as bright as its number says, and each of them differs."""
    data = pictures()
    brightness = (1.0 + torch.arange(len(data)) % CLIENTS) * (1 + 0.1 * (torch.arange(len(data)) // CLIENTS))
    return dataclasses.replace(data, images=data.images * brightness.view(-1, 1, 1, 1))


@pytest.mark.parametrize("quantile", [0.3, 0.6])
@pytest.mark.parametrize("defense", ["clip", "dp_fedavg"])
def test_the_server_follows_the_quantile_of_the_updates_lengths_and_no_update_exceeds_it(defense, quantile):
    _, plain = play(federation(data=uneven(), algorithm=STILL, defense=Defense()))
    lengths = flat_of(plain.updates[0], 2)[0].norm(dim=1).sort().values
    settings = {"clip_norm": 5 * float(lengths[-1]), "clipping": "adaptive", "quantile": quantile}
    made = {
        "clip": lambda: Clip(unit="client", **settings),
        # So little noise that the share is exact to a hundredth: σ_b is a twentieth of six clients, by default.
        "dp_fedavg": lambda: DPFedAvg(delta=1e-5, noise_multiplier=1e-2, quantile_noise=0.06, **settings),
    }[defense]()
    done, seen = play(prepared(data=uneven(), algorithm=STILL, defense=made, rounds=100))
    # Where the share of six clients passes the quantile: at 2/6 from below .3, and at 4/6 from below .6.
    exact = float(lengths[{0.3: 1, 0.6: 3}[quantile]])
    assert float(done.defense["clip/updates"]) == pytest.approx(exact, rel=0.06)
    for round in range(100):
        sent = {name: value for name, value in seen.updates[round].items() if name != "short/updates"}
        assert (flat_of(sent, 2).norm(dim=2) <= seen.models[round]["clip/updates"].double() * 1.00001).all()
    # Who was short enough goes beside each update, as ±1/2.
    assert set(seen.updates[0]["short/updates"].flatten().tolist()) == {0.5}
    assert set(seen.updates[99]["short/updates"].flatten().tolist()) == {0.5, -0.5}


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("private", [False, True], ids=["clip", "dp_sgd"])
def test_each_client_follows_the_quantile_of_its_own_gradients_from_round_to_round(private, backend):
    whole = federation(data=uneven(), algorithm=STILL, defense=Defense())
    start = initial_state(whole).model
    each = []
    for client in range(CLIENTS):
        rows = whole.held(0, client)
        gradients = [
            torch.autograd.functional.jacobian(
                lambda w, row=row: cross_entropy(
                    (w @ whole.data.images[row].flatten())[None], whole.data.labels[row, None]
                ),
                start["1.weight"][0],
            ).norm()
            for row in rows
        ]
        each.append(torch.stack(gradients).sort().values)
    settings = {"clip_norm": 20.0, "clipping": "adaptive", "quantile": 0.6}
    defense = (
        DPSGD(delta=1e-5, noise_multiplier=1e-3, quantile_noise=0.01, **settings)
        if private
        else Clip(unit="example", **settings)
    )
    done, _ = play(prepared(data=uneven(), algorithm=STILL, defense=defense, rounds=90, backend=backend))
    clips = done.clients["clip/examples"]
    assert clips.shape == (1, CLIENTS)
    # Of four gradients, the third is where the share passes .6; the clip moves by 3% a round about it.
    for clip, lengths in zip(clips[0].tolist(), each, strict=True):
        assert clip == pytest.approx(float(lengths[2]), rel=0.05)


def test_a_client_that_is_not_asked_keeps_its_clip():
    defense = Clip(unit="example", clip_norm=1e3, clipping="adaptive")
    whole = prepared(data=uneven(), algorithm=STILL, defense=defense, participation=Uniform(cohort=2), rounds=3)
    # No gradient is longer: each full batch lowers the clip by exp(-0.1).
    done, _ = play(whole)
    asked = torch.stack([whole.turn(0, round).asked.bincount(minlength=CLIENTS) for round in range(3)]).sum(0)
    torch.testing.assert_close(done.clients["clip/examples"][0], 1e3 * torch.exp(-0.1 * asked))


def test_a_replica_that_nobody_reports_to_keeps_its_clip():
    defense = Clip(unit="client", clip_norm=1e3, clipping="adaptive", quantile=0.8)
    whole = prepared(
        data=uneven(),
        algorithm=STILL,
        defense=defense,
        participation=PoissonClients(0.15),
        replica_ids=range(4),
        rounds=6,
    )
    done, _ = play(whole)
    heard = torch.stack([whole.cohort(round).present.any(1) for round in range(6)]).sum(0)
    assert heard.min() < 6
    torch.testing.assert_close(done.defense["clip/updates"], 1e3 * torch.exp(-0.2 * (1 - 0.8) * heard))
