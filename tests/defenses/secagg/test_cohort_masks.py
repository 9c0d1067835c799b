"""A cohort's masks as tensor work, beside the protocol itself and ChaCha20's known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defenses.secagg import chacha20, masks
from defenses.secagg.chacha20 import key_words, stream
from defenses.secagg.cohort_masks import CohortMasks, add_as_tensors, add_with_openssl
from defenses.secagg.graph import sparse
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import aggregate, seeded
from defenses.secagg.refusals import Aborted
from fl_core.seeds import generator

MODEL = bytes(range(32))
PATHS = {"openssl": add_with_openssl, "tensors": lambda rows, found: add_as_tensors(rows, found, memory=1 << 14)}


def source(seed: int = 0) -> Callable[[int], bytes]:
    return seeded(seed.to_bytes(32, "little"))


def words(clients: int, length: int, bits: int, seed: int = 0) -> Tensor:
    drawn = torch.randint(0, 1 << bits, (clients, length), generator=generator(seed, "vectors"))
    return drawn.to(torch.int32) if bits <= 32 else drawn


def unsigned(vectors: Tensor) -> np.ndarray:
    return vectors.numpy().view(np.uint32 if vectors.dtype == torch.int32 else np.uint64)


def reduced(total: Tensor, bits: int) -> np.ndarray:
    return unsigned(total) & unsigned(total).dtype.type((1 << bits) - 1)


def assert_parity(parameters: Parameters, lost: set[int], tiles: list[list[int]], seed: int, path: str) -> None:
    """The same masked vectors and the same sum as the protocol's, message by message."""
    context = parameters.context(7, MODEL)
    vectors = words(parameters.clients, parameters.length, parameters.bits, seed)
    theirs = aggregate(
        list(unsigned(vectors)),
        parameters=parameters,
        contexts=context,
        random=source(seed),
        drops=dict.fromkeys(lost, Stage.MASKED),
    )
    ours = CohortMasks(parameters, context, source(seed))
    ours._add = PATHS[path]  # type: ignore[method-assign]
    total = torch.zeros_like(vectors[0])
    for tile in tiles:
        came = [client for client in tile if client not in lost]
        if came:
            masked = ours.masked(came, vectors[came])
            for client, one in zip(came, masked, strict=True):
                assert np.array_equal(unsigned(one), theirs.transcript.masked[client]), client
                total += one
    survivors = frozenset(range(parameters.clients)) - lost
    assert theirs.survivors == tuple(sorted(survivors))
    found = ours.unmasked(total, survivors)
    assert np.array_equal(unsigned(found), theirs.total)
    plain = sum((vectors[client] for client in sorted(survivors)), torch.zeros_like(vectors[0]))
    assert np.array_equal(unsigned(found), reduced(plain, parameters.bits))


