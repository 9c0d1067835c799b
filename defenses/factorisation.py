"""Correlated noise for the server's sums, as in DP-FTRL: a run of T rounds as one matrix mechanism.

Let G [rounds, d] hold each round's sum of clipped client contributions and A the lower-triangular matrix of ones,
so that A·G are the prefix sums, which the model follows. With A = B·C the server releases A·G + B·Z, Z iid normal:
noise that partly cancels from one round to the next, so that a prefix carries far less of it than the sum of as
many independent draws, at the same guarantee. Round t's released sum gets w_t = (B·Z)_t − (B·Z)_{t−1}. Both
factorisations here have a square C, lower triangular with ones on its diagonal, so w = C⁻¹·Z.

Neither w nor a T×T matrix is ever stored. One standard normal tensor N(key) belongs to each round, made again
from its seed whenever it is needed, and the engine's loop is

    w_t = Σ coefficient · scale · N(key)  for (key, coefficient) in fresh(t)
        + Σ coefficient · w_{t−k}         for (k, coefficient) in past(t), k at most `memory`

so the last `memory` w's, [replicas, ...] each, are all the state that a checkpoint has to hold.

Formal guarantee. Let every client's contribution to a round have an L2 norm of at most `clip_norm`, over all
leaves together; let `patterns` hold the rounds in which each client may take part, fixed before the run and without
a look at the data; and let scale = z · worst(patterns) · clip_norm. Then everything that the server releases in the
whole run is a single Gaussian mechanism of noise multiplier z: (1/z)-GDP, so (ε, δ)-DP with
ε = bounds.epsilon_gaussian(1 / z, δ). The relation is zero-out of one client: its contribution is replaced by zero
in all of its rounds, while who takes part when stays as it was and may be public. The contributions may be chosen
adaptively, after all earlier releases (Denisov, McMahan, Rush, Smith & Thakurta 2022, on adaptive streams). Taking
part in fewer rounds than the pattern says is covered. No amplification by sampling is claimed, and nothing against
whoever sees a client's update before it is summed. What is computed from the noisy sums, momentum and learning
rates included, is post-processing.

Correlation pays for clients that take part seldom. One that is there in every round is better served by independent
noise (`BandedSquareRoot` with a band of 1): compare `rms_error(patterns)`.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_core.errors import InputError, check_number

Floats = npt.NDArray[np.float64]

# The rounds in which one client takes part, counted from 0.
Pattern = Sequence[int]

# What is summed into a round's noise: (which tensor, its coefficient).
Terms = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Factorisation(ABC):
    """A = B·C over `rounds` rounds; C is square, entrywise nonnegative, lower triangular, with ones on its diagonal."""

    rounds: int

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, minimum=1, integer=True)

    @property
    @abstractmethod
    def memory(self) -> int:
        """For how many rounds a w is needed after its own."""

    @abstractmethod
    def fresh(self, round: int) -> Terms:
        """(key, coefficient) of the standard normal tensors in round `round`'s noise, before `scale`.

        A key is the number of the round that first draws the tensor, this one or an earlier. Raises InputError
        for a round that the mechanism was not made for: its noise would not be covered by the guarantee.
        """

    @abstractmethod
    def past(self, round: int) -> Terms:
        """(k, coefficient) of the earlier noise w_{round−k}, already scaled. Raises what `fresh` raises."""

    @abstractmethod
    def prefix_variances(self) -> Floats:
        """The variances [rounds] of the noise on each prefix sum at a scale of 1: the diagonal of B·Bᵀ."""

    @abstractmethod
    def _encode(self, rounds: list[int]) -> Floats:
        """C·1_pattern [rounds]."""

    def encode(self, pattern: Pattern) -> Floats:
        """C·1_pattern [rounds]: what one client changes in C·G with contributions of 1 in its rounds.

        Raises InputError for a round outside the run or one that is named twice.
        """
        for round in pattern:
            self._check_round("a participation pattern's round", round)
        if len(set(pattern)) < len(pattern):
            raise InputError(
                f"the participation pattern {_shorten(pattern)} names a round twice; "
                "a client takes part at most once a round: name each round once"
            )
        return self._encode(list(pattern))

    def sensitivity(self, pattern: Pattern) -> float:
        """The L2 sensitivity of C to zeroing one client with contributions of norm at most 1 in `pattern`'s rounds.

        Exact, for vectors too: of ‖Σ_i C_i g_iᵀ‖² = Σ_ij (CᵀC)_ij ⟨g_i, g_j⟩ no term exceeds (CᵀC)_ij where that is
        nonnegative, and equal unit vectors reach all of them; hence ‖C·1_pattern‖ (Choquette-Choo, McMahan, Rush &
        Thakurta 2023, "Multi-epoch matrix factorization mechanisms"). 0 for a client that never takes part.
        Raises what `encode` raises.
        """
        return float(np.linalg.norm(self.encode(pattern)))

    def worst(self, patterns: Sequence[Pattern]) -> float:
        """The largest sensitivity over the clients' patterns; equal ones are computed once.

        Raises what `encode` raises, and InputError if there is no pattern.
        """
        if not patterns:
            raise InputError("no participation pattern was given; noise is scaled for at least one client")
        return max(self.sensitivity(pattern) for pattern in dict.fromkeys(tuple(each) for each in patterns))

    def rms_error(self, patterns: Sequence[Pattern] | None = None) -> float:
        """The root-mean-square noise per coordinate over all prefix sums, ‖B‖_F/√T · scale.

        With `patterns`, at z = 1 and a clip norm of 1, which is what makes factorisations comparable: they then give
        the same guarantee. Without, at a scale of 1. Raises what `worst` raises.
        """
        scale = 1.0 if patterns is None else self.worst(patterns)
        return scale * math.sqrt(float(self.prefix_variances().mean()))

    def _check_round(self, name: str, round: int) -> None:
        check_number(name, round, minimum=0, maximum=self.rounds - 1, integer=True)


@dataclass(frozen=True, kw_only=True)
class Tree(Factorisation):
    """Binary tree aggregation: a prefix's noise is one draw for each node of its binary decomposition.

    The prefix of n rounds is cut into blocks of 2^l rounds, one for each bit l that is set in n, longest first; C has a
    row for each block. Every prefix brings exactly one new block, its last, so C is square and a block is named by
    the round that completes it. Nodes that end no prefix (a tree's right children) are never released, hence absent
    here: a client's sensitivity is that of the blocks that hold its rounds, at most √(⌊log₂ T⌋ + 1) for one round.
    Without the refinement of Honaker 2015, which averages over the nodes beneath a block: it would need all of them
    and so O(T) draws a round.

    Needs no state; fewer than two draws a round on average, at most ⌊log₂ T⌋ + 1.

    Source: Dwork, Naor, Pitassi & Rothblum 2010; Chan, Shi & Song 2011; in training, Kairouz, McMahan, Song, Thakkar,
    Thakurta & Xu 2021, "Practical and private (deep) learning without sampling or shuffling".
    """

    @property
    def memory(self) -> int:
        return 0

    def fresh(self, round: int) -> Terms:
        self._check_round("round", round)
        length = round + 1
        terms = [(round, 1.0)]
        # The new block, `kept` to `length`, takes the place of every block of the last prefix after `kept`.
        kept, end = length & (length - 1), length - 1
        while end > kept:
            terms.append((end - 1, -1.0))
            end &= end - 1
        return terms

    def past(self, round: int) -> Terms:
        self._check_round("round", round)
        return []

    def prefix_variances(self) -> Floats:
        return np.array([length.bit_count() for length in range(1, self.rounds + 1)], dtype=np.float64)

    def _encode(self, rounds: list[int]) -> Floats:
        taken = np.zeros(self.rounds + 1)
        taken[[round + 1 for round in rounds]] = 1.0
        until = np.cumsum(taken)
        lengths = np.arange(1, self.rounds + 1)
        inside: Floats = until[lengths] - until[lengths & (lengths - 1)]
        return inside


@dataclass(frozen=True, kw_only=True)
class BandedSquareRoot(Factorisation):
    """The square root of A cut to `band` diagonals: C is Toeplitz with c_k = binom(2k, k)/4^k for k < band.

    These are the first coefficients of (1 − x)^(−1/2). A `band` of T is the square root itself, B = C; one of 1 is
    C = I, independent noise in every round. A client whose rounds lie `band` or more apart has columns that do not
    overlap, so its sensitivity is √k times one column's. Fewer bands suit clients that return sooner.

    w_t = z_t − Σ_{k=1}^{band−1} c_k w_{t−k}: one draw a round and `band` − 1 earlier w's as state. The recursion is
    exact and stable: c falls, so all zeros of its polynomial lie outside the unit circle (Eneström–Kakeya).

    Source: Kalinin & Lampert 2024, "Banded square root matrix factorization for differentially private model
    training".
    """

    band: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("band", self.band, minimum=1, maximum=self.rounds, integer=True)

    @property
    def memory(self) -> int:
        return self.band - 1

    def fresh(self, round: int) -> Terms:
        self._check_round("round", round)
        return [(round, 1.0)]

    def past(self, round: int) -> Terms:
        self._check_round("round", round)
        coefficients = _square_root(self.band)
        return [(k, -float(coefficients[k])) for k in range(1, min(self.memory, round) + 1)]

    def prefix_variances(self) -> Floats:
        # B = A·C⁻¹ is Toeplitz too, with the coefficients of 1/((1 − x)·c(x)); row t holds the first t + 1.
        falling = -_square_root(self.band)[:0:-1]
        padded = np.zeros(self.memory + self.rounds)
        for t in range(self.rounds):
            padded[self.memory + t] = 1.0 + falling @ padded[t : self.memory + t]
        variances: Floats = np.cumsum(padded[self.memory :] ** 2)
        return variances

    def _encode(self, rounds: list[int]) -> Floats:
        coefficients = _square_root(self.band)
        total = np.zeros(self.rounds)
        for round in rounds:
            column = total[round : round + self.band]
            column += coefficients[: len(column)]
        return total


@functools.lru_cache(maxsize=16)
def _square_root(count: int) -> Floats:
    """The first `count` coefficients of (1 − x)^(−1/2), each from the one before it; read-only, since shared."""
    k = np.arange(1, count)
    coefficients = np.cumprod(np.concatenate([[1.0], (2 * k - 1) / (2 * k)]))
    coefficients.setflags(write=False)
    return coefficients


def _shorten(pattern: Pattern) -> str:
    shown = ", ".join(str(round) for round in pattern[:8])
    return f"({shown}, …)" if len(pattern) > 8 else f"({shown})"
