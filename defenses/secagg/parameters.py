"""The public parameters of a round, which every client knows before it and checks in it."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from defenses.secagg import masks
from defenses.secagg.graph import LARGEST_COHORT, Sparse
from defenses.secagg.keys import LABEL, Context
from fl_core.errors import InputError, check_number

LONGEST = 1 << 32

_LAYOUT = struct.Struct("<IQBIIII?")


class Stage(StrEnum):
    """What a client sends, in order; one that drops out at a stage sends nothing from there on."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    CHECK = "check"  # against a malicious server only; in the other variant as UNMASK
    UNMASK = "unmask"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What a round is about, and how many it takes.

    clients: how many there are, numbered from 0. length, bits: of a vector of words modulo 2^bits. threshold: t, the
    shares that recover a secret; t − 1 colluding holders learn nothing. quorum: the fewest clients at any stage, and in
    the sum; the threshold where nothing else is said. malicious: whether clients check what an honest server would
    not do: then they have Ed25519 identities, and need quorum > 2n/3. neighbours, window: the sparse graph's, see
    `graph.sparse`; None is the complete graph. Raises InputError.

    A threshold of 1 is allowed against an honest-but-curious server, and protects nothing from one that claims that
    all others dropped out.
    """

    clients: int
    length: int
    bits: int
    threshold: int
    quorum: int = 0
    neighbours: int | None = None
    window: int = 0
    malicious: bool = False

    def __post_init__(self) -> None:
        n = self.clients
        check_number("clients", n, minimum=2, maximum=LARGEST_COHORT, integer=True)
        check_number("length", self.length, minimum=1, maximum=LONGEST, integer=True)
        check_number("bits", self.bits, minimum=1, maximum=masks.LARGEST_BITS, integer=True)
        if self.neighbours is not None:
            check_number("neighbours", self.neighbours, minimum=2, maximum=n, integer=True)
            if self.neighbours % 2:
                raise InputError(
                    f"neighbours is {self.neighbours}; it must be even, as many on either side of the ring"
                )
        check_number("threshold", self.threshold, minimum=1, maximum=self.neighbours or n, integer=True)
        if not self.quorum:
            object.__setattr__(self, "quorum", self.threshold)
        check_number("quorum", self.quorum, minimum=1 if self.neighbours else self.threshold, maximum=n, integer=True)
        check_number("window", self.window, minimum=0, maximum=(self.neighbours or 0) // 2, integer=True)
        if self.malicious:
            self._check_malicious()

    def _check_malicious(self) -> None:
        least = 2 * self.clients // 3 + 1
        if self.quorum < least or (self.neighbours is None and self.threshold < least):
            raise InputError(
                f"threshold is {self.threshold} and quorum {self.quorum} of {self.clients} clients; against a "
                f"malicious server take at least {least}: up to two thirds, it can have two sets of survivors signed"
            )
        if self.neighbours is not None and not self.window:
            raise InputError("window is 0; a sparse graph against a malicious server needs one, see graph.sparse")

    @classmethod
    def complete(
        cls, clients: int, length: int, bits: int, threshold: int | None = None, *, malicious: bool = False
    ) -> Parameters:
        """The complete graph of Bonawitz et al. 2017; the threshold is ⌊2n/3⌋ + 1 where none is given."""
        least = 2 * clients // 3 + 1
        return cls(
            clients=clients,
            length=length,
            bits=bits,
            threshold=least if threshold is None else threshold,
            malicious=malicious,
        )

    @classmethod
    def sparse(cls, design: Sparse, length: int, bits: int) -> Parameters:
        """The graph that `graph.sparse` designed, against the kind of server that it was designed for."""
        return cls(
            clients=design.clients,
            length=length,
            bits=bits,
            threshold=design.threshold,
            quorum=design.quorum,
            neighbours=design.neighbours,
            window=design.window,
            malicious=design.malicious,
        )

    @property
    def word_bytes(self) -> int:
        """Bytes of a word on the wire: as many as `bits` need, whole ones."""
        return (self.bits + 7) // 8

    @property
    def acknowledged(self) -> bool:
        """Whether clients also sign whose shares they hold: on a sparse graph, against a malicious server."""
        return self.malicious and self.neighbours is not None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of a round: all five against a malicious server, else without the check."""
        return tuple(stage for stage in Stage if self.malicious or stage is not Stage.CHECK)

    def encoded(self) -> bytes:
        """All of them, in a fixed layout of `LAYOUT_BYTES`."""
        return _LAYOUT.pack(
            self.clients,
            self.length,
            self.bits,
            self.threshold,
            self.quorum,
            self.neighbours or 0,
            self.window,
            self.malicious,
        )

    def weakened(self, encoded: bytes) -> bool:
        """Whether others, in that layout, ask for fewer shares or clients than these."""
        _, _, _, threshold, quorum, _, window, _ = _LAYOUT.unpack(encoded)
        return bool(threshold < self.threshold or quorum < self.quorum or window < self.window)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes for a `Context`."""
        return hashlib.sha256(LABEL + b" parameters" + self.encoded()).digest()

    def context(self, round: int, model: bytes) -> Context:
        """The context of a round with these parameters; `model` is the 32 bytes of `keys.model_hash`."""
        check_number("round", round, minimum=0, below=2**64, integer=True)
        if len(model) != 32:
            raise InputError(f"the model's hash has {len(model)} bytes; it must have 32")
        return Context(round=round, model=model, parameters=self.digest)


LAYOUT_BYTES = _LAYOUT.size