def in_tiles(clients: int, size: int) -> list[list[int]]:
    order = list(range(clients))
    return [order[at : at + size] for at in range(0, clients, size)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("malicious", [False, True])
@settings(max_examples=12)
@given(
    clients=st.integers(2, 12),
    length=st.integers(1, 300),
    bits=st.integers(1, 62),
    size=st.integers(1, 12),
    data=st.data(),
)
def test_masks_and_sums_are_the_protocol_s_on_the_complete_graph(path, malicious, clients, length, bits, size, data):
    parameters = Parameters.complete(clients, length, bits, malicious=malicious)
    lost = data.draw(st.sets(st.integers(0, clients - 1), max_size=clients - parameters.quorum))
    assert_parity(parameters, lost, in_tiles(clients, size), seed=clients * length, path=path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("malicious", [False, True])
def test_masks_and_sums_are_the_protocol_s_on_a_sparse_graph(path, malicious):
    design = sparse(
        60,
        corrupt=0.02,
        dropout=0.05,
        security_bits=8,
        correctness_bits=8,
        malicious=malicious,
        grinding_bits=0,
    )
    assert design.neighbours < 59
    parameters = Parameters.sparse(design, 70, 32)
    assert_parity(parameters, {3, 17, 40}, in_tiles(60, 13), seed=1, path=path)


def test_a_client_whose_mask_is_forgotten_spoils_the_sum_and_parity_says_so(monkeypatch):
    # A planted bug: the masks that a dropped client left on the others stay there.
    real = CohortMasks._left_on

    def forgetful(self, survivors):
        return (one for one in real(self, survivors) if one[0] in {self._own(client) for client in survivors})

    parameters = Parameters.complete(6, 40, 20)
    assert_parity(parameters, {2}, in_tiles(6, 6), seed=0, path="openssl")
    monkeypatch.setattr(CohortMasks, "_left_on", forgetful)
    assert_parity(parameters, set(), in_tiles(6, 6), seed=0, path="openssl")  # it shows only where somebody is lost
    with pytest.raises(AssertionError):
        assert_parity(parameters, {2}, in_tiles(6, 6), seed=0, path="openssl")


@pytest.mark.parametrize("malicious", [False, True])
def test_a_sum_that_the_protocol_cannot_unmask_is_given_up_here_too(malicious):
    design = sparse(
        60, corrupt=0.02, dropout=0.2, security_bits=8, correctness_bits=8, malicious=malicious, grinding_bits=0
    )
    parameters = Parameters.sparse(design, 10, 32)
    context, vectors = parameters.context(0, MODEL), words(60, 10, 32)
    ours = CohortMasks(parameters, context, source())
    near = [*ours.graph.neighbours(5)[: 60 - design.quorum]]  # as many as may be lost, all on one client's side
    for lost in (near, list(range(60 - design.quorum + 1))):
        survivors = frozenset(range(60)) - set(lost)
        kept = [client for client in range(60) if client in survivors]
        total = ours.masked(kept, vectors[kept]).sum(0, dtype=torch.int32)
        with pytest.raises(Aborted):
            aggregate(
                list(unsigned(vectors)),
                parameters=parameters,
                contexts=context,
                random=source(),
                drops=dict.fromkeys(lost, Stage.MASKED),
            )
        with pytest.raises(Aborted):
            ours.unmasked(total, survivors)


def test_two_rounds_and_two_models_share_no_mask():
    parameters = Parameters.complete(3, 50, 32)
    zeros = torch.zeros(3, 50, dtype=torch.int32)
    rounds = [
        CohortMasks(parameters, context, source(seed)).masked([0, 1, 2], zeros)
        for context, seed in (
            (parameters.context(0, MODEL), 0),
            (parameters.context(1, MODEL), 0),
            (parameters.context(0, bytes(32)), 0),
            (parameters.context(0, MODEL), 1),
        )
    ]
    together = torch.stack(rounds).flatten()
    assert len(together.unique()) >= len(together) - 2  # 600 words of 32 bits: two alike once in 24,000 runs


def test_chacha20_is_the_block_of_rfc_8439():
    nonce = [int.from_bytes(bytes.fromhex(word), "little") for word in ("00000009", "0000004a", "00000000")]
    block = stream(key_words([bytes(range(32))]), 1, first=1, nonce=nonce)
    assert block.numpy().astype("<i4").tobytes().hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )  # section 2.3.2


@given(count=st.integers(1, 5), length=st.integers(1, 400), bits=st.integers(1, 62), first=st.integers(0, 6))
def test_streams_are_openssl_s(count, length, bits, first):
    drawn = torch.randint(256, (count, 32), generator=generator(length, "keys"), dtype=torch.uint8)
    seeds = [bytes(row.tolist()) for row in drawn]
    blocks = math.ceil(length * (4 if bits <= 32 else 8) / 64)
    whole = stream(key_words(seeds), blocks)
    found = (whole if bits <= 32 else whole.view(torch.int64))[:, :length]
    for one, seed in zip(found, seeds, strict=True):
        assert np.array_equal(reduced(one, bits), masks.expand(seed, length, bits))
    later = stream(key_words(seeds), max(blocks - first, 0), first)
    assert torch.equal(later, whole[:, 16 * first :])


def test_the_counter_s_highest_bit_is_a_bit_like_any_other():
    # Past 2^31 blocks int32 turns negative; the stream goes on.
    last = stream(key_words([MODEL]), 3, first=(1 << 31) - 1)
    counted = chacha20.stream(key_words([MODEL]), 1, first=1 << 31)
    assert torch.equal(last[:, 16:32], counted)
    assert not torch.equal(last[:, :16], counted)


@given(rows=st.integers(1, 4), length=st.integers(1, 200), wide=st.booleans(), memory=st.integers(1, 1 << 16))
def test_masks_go_on_their_rows_the_same_on_both_paths_whatever_memory_there_is(rows, length, wide, memory):
    draw = generator(length, "signs")
    made = [
        (bytes(torch.randint(256, (32,), generator=draw, dtype=torch.uint8).tolist()), {one: 1} | {other: -1})
        for one, other in torch.randint(rows, (7, 2), generator=draw).tolist()
        if one != other
    ]
    made += [(bytes([row]) * 32, {row: -1 if row % 2 else 1}) for row in range(rows)]
    start = words(rows, length, 62 if wide else 32, seed=rows)
    both = start.clone(), start.clone()
    add_with_openssl(both[0], iter(made))
    add_as_tensors(both[1], iter(made), memory=memory)
    assert torch.equal(*both)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpu_s_masks():
    parameters = Parameters.complete(9, 5000, 40)
    context, vectors = parameters.context(0, MODEL), words(9, 5000, 40)
    found = [
        CohortMasks(parameters, context, source(), device).masked(list(range(7)), vectors[:7].to(device)).cpu()
        for device in ("cpu", "cuda")
    ]
    assert torch.equal(*found)
