"""Parameters that cannot be are refused in words, and no two sets of parameters have one digest."""

from __future__ import annotations

import dataclasses

import pytest

from defenses.secagg.graph import sparse
from defenses.secagg.parameters import LAYOUT_BYTES, Parameters, Stage
from fl_core.errors import InputError

SPARSE = Parameters(clients=9, length=5, bits=32, threshold=3, quorum=7, neighbours=4, window=1, malicious=True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"clients": 1}, "clients is 1"),
        ({"length": 0}, "length is 0"),
        ({"bits": 63}, "bits is 63"),
        ({"threshold": 5}, "threshold is 5; it must be a whole number at least 1 and at most 4"),
        ({"neighbours": None, "window": 0}, "threshold is 3 and quorum 7 .* at least 7"),
        ({"neighbours": 3}, "must be even"),
        ({"quorum": 6}, "at least 7: up to two thirds"),
        ({"window": 0}, "window is 0; a sparse graph against a malicious server needs one"),
        ({"window": 3}, "window is 3"),
        ({"neighbours": None, "window": 0, "malicious": False, "threshold": 8}, "quorum is 7"),
    ],
)
def test_parameters_that_cannot_be_are_an_input_error(fields, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SPARSE, **fields)


def test_two_thirds_of_the_clients_are_not_enough_against_a_malicious_server():
    for clients in range(2, 40):
        made = Parameters.complete(clients, 1, 8, malicious=True)
        assert 3 * made.threshold > 2 * clients >= 3 * (made.threshold - 1)
        if made.threshold > 1:
            with pytest.raises(InputError, match="malicious server"):
                Parameters.complete(clients, 1, 8, made.threshold - 1, malicious=True)


def test_every_parameter_is_in_the_digest_and_in_the_context():
    others = [
        dataclasses.replace(SPARSE, **change)
        for change in (
            {"clients": 8},
            {"length": 6},
            {"bits": 31},
            {"threshold": 4},
            {"quorum": 8},
            {"neighbours": 6},
            {"window": 2},
            {"malicious": False},
        )
    ]
    assert len(others) == len(dataclasses.fields(SPARSE))
    assert len({SPARSE.digest, *(other.digest for other in others)}) == 9
    assert len({other.context(1, bytes(32)).digest for other in others}) == 8
    assert {len(other.encoded()) for other in others} == {LAYOUT_BYTES}


def test_a_context_is_of_a_round_and_a_model_s_hash():
    for round, model in ((-1, bytes(32)), (2**64, bytes(32)), (1, bytes(31))):
        with pytest.raises(InputError, match=r"round|hash"):
            SPARSE.context(round, model)


def test_a_designed_graph_becomes_parameters():
    design = sparse(100, corrupt=0.1, dropout=0.1, malicious=True)
    made = Parameters.sparse(design, 10, 20)
    assert (made.neighbours, made.threshold, made.quorum) == (design.neighbours, design.threshold, design.quorum)
    assert made.window == design.window > 0
    assert made.malicious
    assert not Parameters.sparse(sparse(100, corrupt=0.1, dropout=0.1), 10, 20).malicious


def test_only_against_a_malicious_server_there_is_a_check():
    assert Stage.CHECK in SPARSE.stages
    assert [stage for stage in Stage if stage is not Stage.CHECK] == list(Parameters.complete(3, 1, 8).stages)


@pytest.mark.parametrize(("bits", "bytes_"), [(1, 1), (8, 1), (9, 2), (24, 3), (25, 4), (32, 4), (33, 5), (62, 8)])
def test_a_word_takes_as_many_bytes_as_its_bits_need(bits, bytes_):
    assert Parameters.complete(3, 1, bits).word_bytes == bytes_
