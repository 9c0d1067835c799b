"""Secure aggregation through the whole engine: what the server gets, and what it never sees."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from attacks.reconstruction.base import updates_of
from defenses.base import Defense
from defenses.clip import Clip
from defenses.composed import composed
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.dp_ftrl import DPFTRL
from defenses.dp_sgd import DPSGD
from defenses.heuristics import KBit, Pruning
from defenses.secagg.cohort_masks import CohortMasks
from defenses.secagg.defense import SecAgg
from defenses.secagg.encoding import FixedPoint
from defenses.secagg.refusals import Aborted
from fl_core.aggregation import Krum, Median, TrimmedMean
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.fedbn import FedBN
from fl_core.algorithms.fedopt import FedAdam, FedAvgM
from fl_core.algorithms.fedprox import FedProx
from fl_core.algorithms.scaffold import SCAFFOLD
from fl_core.defended import Gathering
from fl_core.devices import Devices
from fl_core.errors import InputError
from fl_core.federation import Federation, initial_state, run
from fl_core.fleet import Buffered, Synchronous
from fl_core.optimizers import Tree
from fl_core.participation import Available, Fixed, PoissonClients, Uniform
from fl_core.sampling import Poisson, Shuffled
from fl_core.seeds import from_seed, seed
from fl_core.state import State
from fl_core.views import Recorder, ReleasedModel, SecureServer, Server
from fl_core.weighing import weigh
from tests.federations import flat
from tests.fl_core.test_engine import Normed, assert_close, federation, same_bits

SLOW = Devices(example_seconds=1.0, example_sigma=1.0, dropout_before=0.2, dropout_after=0.1)
LOSING = Synchronous(devices=SLOW, deadline=25.0)
BY_EXAMPLES = FedAvg(sampler=Poisson(batch_size=2), lr=0.2, weighting="by_examples")


def prepared(defense: Defense, **changes: Any) -> Federation:
    """`test_engine.federation` under a defence that is ready for it: 3 replicas, 6 clients, a small CNN."""
    whole = federation(**changes, defense=defense)
    return dataclasses.replace(whole, defense=defense.prepare(whole.plan))


def watched(whole: Federation, **options: Any) -> tuple[State, SecureServer]:
    recorder = Recorder(Server)
    state = run(whole, recorder, **options)
    seen = recorder.observation()
    assert type(seen) is SecureServer
    return state, seen


def in_the_clear(whole: Federation) -> Server:
    """The same rounds without masks: those of the first one are bound to have the same updates."""
    recorder = Recorder(Server)
    run(dataclasses.replace(whole, defense=Defense(), fleet=Replayed(whole)), recorder)
    seen = recorder.observation()
    assert isinstance(seen, Server)
    return seen


@dataclasses.dataclass(frozen=True)
class Replayed(Synchronous):
    """A fleet whose turns are those that another federation has played."""

    devices: Devices = SLOW
    whole: Any = None

    def __init__(self, whole: Federation) -> None:
        object.__setattr__(self, "whole", whole)

    def check(self, participation, clients): ...

    def turns(self, participation, work, run, replica):
        row = list(self.whole.replica_ids).index(replica)
        return (self.whole.turn(row, round) for round in range(self.whole.rounds))


CASES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "by examples": {"algorithm": BY_EXAMPLES},
    "by examples, ragged": {"algorithm": BY_EXAMPLES, "participation": PoissonClients(rate=0.6)},
    "losses": {"fleet": LOSING, "algorithm": BY_EXAMPLES},
}


@pytest.mark.parametrize("bits", [14, 32, 40])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_sum_is_that_of_the_quantised_updates_bit_for_bit(changes, bits):
    whole = prepared(SecAgg(bits=bits, clip=0.05, threshold=0.4), **changes, rounds=1)
    _, seen = watched(whole)
    updates = flat(in_the_clear(whole).updates[0], 2)
    weighted = "algorithm" in changes
    most = 10 if weighted else 1  # sixty examples among six clients
    clipped = 0
    for row in range(3):
        asked, clients = whole.turn(row, 0).asked, whole.turn(row, 0).clients
        found = FixedPoint(clients=len(asked), bits=bits, clip=0.05, largest_weight=most)
        total, weight = torch.zeros(updates.shape[2], dtype=torch.long), 0
        for seat, client in enumerate(clients.tolist()):
            size = int(whole.held_counts[row, client]) if weighted else 1
            draw = from_seed(seed(0, "fixed point", row, 0, client))
            total += found.encode(updates[row, seat][None] * (size / most), [draw])[0]
            weight += size
            clipped += int((updates[row, seat].abs() * size / most > 0.05).sum())
        expected = (found.decode(total) * (most / weight)).float()
        assert torch.equal(
            flat({name: value[row : row + 1] for name, value in seen.sums[0].items()}, 1)[0].float(), expected
        )
        assert seen.divisors[0][row] == weight
    assert clipped > 0, "some coordinates are clipped"


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_model_is_within_the_stated_error_of_the_one_without_masks(changes):
    for bits in (16, 24):
        whole = prepared(SecAgg(bits=bits, clip=4.0, threshold=0.4), **changes, rounds=1)
        state, seen = watched(whole)
        plain = in_the_clear(whole)
        weighted = "algorithm" in changes
        for row in range(3):
            turn = whole.turn(row, 0)
            found = FixedPoint(clients=len(turn.asked), bits=bits, clip=4.0, largest_weight=10 if weighted else 1)
            scale = found.largest_weight / float(seen.divisors[0][row])
            off = torch.cat([(state.model[name][row] - plain.model[name][row]).flatten() for name in state.model])
            assert off.abs().max() <= found.worst_error(len(turn.clients)) * scale + 1e-6
            # The bound on the root mean square is reached half-way between grid steps only.
            assert off.square().mean().sqrt() <= 1.1 * found.rms_error(len(turn.clients)) * scale + 1e-7
            assert off.abs().max() > 0.1 * found.rms_error(len(turn.clients)) * scale


SOME = {"sampler": Shuffled(batch_size=2), "lr": 0.1}


@pytest.mark.parametrize("weighting", ["uniform", "by_examples"])
@pytest.mark.parametrize(
    "algorithm",
    [
        FedAvg(**SOME),
        FedProx(**SOME, mu=0.1),
        SCAFFOLD(**SOME),
        FedAvgM(**SOME),
        FedAdam(**SOME, server_lr=0.01),
        FedBN(**SOME, local_layers=("head.*",)),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_every_algorithm_comes_out_as_without_masks(algorithm, weighting):
    algorithm = dataclasses.replace(algorithm, weighting=weighting)
    masked = run(prepared(SecAgg(bits=40), algorithm=algorithm, rounds=3))
    plain = run(federation(algorithm=algorithm, rounds=3))
    assert masked.tensors().keys() == plain.tensors().keys()
    # FedAdam divides a step by one that may be as small as tau.
    assert_close(masked, plain, 1e-4 if isinstance(algorithm, FedAdam) else 1e-6)


def test_batch_norm_s_statistics_are_sums_too():
    masked = run(prepared(SecAgg(bits=40), model=Normed(), rounds=2))
    assert_close(masked, run(federation(model=Normed(), rounds=2)), 1e-5)


VARIETY: dict[str, dict[str, Any]] = {
    "scaffold, losses": {"algorithm": SCAFFOLD(**SOME), "fleet": LOSING},
    "by examples, ragged": {"algorithm": BY_EXAMPLES, "participation": PoissonClients(rate=0.5)},
    "available": {"participation": Available(cohort=4, period=5, share=0.6)},
}


@pytest.mark.parametrize("changes", VARIETY.values(), ids=VARIETY)
def test_tiles_workers_and_shards_change_no_bit(changes):
    whole = prepared(SecAgg(threshold=0.4, bits=20), **changes)
    state, seen = watched(whole)
    for options in ({"memory": 1}, {"memory": 40_000}):
        parts, shown = watched(dataclasses.replace(whole, **options))
        assert same_bits(state, parts)
        for round, total in shown.sums.items():
            assert all(torch.equal(value, seen.sums[round][name]) for name, value in total.items())
    for row in range(3):
        alone = run(dataclasses.replace(whole, members=whole.members[row : row + 1], replica_ids=[row]))
        assert all(torch.equal(value[0], state.model[name][row]) for name, value in alone.model.items())


@pytest.mark.heavy
def test_worker_processes_change_no_bit():
    whole = prepared(SecAgg(threshold=0.4, bits=20), **VARIETY["scaffold, losses"])
    assert same_bits(run(whole), run(whole, workers=2))


@pytest.mark.parametrize("changes", VARIETY.values(), ids=VARIETY)
def test_a_resumed_run_is_the_uninterrupted_one_in_bits(changes):
    kept: list[dict[str, Tensor]] = []
    whole = prepared(SecAgg(threshold=0.7), **changes)
    done, seen = watched(
        whole, after_round=lambda state: kept.append({name: value.clone() for name, value in state.tensors().items()})
    )
    for at in range(len(kept) - 1):
        again, rest = watched(prepared(SecAgg(threshold=0.7), **changes), state=State.from_tensors(kept[at]))
        assert same_bits(done, again)
        for round, total in rest.sums.items():
            assert all(torch.equal(value, seen.sums[round][name]) for name, value in total.items())


def test_the_server_sees_sums_and_no_update_and_its_recorder_never_holds_one():
    recorder = Recorder(Server)
    whole = prepared(SecAgg(), rounds=2)
    run(whole, recorder)
    seen = recorder.observation()
    assert type(seen) is SecureServer
    assert set(recorder._kept) == {"models", "sums", "divisors", "cohorts", "dropped"}
    for hidden in ("updates", "weights", "versions"):
        assert not hasattr(seen, hidden)
    with pytest.raises(InputError, match=r"given secure_server.*secure aggregation hides each client's update"):
        updates_of(seen, 0, "inverting gradients")
    less = Recorder(ReleasedModel)
    run(whole, less)
    assert type(less.observation()) is ReleasedModel


def test_by_examples_the_server_learns_how_many_examples_in_all_and_no_client_s_size():
    whole = prepared(SecAgg(), algorithm=BY_EXAMPLES, rounds=1)
    _, seen = watched(whole)
    assert torch.equal(seen.divisors[0], whole.held_counts.sum(1).double())
    # One example more with one client and one less with another: the weights differ, and the total does not say so.
    members = whole.members.clone()
    mine = [torch.nonzero(members[0] & (whole.owners == client)).flatten() for client in (0, 1)]
    free = torch.nonzero(~members[0] & (whole.owners == 1)).flatten()
    members[0, mine[0][0]], members[0, free[0]] = False, True
    _, other = watched(dataclasses.replace(whole, members=members))
    assert torch.equal(other.divisors[0], seen.divisors[0])


# Rounds that fail.


def test_a_round_below_the_threshold_is_tried_again_with_others_and_nothing_of_it_remains():
    algorithm = SCAFFOLD(**SOME)
    whole = prepared(
        SecAgg(threshold=0.7), fleet=LOSING, participation=Uniform(cohort=4), algorithm=algorithm, rounds=5
    )
    turns = [whole.turn(row, round) for row in range(3) for round in range(5)]
    assert sum(len(turn.aborted) for turn in turns) >= 5
    for turn in turns:
        assert len(turn.clients) >= 3
        assert all(len(one.clients) < 3 for one in turn.aborted)
    # What a client keeps has moved if, and only if, it was in a round's sum.
    done = run(whole)
    for row in range(3):
        summed = {client for round in range(5) for client in whole.turn(row, round).clients.tolist()}
        for client in range(6):
            moved = any(bool(value[row, client].any()) for value in done.clients.values())
            assert moved == (client in summed)
    # The same rounds without masks, which are played as they come: no update is lost, or counted twice.
    plain = run(dataclasses.replace(whole, defense=Defense(), fleet=Replayed(whole)))
    assert_close(done, plain, 1e-5)
    # Whoever was asked for an attempt that failed is not accounted for it.
    asked = {tuple(sorted(r for r in range(5) if c in whole.turn(row, r).asked)) for row in range(3) for c in range(6)}
    assert whole.plan.patterns == asked - {()}


def test_an_attempt_that_follows_has_other_masks(monkeypatch):
    seen: list[bytes] = []
    real = CohortMasks.__init__

    def noted(self, parameters, context, random, device="cpu"):
        real(self, parameters, context, random, device)
        seen.append(self._session + self._own(0) + self._shared(0, 1))

    monkeypatch.setattr(CohortMasks, "__init__", noted)
    whole = prepared(SecAgg(threshold=0.4), fleet=LOSING, rounds=6)
    run(whole)
    assert len(set(seen)) == len(seen) == 3 * 6
    attempts = [whole.turn(row, round).attempt for row in range(3) for round in range(6)]
    assert attempts != [round for _ in range(3) for round in range(6)]


def test_a_dropped_client_whose_mask_is_forgotten_spoils_the_model(monkeypatch):
    # A planted bug: in the engine it cannot be missed.
    whole = prepared(SecAgg(threshold=0.4), fleet=LOSING, rounds=1)
    assert any(len(whole.turn(row, 0).clients) < 6 for row in range(3))
    right = run(whole)
    real = CohortMasks._left_on
    monkeypatch.setattr(
        CohortMasks,
        "_left_on",
        lambda self, survivors: (one for one in real(self, survivors) if one[0] in map(self._own, survivors)),
    )
    wrong = run(whole)
    for row in range(3):
        same = torch.allclose(wrong.model["head.weight"][row], right.model["head.weight"][row], atol=1e-3)
        assert same == (len(whole.turn(row, 0).clients) == 6)


def test_a_sparse_graph_gives_the_same_sum():
    changes = {
        "owners": torch.arange(60) % 30,
        "sizes": torch.full((30,), 2),
        "algorithm": FedAvg(sampler=Shuffled(batch_size=2), lr=0.2),
        "rounds": 2,
    }
    thin = SecAgg(graph="sparse", corrupt=0.0, dropout=0.0)
    assert thin.parameters(30).neighbours < 29
    assert same_bits(run(prepared(thin, **changes)), run(prepared(SecAgg(), **changes)))


def test_a_sparse_graph_that_loses_too_many_in_one_place_ends_the_run_in_one_line(monkeypatch):
    # Enough came, but the ring is drawn only then; `test_cohort_masks` has such rings, which are rare.
    def thin(self, survivors):
        raise Aborted("28 of 30 clients are left, and 3 shares of a secret of client 5")

    monkeypatch.setattr(CohortMasks, "_check", thin)
    with pytest.raises(InputError, match=r"sum of round 1 is lost: 28 of 30 .* raise defense\.dropout") as refused:
        run(prepared(SecAgg()))
    assert "\n" not in str(refused.value)


def test_a_malicious_server_s_variant_gives_the_same_sum():
    assert same_bits(run(prepared(SecAgg(malicious=True))), run(prepared(SecAgg())))


# In a list.


def test_noise_in_shares_comes_out_as_the_sum_of_its_whole_numbers():
    for bits in (16, 20, 36):
        shares = DPFedAvgShares(delta=1e-5, clip_norm=0.3, noise_multiplier=1.7, bits=bits)
        whole = prepared(composed([shares, SecAgg()]), rounds=1)
        _, seen = watched(whole)
        grid = whole.defense.parts[0].grid
        assert whole.defense.parts[1].encoding(6, 1).bits == bits
        apart = Recorder(Server)
        exact = dataclasses.replace(whole.defense.parts[0], exact=True)
        run(dataclasses.replace(whole, defense=exact), apart)
        updates = flat(apart.observation().updates[0], 2)
        steps = (updates / grid.granularity).round()
        torch.testing.assert_close(updates / grid.granularity, steps, rtol=0, atol=1e-3)
        total = (steps.long().sum(1).double() * grid.granularity * (1 / 6)).float()
        assert torch.equal(flat(seen.sums[0], 1).float(), total)


def test_a_list_under_masks_is_the_list_without_them_but_for_the_grid():
    for parts in (
        [Clip(clip_norm=0.1), Pruning(share=0.5)],
        [Clip(clip_norm=0.1, clipping="adaptive")],
        [KBit(bits=4)],
        [DPSGD(delta=1e-5, clip_norm=0.5, noise_multiplier=0.8)],
        [DPFedAvg(delta=1e-3, clip_norm=0.3, noise_multiplier=1.0)],
        [DPFedAvg(delta=1e-3, clip_norm=0.3, noise_multiplier=1.0, clipping="adaptive")],
        [DPFedAvg(delta=1e-3, clip_norm=0.3, noise_multiplier=1.0, noise_by="clients")],
        [DPFTRL(delta=1e-3, clip_norm=0.3, noise_multiplier=1.0)],
    ):
        masked = run(prepared(composed([*parts, SecAgg(bits=40)]), rounds=3))
        assert_close(masked, run(prepared(composed(parts), rounds=3)), 1e-5)


def test_public_weights_are_constants_and_none_is_sent():
    lengths: list[int] = []
    real = CohortMasks.masked

    def noted(self, clients, vectors):
        lengths.append(vectors.shape[1])
        return real(self, clients, vectors)

    noise = DPFedAvg(delta=1e-3, clip_norm=0.3, noise_multiplier=1.0)
    sizes = torch.tensor([2, 4, 6, 8, 10, 3])
    for parts, more in (([], 1), ([noise], 0)):
        whole = prepared(composed([*parts, SecAgg(bits=40)]), algorithm=BY_EXAMPLES, sizes=sizes, rounds=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CohortMasks, "masked", noted)
            state, seen = watched(whole)
        assert set(lengths) == {whole.plan.message + more}
        lengths.clear()
    plain = run(prepared(noise, algorithm=BY_EXAMPLES, sizes=sizes, rounds=1))
    assert_close(state, plain, 1e-6)
    assert seen.divisors[0].tolist() == [pytest.approx(6 * float((sizes / 10).mean()))] * 3


@pytest.mark.parametrize("bits", [8, 12, 20])
def test_rounding_makes_no_client_s_part_longer_than_the_server_s_noise_is_made_for(bits):
    # Everybody's update is longer than the clip; what one of six adds to the mean is at most a sixth of it.
    quiet = DPFedAvg(delta=1e-3, clip_norm=0.3, noise_multiplier=1e-9)
    lr = FedAvg(sampler=Shuffled(batch_size=2), lr=50.0)
    whole = prepared(composed([quiet, SecAgg(bits=bits, clip=0.3)]), algorithm=lr, rounds=1)
    plain = prepared(quiet, algorithm=lr, rounds=1)
    recorder = Recorder(Server)
    run(plain, recorder)
    apart = recorder.observation().updates[0]
    assert (flat(apart, 2).norm(dim=2) > 0.29).all()
    for client in range(6):
        alone = {name: torch.zeros_like(value) for name, value in apart.items()}
        for name, value in apart.items():
            alone[name][:, client] = value[:, client]
        total = _sum_of(whole, alone)
        assert (flat(total, 1).norm(dim=1) <= 0.3 / 6 * (1 + 1e-6)).all()


def _sum_of(whole: Federation, updates: Tree) -> Tree:
    """What the server finds for these updates [replicas, seats, ...] in the first round."""
    cohort = whole.cohort(0)
    summing = whole.defense.summing(
        Gathering(
            run=0,
            replica_ids=whole.replica_ids,
            turns=whole.turns(0),
            cohort=cohort,
            weighing=weigh(whole, cohort),
            sent=initial_state(whole).model,
        )
    )
    summing.add((slice(0, 3), slice(0, 6)), updates)
    return summing.total()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": 2}, "defense.threshold is 2"),
        ({"threshold": True}, "defense.threshold is True"),
        ({"graph": "ring"}, "defense.graph is 'ring'"),
        ({"graph": "sparse", "threshold": 0.5}, "thresholds follow from defense.corrupt"),
        ({"malicious": "no"}, "defense.malicious is 'no'"),
        ({"bits": 1}, "defense.bits is 1"),
        ({"clip": -1.0}, "defense.clip is -1.0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_in_one_line(changes, says):
    with pytest.raises(InputError, match=says) as refused:
        SecAgg(**changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("secagg", "changes", "says"),
    [
        ({}, {"algorithm": FedAvg(**SOME, aggregator=Median())}, "set aggregator=mean"),
        ({}, {"algorithm": FedAvg(**SOME, aggregator=TrimmedMean())}, "set aggregator=mean"),
        ({}, {"algorithm": FedAvg(**SOME, aggregator=Krum())}, "set aggregator=mean"),
        ({}, {"fleet": Buffered(devices=SLOW, concurrency=5, buffer=3)}, "choose a synchronous fleet"),
        ({}, {"participation": Fixed(cohort=1)}, "of 1 clients 1 came, and a masked sum needs 2; ask more clients"),
        ({}, {"participation": PoissonClients(rate=0.3)}, "cohort of at least 2, and a round asks 1.8"),
        ({"bits": 3}, {}, "too few for a sum over 6 clients; it must be at least 4"),
        ({"bits": 5}, {"algorithm": BY_EXAMPLES}, "weights up to 10; it must be at least 6"),
        ({"threshold": 0.5, "malicious": True}, {}, "against a malicious server take at least 5"),
        ({"graph": "sparse", "corrupt": 0.4, "dropout": 0.3}, {}, "sparser than the complete one"),
        ({"threshold": 0.99}, {"fleet": LOSING, "rounds": 40}, "lower the fleet's losses or defense.threshold"),
    ],
)
def test_what_cannot_go_under_masks_is_refused_in_one_line(secagg, changes, says):
    with pytest.raises(InputError, match=says) as refused:
        run(prepared(SecAgg(**secagg), **changes))
    assert "\n" not in str(refused.value)


def test_training_that_diverges_is_one_line_under_masks_too():
    wild = FedAvg(sampler=Shuffled(local_epochs=2, batch_size=2), lr=1e30)
    with pytest.raises(InputError, match=r"nan or inf.*lower algorithm\.lr"):
        run(prepared(SecAgg(), algorithm=wild, rounds=3))


def test_clients_that_hold_nothing_leave_the_model_as_it_is():
    nobody = torch.zeros(3, 60, dtype=torch.bool)
    whole = prepared(SecAgg(), algorithm=BY_EXAMPLES, members=nobody, rounds=2)
    state, seen = watched(whole)
    assert seen.divisors[1].tolist() == [0, 0, 0]
    assert all(torch.equal(value, initial_state(whole).model[name]) for name, value in state.model.items())


def test_the_files_in_conf_make_the_defaults():
    folder = Path(__file__).parents[3] / "conf" / "defense"
    made = {
        name: instantiate({**OmegaConf.load(folder / f"{name}.yaml"), "_convert_": "all"})
        for name in ("secagg", "secagg_shares")
    }
    assert made["secagg"] == SecAgg()
    assert made["secagg_shares"].parts[1] == SecAgg()
    assert made["secagg_shares"].parts[0].bits == 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_masks_a_federation_too():
    whole = prepared(SecAgg(bits=40, threshold=0.4), fleet=LOSING, algorithm=BY_EXAMPLES, rounds=2)
    there = dataclasses.replace(whole, model=whole.model.to("cuda"), data=whole.data.to(torch.device("cuda")))
    found = State.from_tensors({name: value.cpu() for name, value in run(there).tensors().items()})
    whole.model.to("cpu")
    assert_close(run(whole), found, 1e-4)
