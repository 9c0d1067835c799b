"""What a view shows of each candidate, round by round: one array [replicas, rounds, examples] a signal.

A server's signals are of the client that would hold the example, where the attacker knows it, and otherwise of the one
that looks most like it. NaN stands where there is nothing to see: that client did not take part.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from attacks.base import Floats, Ints
from attacks.membership.observed import ParticipantSignals, SecureServerSignals, ServerSignals, Signals
from attacks.membership.signals import loss
from fl_core.errors import InputError

Array = NDArray[np.float64]

UNKNOWN = -1
"""The owner of an example that no client would hold, or that the attacker does not know."""


def of_owner(attack: str, values: Floats, owners: Ints | None) -> Array:
    """Of values [..., clients, examples], those of each example's own client [..., examples].

    The largest of all clients for an example whose owner is UNKNOWN, or all of them where `owners` is None; NaN where
    those are all NaN. Raises InputError for owners that do not fit.
    """
    clients, examples = values.shape[-2:]
    owners = np.full(examples, UNKNOWN) if owners is None else np.asarray(owners)
    if owners.shape != (examples,) or not ((owners >= UNKNOWN) & (owners < clients)).all():
        raise InputError(
            f"{attack} was told owners {owners.shape} from {owners.min(initial=0)} to {owners.max(initial=0)}; "
            f"give one for each of {examples} examples, from 0 to {clients - 1} or {UNKNOWN} where it is not known"
        )
    index = np.maximum(owners, 0).reshape([1] * (values.ndim - 1) + [examples])
    own: Array = np.take_along_axis(values, index, axis=-2)[..., 0, :].astype(np.float64)
    lost = owners == UNKNOWN
    if lost.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: nobody took part
            own[..., lost] = np.nanmax(values[..., lost], axis=-2)
    return own


def mean_over_rounds(values: Floats, nothing: float = 0.0) -> Array:
    """Values [..., rounds, examples] averaged over the rounds that show something; `nothing` where none does."""
    seen = ~np.isnan(values)
    count = seen.sum(axis=-2)
    total = np.where(seen, values, 0.0).sum(axis=-2, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), nothing)


def last_round(values: Floats, nothing: float = 0.0) -> Array:
    """Values [..., rounds, examples] of the last round that shows something; `nothing` where none does."""
    seen = ~np.isnan(values)
    last = seen.shape[-2] - 1 - seen[..., ::-1, :].argmax(axis=-2)
    found: Array = np.take_along_axis(values, last[..., None, :], axis=-2)[..., 0, :].astype(np.float64)
    return np.where(seen.any(axis=-2), found, nothing)


def loss_series(signals: ParticipantSignals) -> Array:
    """The negated loss under each recorded model and, last, the released one [replicas, rounds + 1, examples]."""
    return np.concatenate([-loss(signals.round_confidence), -loss(signals.confidence[:, :1])], axis=1)


def confidence_series(signals: ParticipantSignals) -> Array:
    """The scaled confidence under each recorded model and, last, the released one [replicas, rounds + 1, examples]."""
    return np.concatenate([signals.round_confidence, signals.confidence[:, :1]], axis=1, dtype=np.float64)


def narrowest(name: str) -> type[Signals]:
    """The signals of the narrowest view that shows the series `name`."""
    for kind, names in SERIES.items():
        if name in names:
            return kind
    raise InputError(
        f"there is no signal {name!r}; allowed: {', '.join(each for names in SERIES.values() for each in names)}"
    )


SERIES: dict[type[Signals], tuple[str, ...]] = {
    Signals: ("confidence",),
    ParticipantSignals: (
        "round_confidence", "gradient_norm", "layer_norm", "step_product", "step_cosine", "layer_product",
    ),
    SecureServerSignals: ("sum_product", "sum_cosine", "sum_layer_product"),
    ServerSignals: (
        "client_product", "client_cosine", "client_layer_product", "client_confidence",
        "client_cosine_apart", "client_confidence_apart",
    ),
}  # fmt: skip
"""The names of the series, by the narrowest signals that show them."""


def series(attack: str, name: str, signals: Signals, owners: Ints | None = None) -> Array:
    """The series `name` [replicas, rounds, examples], of the queries in place of rounds for `confidence`.

    Lengths are logarithms, so that they are more like Gaussians. The two that end in `apart` say by how many standard
    deviations a client is above the others of its round. Raises InputError for an unknown name.
    """
    kind = narrowest(name)
    if name == "confidence":
        return signals.confidence
    assert isinstance(signals, kind)
    assert isinstance(signals, ParticipantSignals)
    if name in ("gradient_norm", "layer_norm"):
        lengths: Array = np.log(np.maximum(getattr(signals, name).astype(np.float64), SMALLEST_LENGTH))
        return lengths
    if kind is ServerSignals:
        return of_owner(attack, getattr(signals, name), owners)
    values: Array = np.asarray(getattr(signals, name), dtype=np.float64)
    return values


def derive(signals: Signals) -> None:
    """Compute now, for all replicas at once, what attacks derive from signals; `select` takes it along."""
    for names in (names for kind, names in SERIES.items() if isinstance(signals, kind)):
        for name in names:
            getattr(signals, name)


SMALLEST_LENGTH = 1e-30
