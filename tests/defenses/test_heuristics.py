"""Heuristics: what they send, worked out by hand, and that they promise nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import binomtest, chi2, norm
from torch import Tensor

from defenses.base import Defense
from defenses.clip import SHORT
from defenses.clipping import norms
from defenses.heuristics import KBit, Pruning, RandomNoise, Sign, TopK
from defenses.mixup import Mixup
from defenses.soteria import Soteria
from defenses.statements import NoGuarantee
from fl_core.algorithms.scaffold import CONTROL, SCAFFOLD
from fl_core.defended import Senders
from fl_core.errors import InputError
from fl_core.optimizers import Tree
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from tests.plans import plan
from tests.toy import toy, toy_accuracy, trained

ON_UPDATES = [
    Pruning(share=0.6),
    TopK(keep=9),
    TopK(keep=0.4),
    Sign(),
    KBit(bits=5),
    RandomNoise(std=0.01),
    RandomNoise(std=0.01, noise="laplace"),
]
ALL = [*ON_UPDATES, Soteria(share=0.4), Mixup(alpha=1.0)]
PLAIN = 0.99  # what the toy's accuracy is without a defence, at least
FOLDER = Path(__file__).parents[2] / "conf" / "defense"


def label(defense: Defense) -> str:
    return defense.name


def sent(defense: Defense, updates: Tree, first: int = 0) -> Tree:
    lanes = len(next(iter(updates.values())))
    draws = [generator(0, "update noise", first + lane) for lane in range(lanes)]
    return defense.on_update(updates, Senders({}, draws, float(lanes)))


def random_updates(lanes: int, seed: int = 0, scale: float = 1.0) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 3), "bias": (4,), "scale": ()}
    return {name: scale * torch.randn(lanes, *shape, generator=draw) for name, shape in shapes.items()}


def flat(tree: Tree) -> Tensor:
    """[lanes, entries]."""
    return torch.cat([value.reshape(len(value), -1) for value in tree.values()], 1)


# By hand


def test_pruning_zeroes_the_smallest_entries_of_the_whole_update():
    updates = {"a": torch.tensor([[[3.0, -1.0]], [[0.1, 5.0]]]), "b": torch.tensor([-2.0, 0.2])}
    found = sent(Pruning(share=0.34), updates)  # one of three, in each lane
    assert found["a"].tolist() == [[[3.0, 0.0]], [[0.0, 5.0]]]
    assert found["b"].tolist() == [-2.0, pytest.approx(0.2)]


@pytest.mark.parametrize(("share", "count", "gone"), [(0.7, 10, 7), (0.29, 100, 29), (0.5, 5, 2), (0.01, 5, 0)])
def test_pruning_zeroes_the_share_rounded_down(share: float, count: int, gone: int):
    found = sent(Pruning(share=share), {"a": torch.randn(2, count)})["a"]
    assert (found == 0).sum(1).tolist() == [gone, gone]


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, 1), (9, 9), (17, 17), (400, 17), (0.5, 9), (1 / 17, 1), (3 / 17, 3), (1e-12, 1)]
)
def test_top_k_sends_a_number_of_entries_or_a_share_rounded_up(keep: float, kept: int):
    updates = random_updates(3)
    found, before = flat(sent(TopK(keep=keep), updates)), flat(updates)
    assert (found != 0).sum(1).tolist() == [kept] * 3
    for one, old in zip(found, before, strict=True):
        assert torch.equal(one[one != 0], old[one != 0])
        assert (old[one == 0].abs() <= one[one != 0].abs().min()).all()


def test_of_equal_entries_the_first_are_kept():
    updates = {"a": torch.tensor([[1.0, -1.0, 1.0]]), "b": torch.tensor([[2.0, 1.0]])}
    found = sent(TopK(keep=3), updates)
    assert found["a"].tolist() == [[1.0, -1.0, 0.0]]
    assert found["b"].tolist() == [[2.0, 0.0]]


def test_a_sign_is_scaled_by_its_variable_s_mean_magnitude():
    updates = {"a": torch.tensor([[1.0, -2.0, 0.0], [3.0, 3.0, -3.0]]), "b": torch.tensor([-4.0, 0.5])}
    found = sent(Sign(), updates)
    assert found["a"].tolist() == [[1.0, -1.0, 0.0], [3.0, 3.0, -3.0]]
    assert found["b"].tolist() == [-4.0, 0.5]


def test_two_bits_send_minus_the_largest_zero_or_the_largest():
    found = sent(KBit(bits=2), {"a": torch.tensor([[0.5, -0.25, 2.0, 0.0, 1.5, -1.0]]).repeat(30, 1)})["a"]
    assert set(found.flatten().tolist()) == {-2.0, 0.0, 2.0}
    assert (found[:, 2] == 2.0).all()
    assert (found[:, 3] == 0.0).all()
    assert (found[:, 1] <= 0).all()


def test_nothing_at_all_stays_nothing():
    for defense in (Pruning(share=0.5), TopK(keep=2), Sign(), KBit(bits=3)):
        assert not flat(sent(defense, {"a": torch.zeros(2, 3), "b": torch.zeros(2)})).any()


# Rounding at random


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_an_entry_is_sent_as_one_of_its_neighbours_on_a_grid_of_so_many_bits(bits: int):
    levels = 2 ** (bits - 1) - 1
    value = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    found, most = sent(KBit(bits=bits), {"a": value})["a"], value.abs().amax(1, keepdim=True)
    steps = found.double() / most * levels
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=levels * 1e-6)
    assert ((found - value).abs() < most / levels * (1 + 1e-5)).all()
    assert torch.equal(found.abs().amax(1, keepdim=True), most)


@pytest.mark.parametrize("value", [0.013, 0.25, -0.6, 0.999])
@pytest.mark.parametrize("bits", [2, 3, 6])
def test_rounding_is_unbiased(bits: int, value: float):
    levels, count = 2 ** (bits - 1) - 1, 20_000
    row = torch.full((1, count + 1), value)
    row[0, -1] = 1.0
    found = sent(KBit(bits=bits), {"a": row})["a"][0, :-1].abs()
    floor = math.floor(abs(value) * levels)
    up = int((found > (floor + 0.5) / levels).sum())
    # An exact binomial test at the chance that keeps the mean; false alarm 1e-6 each.
    assert binomtest(up, count, abs(value) * levels - floor).pvalue > 1e-6
    assert up + int((found - floor / levels).abs().lt(1e-6).sum()) == count


# Noise


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_noise_has_the_stated_deviation_and_distribution(kind: str):
    std, count = 0.3, 40_000
    zeros = {"a": torch.zeros(2, count - 1), "scale": torch.zeros(2)}
    noise = flat(sent(RandomNoise(std=std, noise=kind), zeros)).double() / std
    for lane in noise:
        # Σx² of normals is chi-square with n degrees; 2√2 Σ|x| of Laplace numbers of variance 1 with 2n. False alarm
        # 1e-6 each; the mean is normal.
        drawn, degrees = (lane.square().sum(), count)
        if kind == "laplace":
            drawn, degrees = 2 * math.sqrt(2) * lane.abs().sum(), 2 * count
        assert 2 * min(chi2.cdf(drawn.item(), degrees), chi2.sf(drawn.item(), degrees)) > 1e-6
        assert 2 * norm.sf(abs(lane.sum().item()) / math.sqrt(count)) > 1e-6
    assert 2 * norm.sf(abs((noise[0] * noise[1]).sum().item()) / math.sqrt(count)) > 1e-6, "lanes are independent"


# What all share


@pytest.mark.parametrize("defense", ON_UPDATES, ids=label)
def test_a_lane_sends_the_same_alone_and_in_a_stack(defense: Defense):
    updates = random_updates(3)
    together = sent(defense, updates)
    for lane in range(3):
        alone = sent(defense, {name: value[lane : lane + 1] for name, value in updates.items()}, first=lane)
        for name, value in alone.items():
            assert torch.equal(value[0], together[name][lane])


@pytest.mark.parametrize("defense", ON_UPDATES, ids=label)
def test_controls_are_treated_like_the_update_and_another_defence_s_count_is_left_alone(defense: Defense):
    plain = random_updates(2)
    beside = {CONTROL + name: 0.9 * value for name, value in plain.items()}
    count = torch.tensor([0.5, -0.5])
    found = sent(defense, {SHORT: count} | plain | beside)
    assert list(found) == [SHORT, *plain, *beside]
    assert torch.equal(found[SHORT], count)
    expected = sent(defense, plain | beside)
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    assert any(not torch.equal(found[name], value) for name, value in beside.items())


@pytest.mark.parametrize("defense", ON_UPDATES, ids=label)
def test_types_and_shapes_stay_those_of_whole_and_single_numbers(defense: Defense):
    updates = {
        "steps": torch.tensor([[7, -3, 0], [2, 2, 1]]),
        "scale": torch.tensor([1.5, -2.0]),
        "weight": torch.randn(2, 2, 2),
        "fine": torch.randn(2, 3, dtype=torch.float64),
    }
    found = sent(defense, updates)
    for name, value in updates.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert found[name].double().isfinite().all()


@pytest.mark.parametrize("defense", ON_UPDATES, ids=label)
def test_what_is_not_a_number_shows(defense: Defense):
    updates = random_updates(2)
    updates["weight"][1, 2, 1] = torch.nan
    found = sent(defense, updates)
    assert flat(found)[1].isnan().any()
    assert flat(found)[0].isfinite().all()


lengths = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)


@given(seed=st.integers(0, 2**31), scale=lengths, share=st.floats(0.01, 0.99), keep=st.integers(1, 20))
def test_no_update_gets_longer_where_a_defence_says_so(seed: int, scale: float, share: float, keep: int):
    updates = random_updates(2, seed, scale)
    for defense in (Pruning(share=share), TopK(keep=keep), TopK(keep=share), Sign()):
        assert not defense.lengthens
        # Float rounding of a norm over 17 entries.
        assert (norms(sent(defense, updates), 1) <= norms(updates, 1) * (1 + 1e-6)).all()


def test_an_update_may_get_longer_where_a_defence_says_so():
    updates = random_updates(2, 3)
    for defense in (KBit(bits=2), RandomNoise(std=1.0)):
        assert defense.lengthens
        assert (norms(sent(defense, updates), 1) > norms(updates, 1)).any()


@given(seed=st.integers(0, 2**31), scale=lengths, share=st.floats(0.01, 0.99))
def test_twice_is_once(seed: int, scale: float, share: float):
    updates = random_updates(2, seed, scale)
    for defense in (Pruning(share=share), TopK(keep=share), Sign()):
        once = sent(defense, updates)
        torch.testing.assert_close(flat(sent(defense, once)), flat(once), rtol=1e-6, atol=0)


@given(seed=st.integers(0, 2**31), share=st.floats(0.01, 0.99))
def test_pruning_and_keeping_the_rest_are_one(seed: int, share: float):
    updates = random_updates(2, seed)
    pruned = flat(sent(Pruning(share=share), updates))
    assert torch.equal(pruned, flat(sent(TopK(keep=max(1, 17 - math.floor(share * 17))), updates)))


# What is promised


def test_nothing_is_promised_and_each_says_why():
    reasons = set()
    for defense in ALL:
        for unit in ("example", "client"):
            stated = defense.guarantee("server", unit, plan())
            assert isinstance(stated, NoGuarantee)
            assert (stated.epsilon, stated.unit, stated.view) == (math.inf, unit, "server")
        reasons.add(stated.reason)
        assert not defense.private
    assert len(reasons) == len({type(defense) for defense in ALL})


@pytest.mark.parametrize("kind", sorted({type(defense) for defense in ALL}, key=lambda kind: kind.name))
def test_a_file_of_its_name_makes_each_one(kind: type[Defense]):
    made = instantiate(OmegaConf.load(FOLDER / f"{kind.name}.yaml"))
    assert type(made) is kind


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((Pruning, {"share": value}) for value in (0, 1, -0.1, math.nan, "0.5", True)),
        *((TopK, {"keep": value}) for value in (0, -3, 1.0, 2.5, math.inf, math.nan, "all", True)),
        *((KBit, {"bits": value}) for value in (1, 0, 17, 4.0, "4")),
        *((RandomNoise, {"std": value}) for value in (0, -1, math.inf, math.nan)),
    ],
)
def test_bad_numbers_are_refused(kind: type[Defense], wrong: dict[str, object]):
    with pytest.raises(InputError, match=rf"^defense\.{next(iter(wrong))} is "):
        kind(**wrong)


def test_an_unknown_noise_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"defense\.noise.*did you mean 'laplace'"):
        RandomNoise(std=1.0, noise="laplas")


# In a federation


@pytest.mark.heavy
@pytest.mark.parametrize("defense", ALL, ids=label)
def test_an_easy_problem_is_still_learned(defense: Defense):
    assert toy_accuracy(toy(defense)) > PLAIN - 0.05


@pytest.mark.heavy
@pytest.mark.parametrize("defense", ALL, ids=label)
def test_both_backends_and_any_grouping_of_lanes_train_the_same_model(defense: Defense):
    # One round: rounding and pruning are jumps, over which last digits would be carried on sooner or later.
    whole = toy(defense, rounds=1, membership=0.7)
    stacked = trained(whole)
    for changes in ({"backend": "loop"}, {"memory": 1}):
        other = trained(toy(defense, rounds=1, membership=0.7, **changes))
        for name, value in stacked.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("defense", [TopK(keep=0.4), Sign(), KBit(bits=5)], ids=label)
def test_scaffold_s_controls_go_through(defense: Defense):
    algorithm = SCAFFOLD(sampler=Shuffled(local_epochs=2, batch_size=9), lr=0.3)
    assert toy_accuracy(toy(defense, algorithm=algorithm)) > 0.9


def test_without_a_defence_the_easy_problem_is_learned():
    assert toy_accuracy(toy(Defense())) > PLAIN
