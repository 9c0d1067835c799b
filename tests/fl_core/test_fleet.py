"""What becomes of those who are asked: timelines worked out by hand, and what holds for every fleet."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import chi2

from fl_core.devices import Devices
from fl_core.errors import InputError
from fl_core.fleet import Buffered, Ideal, Synchronous, Turn, Workload, log_line, time_to, times_to
from fl_core.participation import Available, Cyclic, Everyone, Fixed, PoissonClients, Uniform

# A step takes 1 s, a message 1/2 s: a turn is one second longer than its number of steps.
CLOCKWORK = Devices(
    example_seconds=1,
    example_sigma=0,
    download=1,
    download_sigma=0,
    upload=1,
    upload_sigma=0,
    latency=0,
    compute_jitter=0,
    network_jitter=0,
    dropout_before=0,
    dropout_after=0,
)
WIDE = Devices(dropout_before=0.1, dropout_after=0.2)


def work(*steps: int, model_bytes: int = 500_000) -> Workload:
    return Workload(clients=len(steps), steps=torch.tensor(steps), step_examples=1.0, model_bytes=model_bytes)


def play(fleet, steps, rounds, participation=None, run=0, replica=0, model_bytes=500_000) -> list[Turn]:
    turns = fleet.turns(participation or Everyone(), work(*steps, model_bytes=model_bytes), run, replica)
    return list(itertools.islice(turns, rounds))


def plain(turns: list[Turn]) -> str:
    return json.dumps([[log_line(turn), turn.oldest] for turn in turns])


def doomed(rate: str) -> Devices:
    """Clockwork that loses everybody: the coins fall below 1 - 1e-12."""
    return Devices(**{**CLOCKWORK.__dict__, rate: 1 - 1e-12})


def test_an_ideal_fleet_uses_everybody_asked_at_once():
    for turn in play(Ideal(), [1, 2, 3, 4], 3, Uniform(2)):
        assert turn.clients.tolist() == turn.asked.tolist() == Uniform(2).draw(4, 0, 0, turn.round).tolist()
        assert turn.versions.tolist() == [turn.round] * 2
        assert turn.work.tolist() == turn.factors.tolist() == [1, 1]
        assert turn.lost == {"before": [], "after": [], "late": []}
        assert (turn.began, turn.ended) == (0, 0)


def test_a_synchronous_round_lasts_as_long_as_its_slowest():
    first, second = play(Synchronous(CLOCKWORK), [4, 1, 2], 2)
    assert first.clients.tolist() == [0, 1, 2]
    assert (first.began, first.ended, second.began, second.ended) == (0, 5, 5, 10)
    assert first.work.tolist() == [1, 1, 1]
    assert second.versions.tolist() == [1, 1, 1]


def test_an_over_selected_round_closes_with_its_target_and_leaves_out_the_slow():
    (turn,) = play(Synchronous(CLOCKWORK, target=2), [4, 1, 2], 1)
    assert turn.clients.tolist() == [1, 2]
    assert turn.lost == {"before": [], "after": [], "late": [0]}
    assert turn.ended == 3


def test_arrivals_at_the_same_instant_count_by_client_number():
    (turn,) = play(Synchronous(CLOCKWORK, target=2), [2, 2, 1, 2], 1)
    assert turn.clients.tolist() == [0, 2]
    assert turn.lost["late"] == [1, 3]
    assert turn.ended == 3


def test_a_deadline_leaves_out_who_comes_later_and_takes_who_comes_right_then():
    (turn,) = play(Synchronous(CLOCKWORK, deadline=3), [4, 1, 2], 1)
    assert turn.clients.tolist() == [1, 2]
    assert turn.lost["late"] == [0]
    assert turn.ended == 3
    (turn,) = play(Synchronous(CLOCKWORK, deadline=2.75), [4, 1, 2], 1)
    assert turn.clients.tolist() == [1]
    assert turn.ended == 2.75
    (turn,) = play(Synchronous(CLOCKWORK, target=2, deadline=100), [4, 1, 2], 1)
    assert turn.ended == 3, "the target came first"


def test_partial_work_is_the_whole_steps_that_fit_before_the_deadline():
    # With 3.5 s, 2.5 remain for steps: 2 of 8, 2 of 2, 1 of 1.
    (turn,) = play(Synchronous(CLOCKWORK, deadline=3.5, partial=True), [8, 2, 1], 1)
    assert turn.clients.tolist() == [0, 1, 2]
    assert turn.work.tolist() == [0.25, 1, 1]
    assert turn.lost["late"] == []
    assert turn.ended == 3, "the slow one stops after its second step"
    (turn,) = play(Synchronous(CLOCKWORK, deadline=2, partial=True), [8, 2, 1], 1)
    assert turn.work.tolist() == [1 / 8, 1 / 2, 1], "a step that fits exactly is done"
    (turn,) = play(Synchronous(CLOCKWORK, deadline=1.5, partial=True), [8, 2, 1], 1)
    assert turn.clients.tolist() == []
    assert turn.lost["late"] == [0, 1, 2], "not one step fits"


def test_partial_work_survives_rounding():
    # 3 x 0.1 is above 0.3 in binary; the third step still fits, and its client is on time.
    tenth = Devices(**{**CLOCKWORK.__dict__, "example_seconds": 0.1})
    assert 3 * 0.1 > 0.3
    for deadline in (0.3, 0.6, 0.7):
        (turn,) = play(Synchronous(tenth, deadline=deadline, partial=True), [100], 1, model_bytes=0)
        assert turn.work.tolist() == [round(10 * deadline) / 100]
        assert turn.ended <= deadline


def test_a_round_in_which_nobody_arrives_still_takes_its_time():
    turns = play(Synchronous(CLOCKWORK, deadline=1.5), [4, 1, 2], 2)
    assert [turn.clients.tolist() for turn in turns] == [[], []]
    assert [turn.ended for turn in turns] == [1.5, 3.0]
    after = play(Synchronous(doomed("dropout_after")), [4, 1, 2], 2)
    assert [turn.lost for turn in after] == [{"before": [], "after": [0, 1, 2], "late": []}] * 2
    assert [turn.ended for turn in after] == [5, 10], "until the slowest would have arrived"
    before = play(Synchronous(doomed("dropout_before")), [4, 1, 2], 1)
    assert before[0].lost == {"before": [0, 1, 2], "after": [], "late": []}
    assert before[0].ended == 0.5, "they are given up after the download"
    assert play(Synchronous(doomed("dropout_after"), deadline=9), [4, 1, 2], 1)[0].ended == 9


def test_a_loss_is_silent():
    # Clients that are lost keep a target out of reach: the deadline decides, or the last who does arrive.
    for run in range(20):
        (timed,) = play(Synchronous(WIDE, target=30, deadline=1000), [3] * 30, 1, run=run)
        (free,) = play(Synchronous(WIDE, target=30), [3] * 30, 1, run=run)
        (all_of_them,) = play(Synchronous(WIDE), [3] * 30, 1, run=run)
        lost = timed.lost["before"] + timed.lost["after"]
        # 30 clients of whom none is lost: 0.7^30 = 2e-5 a run, 5e-4 in all, and the seeds are fixed.
        assert lost
        assert sorted(lost + timed.clients.tolist()) == list(range(30))
        assert timed.ended == 1000
        assert free.ended == all_of_them.ended < 1000
        assert torch.equal(free.clients, timed.clients)


def test_a_round_of_nobody_takes_no_time_without_a_deadline():
    nobody = PoissonClients(1e-12)
    assert [turn.ended for turn in play(Synchronous(CLOCKWORK), [1, 1], 3, nobody)] == [0, 0, 0]
    assert [turn.ended for turn in play(Synchronous(CLOCKWORK, deadline=2), [1, 1], 3, nobody)] == [2, 4, 6]
    assert [turn.clients.tolist() for turn in play(Ideal(), [1, 1], 2, nobody)] == [[], []]


def test_a_round_that_asks_fewer_than_its_target_waits_for_all_of_them():
    turns = play(Synchronous(CLOCKWORK, target=5, deadline=9), [1] * 6, 40, PoissonClients(0.5))
    few = [turn for turn in turns if 0 < len(turn.asked) < 5]
    assert few
    assert all(turn.clients.tolist() == turn.asked.tolist() for turn in few)
    assert {turn.ended - turn.began for turn in few} == {2}, "not until the deadline"


def test_a_device_keeps_its_speed():
    steady = Devices(**{**CLOCKWORK.__dict__, "example_sigma": 1.0})
    turns = play(Synchronous(steady, target=2), [1] * 5, 6)
    assert len({tuple(turn.clients.tolist()) for turn in turns}) == 1
    lengths = [turn.ended - turn.began for turn in turns]
    assert lengths == pytest.approx([lengths[0]] * 6)


def buffered(concurrency: int, buffer: int, steps, rounds: int, participation=None, **more) -> list[Turn]:
    """A turn takes a second a step; messages take no time."""
    return play(Buffered(CLOCKWORK, concurrency, buffer, **more), steps, rounds, participation, model_bytes=0)


def table(turns: list[Turn]) -> list[tuple]:
    return [(turn.clients.tolist(), turn.versions.tolist(), turn.ended, turn.oldest) for turn in turns]


def test_fedbuff_steps_with_every_update_when_the_buffer_holds_one():
    # Client 0 takes 1 s, client 1 takes 3 s. Both arrive at 3 s: client 0 first, and client 1 is then 3 rounds old.
    turns = buffered(2, 1, [1, 3], 5)
    assert table(turns) == [([0], [0], 1, 0), ([0], [1], 2, 0), ([0], [2], 3, 0), ([1], [0], 3, 3), ([0], [3], 4, 4)]
    assert [sorted(turn.asked.tolist()) for turn in turns] == [[0, 1], [0], [0], [0], [1]]
    assert [turn.factors.tolist() for turn in turns] == [[1], [1], [1], [0.5], [pytest.approx(2**-0.5)]]


def test_fedbuff_fills_its_buffer_and_counts_how_stale_each_update_is():
    # 1, 2 and 5 s. Round 0: clients 0 (1 s) and 1 (2 s). Round 1, from 2 s: they again, at 3 and 4 s. Round 2, from
    # 4 s: client 0 at 5 s, and then client 2, who began in round 0.
    turns = buffered(3, 2, [1, 2, 5], 4)
    assert table(turns) == [
        ([0, 1], [0, 0], 2, 0),
        ([0, 1], [1, 1], 4, 0),
        ([0, 2], [2, 0], 5, 2),
        ([0, 1], [3, 2], 6, 3),
    ]
    assert turns[2].factors.tolist() == [1, pytest.approx(3**-0.5)]
    assert [sorted(turn.asked.tolist()) for turn in turns] == [[0, 1, 2], [0, 1], [0, 1], [0, 2]]


def test_updates_that_are_too_stale_are_thrown_away_and_their_slot_is_free():
    # As above, but client 2's update is 2 rounds old at 5 s. It starts again there, and client 1 comes at 6 s.
    turns = buffered(3, 2, [1, 2, 5], 3, max_staleness=1)
    assert table(turns)[2] == ([0, 1], [2, 2], 6, 2)
    assert turns[2].lost == {"before": [], "after": [], "late": [2]}
    assert sorted(turns[2].asked.tolist()) == [0, 1, 2]


def test_staleness_weighs_as_its_rule_says():
    (flat,) = buffered(3, 2, [1, 2, 5], 3, staleness="constant")[2:]
    assert flat.factors.tolist() == [1, 1]
    (steep,) = buffered(3, 2, [1, 2, 5], 3, exponent=2)[2:]
    assert steep.factors.tolist() == [1, pytest.approx(1 / 9)]


def test_a_client_waits_in_the_buffer_before_it_is_asked_again():
    # With a slot for each, client 0 could come four times before client 1 does; it is in a round once.
    turns = buffered(2, 2, [1, 4], 3)
    assert table(turns) == [([0, 1], [0, 0], 4, 1), ([0, 1], [1, 1], 8, 2), ([0, 1], [2, 2], 12, 3)]


def test_a_free_slot_asks_any_free_client_with_the_same_chance():
    # One slot, a buffer of one: each of 4 clients a quarter of 2000 rounds. Chi-square, 3 degrees, false alarm 1e-6.
    found = Counter(int(turn.asked) for turn in buffered(1, 1, [1] * 4, 2000))
    assert chi2.sf(sum((found[client] - 500) ** 2 / 500 for client in range(4)), 3) > 1e-6


def test_an_asynchronous_server_never_waits_for_somebody_who_cannot_come():
    # Half a client at hand on average: rounds of nobody are empty and take no time.
    turns = buffered(2, 2, [3, 3], 60, Available(None, period=4, share=0.25))
    sizes = Counter(len(turn.clients) for turn in turns)
    assert sizes[0] > 0
    assert sizes[1] + sizes[2] > 0
    assert all(turn.ended == turn.began for turn in turns if not len(turn.asked) and not len(turn.clients))


FLEETS = st.one_of(
    st.just(Ideal()),
    st.builds(
        Synchronous,
        st.sampled_from([WIDE, CLOCKWORK]),
        target=st.none() | st.integers(1, 3),
        deadline=st.floats(0.5, 9),
        partial=st.booleans(),
    ),
    st.builds(Synchronous, st.sampled_from([WIDE, CLOCKWORK]), target=st.none() | st.integers(1, 3)),
    st.builds(
        Buffered,
        st.sampled_from([WIDE, CLOCKWORK]),
        st.integers(1, 4),
        st.integers(1, 4),
        max_staleness=st.none() | st.integers(0, 3),
    ),
)
ONE_BY_ONE = [Everyone(), Fixed(4), Available(None, 4, 0.5), Cyclic(None, 3)]
PARTICIPATIONS = st.sampled_from([*ONE_BY_ONE, Uniform(3), PoissonClients(0.4), Cyclic(3, 2), Available(3, 4, 0.5)])


@given(
    fleet=FLEETS,
    participation=PARTICIPATIONS,
    steps=st.lists(st.integers(1, 9), min_size=7, max_size=10),
    run=st.integers(0, 2**40),
)
def test_nobody_is_forgotten_counted_twice_or_in_two_places(fleet, participation, steps, run):
    if not fleet.synchronous and participation not in ONE_BY_ONE:
        participation = Everyone()
    if getattr(fleet, "target", None):
        participation = Everyone()
    rounds = 12
    turns = play(fleet, steps, rounds, participation, run)
    busy, uses, clock = Counter(), Counter(), 0.0
    for round, turn in enumerate(turns):
        assert turn.round == round
        assert turn.began == clock
        assert turn.ended >= turn.began
        clock = turn.ended
        lost = list(itertools.chain.from_iterable(turn.lost.values()))
        busy.update(turn.asked.tolist())
        busy.subtract(turn.clients.tolist())
        busy.subtract(lost)
        assert set(busy.values()) <= {0, 1}, "asked is used, lost or still busy, and busy once"
        assert sum(busy.values()) <= (0 if fleet.synchronous else fleet.concurrency)
        assert len(set(turn.clients.tolist())) == len(turn.clients), "once a round"
        uses.update(turn.clients.tolist())
        for values in (turn.versions, turn.work, turn.factors):
            assert values.shape == turn.clients.shape
        assert bool(((turn.work > 0) & (turn.work <= 1) & (turn.factors > 0) & (turn.factors <= 1)).all())
        assert bool((turn.versions <= round).all())
        later = [version for turn in turns[round + 1 :] for version in turn.versions.tolist()]
        assert min(later, default=rounds) >= turn.oldest, "no model is forgotten that somebody still trains on"
        if fleet.synchronous:
            assert turn.versions.tolist() == [round] * len(turn.clients)
            assert turn.clients.tolist() == sorted(turn.clients.tolist())
            assert len(set(turn.asked.tolist())) == len(turn.asked)
        elif participation == Everyone():
            assert len(turn.clients) == fleet.buffer
    most = participation.event(len(steps), rounds).rounds
    assert max(uses.values(), default=0) <= most, "an accountant counts on it"


@pytest.mark.parametrize(
    "fleet", [Synchronous(WIDE, target=3, deadline=20, partial=True), Buffered(WIDE, 4, 2)], ids=["sync", "fedbuff"]
)
def test_turns_are_a_pure_function_of_their_arguments(fleet):
    first = plain(play(fleet, [1, 5, 9, 3, 2, 7], 30))
    torch.manual_seed(5)
    assert plain(play(fleet, [1, 5, 9, 3, 2, 7], 30)) == first
    assert plain(play(fleet, [1, 5, 9, 3, 2, 7], 30, replica=1)) != first
    assert plain(play(fleet, [1, 5, 9, 3, 2, 7], 30, run=1)) != first
    one, other = (fleet.turns(Everyone(), work(1, 5, 9, 3), 0, replica) for replica in (0, 0))
    assert plain([next(one)]) == plain([next(other)])
    assert plain([next(one)]) == plain([next(other)]), "two iterators share no state"


def test_time_to_accuracy_is_the_first_second_that_reaches_the_target():
    assert time_to([0.1, 0.5, 0.4, 0.6], [10, 20, 30, 40], 0.5) == 20
    assert time_to([0.1, 0.5], [10, 20], 0.51) is None
    assert time_to([math.nan, math.nan, 0.9], [10, 20, 30], 0.5) == 30, "rounds without a measurement do not count"
    assert times_to([[0.1, 0.9], [0.1, 0.2]], [[1, 2], [3, 4]], 0.5) == [2, None]
    with pytest.raises(ValueError, match="shorter"):
        time_to([0.1, 0.5], [10], 0.9)


def test_a_log_line_says_in_plain_json_who_did_what():
    turn = buffered(3, 2, [1, 2, 5], 3, max_staleness=1)[2]
    line = log_line(turn)
    assert json.loads(json.dumps(line)) == line
    assert sorted(line.pop("asked")) == [0, 1, 2]
    assert line == {
        "round": 2,
        "began": 4,
        "ended": 6,
        "clients": [0, 1],
        "staleness": [0, 0],
        "factors": [1, 1],
        "work": [1, 1],
        "lost": {"before": [], "after": [], "late": [2]},
    }


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Synchronous(None), "fleet.devices is None"),
        (lambda: Synchronous(WIDE, target=0), "fleet.target is 0"),
        (lambda: Synchronous(WIDE, deadline=0), "fleet.deadline is 0"),
        (lambda: Synchronous(WIDE, deadline=1, partial="yes"), "fleet.partial is 'yes'"),
        (lambda: Synchronous(WIDE, partial=True), "set fleet.deadline"),
        (lambda: Synchronous(WIDE, target=4).check(Uniform(3), 9), "fleet.target is 4, but a round asks 3 clients"),
        (lambda: Synchronous(WIDE, target=4).check(Cyclic(None, 3), 9), "fleet.target is 4, but a round asks 3"),
        (lambda: Synchronous(WIDE, target=4).check(PoissonClients(0.5), 3), "fleet.target is 4, but a round asks 3"),
        (lambda: Buffered({}, 1, 1), "fleet.devices is {}"),
        (lambda: Buffered(WIDE, 0, 1), "fleet.concurrency is 0"),
        (lambda: Buffered(WIDE, 1, 0), "fleet.buffer is 0"),
        (lambda: Buffered(WIDE, 1, 1, staleness="hinge"), "fleet.staleness is 'hinge'"),
        (lambda: Buffered(WIDE, 1, 1, exponent=-1), "fleet.exponent is -1"),
        (lambda: Buffered(WIDE, 1, 1, max_staleness=-1), "fleet.max_staleness is -1"),
        (lambda: next(Buffered(WIDE, 4, 1).turns(Everyone(), work(1, 1, 1), 0, 0)), "fleet.concurrency is 4"),
        (lambda: Buffered(WIDE, 1, 4).check(Everyone(), 3), "fleet.buffer is 4, but only 3 clients"),
        (lambda: Buffered(WIDE, 1, 4).check(Fixed(3), 9), "fleet.buffer is 4, but only 3 clients"),
        (lambda: Buffered(WIDE, 1, 1).check(Uniform(3), 9), "set participation=everyone"),
        (lambda: Buffered(WIDE, 1, 1).check(PoissonClients(0.5), 9), "set participation=everyone"),
        (lambda: Buffered(WIDE, 1, 1).check(Cyclic(2, 2), 9), "set participation.cohort=null"),
        (lambda: Ideal().check(Uniform(3), 2), "participation.cohort is 3"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(made, said):
    with pytest.raises(InputError, match=said) as refused:
        made()
    assert "\n" not in str(refused.value)


def test_every_option_in_conf_makes_a_fleet_and_its_devices_are_the_defaults():
    folder = Path(__file__).parents[2] / "conf" / "fleet"
    made = {
        path.stem: instantiate({**OmegaConf.load(path), "_partial_": True, "_convert_": "all"})()
        for path in folder.glob("*.yaml")
    }
    assert made == {
        "ideal": Ideal(),
        "devices": Synchronous(Devices()),
        "fedbuff": Buffered(Devices(), concurrency=4, buffer=2),
    }
    for fleet in made.values():
        fleet.check(Everyone(), 5)
