"""From an observation to signals: the models, sums and updates that a view shows, read for each candidate.

An example's gradient is taken once at each model that was sent, and multiplied with all that was seen of that round in
one product of matrices: the step to the next model, the sum, every client's update. No more gradients are held at once
than `GRADIENT_BYTES` have room for. Models are asked in evaluation mode.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from attacks.membership.observed import KINDS, Signals
from attacks.membership.signals import scaled_confidence
from fl_core.augmentation import looked_at
from fl_core.errors import InputError, check_number
from fl_core.models import ClassificationLosses, statistics_of
from fl_core.optimizers import Tree
from fl_core.partition import NOBODY
from fl_core.per_example import example_gradients
from fl_core.rules import Outer
from fl_core.views import MaliciousServer, Observation, Participant, SecureServer, Server

GRADIENT_BYTES = 2**29
"""What the gradients of one chunk of examples may take."""

MOST_EXAMPLES = 512
"""The most examples that go through a model at once, so that its own activations stay small beside that."""

Array = NDArray[Any]
Kind = TypeVar("Kind", bound=Signals)
"""The signals of one view."""


def read_signals(
    observation: Observation,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    queries: int = 1,
    public: tuple[Tensor, Tensor] | None = None,
    rounds: Sequence[int] | None = None,
    clients: int | None = None,
    device: torch.device | str | None = None,
) -> Signals:
    """The signals of the candidates in `images` [examples, channels, height, width] under what the view shows.

    The class is that of the observation's view (`KINDS`); its arrays lead with the observation's replicas. `queries`
    are the copies of each picture, see `queries_of`. `public` are the attacker's own pictures and labels, of which only
    the released model is asked. `rounds` are those of the recorded rounds to read (None: all), in their order; a step
    goes from a recorded model to the next recorded one, the last to the released model. `clients` is how many the
    federation has (None: as many as were seen). Everything is computed on `device` (None: where the images are).

    A round without a sum has one of zeros. A variable that the clients keep to themselves has its first value, which is
    the released model's. Raises InputError for rounds or models that were not recorded.
    """
    check_number("queries", queries, minimum=1, integer=True)
    device = images.device if device is None else torch.device(device)
    model = model.to(device)
    reader = _Reader(model, images, labels, device)
    final = [_row(observation.model, replica, device) for replica in range(_replicas(observation))]
    found: dict[str, Array] = {
        "labels": labels.cpu().numpy(),
        "logits": np.stack([np.stack([reader.logits(own, look) for look in looks(queries)]) for own in final]),
    }
    if public is not None:
        theirs = _Reader(model, *public, device)
        found["public_logits"] = np.stack([theirs.logits(own) for own in final])
        found["public_labels"] = public[1].cpu().numpy()
    if isinstance(observation, Participant):
        read = sorted(observation.models) if rounds is None else list(rounds)
        clients = _most_clients(observation) if clients is None else clients
        _check_recorded(observation, read, clients)
        each = [_Replica(observation, row, reader, read).signals(clients) for row in range(len(final))]
        found |= {name: np.stack([own[name] for own in each]) for name in each[0]} | {"rounds": np.array(read)}
    kind = KINDS[observation.view]
    return kind(**found)


def narrow(signals: Signals, kind: type[Kind]) -> Kind:
    """What a narrower view shows of the same runs: `signals` as `kind`, one of its own parents.

    What was derived comes along. Raises InputError for a kind that shows what these signals do not.
    """
    if not isinstance(signals, kind):
        raise InputError(f"the view {signals.view.view} does not show all that {kind.view.view} does; record that one")
    kept = kind(**{field.name: getattr(signals, field.name) for field in fields(kind)})
    derived = {name for parent in kind.__mro__ for name, it in vars(parent).items() if isinstance(it, cached_property)}
    vars(kept).update({name: value for name, value in vars(signals).items() if name in derived})
    return kept


# Queries


def looks(count: int) -> Iterator[tuple[int, int, int]]:
    """The first `count` ways to look at a picture: (mirrored, pixels moved down, pixels moved right).

    First as it is, then mirrored; then both of the 8 shifts by one pixel, of the 16 that go two pixels in some
    direction, and so on. So 2 are the flips, and 18 all flips and shifts by up to one pixel, as many as Carlini et al.
    (2022, section VI-C) make of a picture at most.
    """
    moves = (
        (down, right)
        for distance in itertools.count()
        for down in range(-distance, distance + 1)
        for right in range(-distance, distance + 1)
        if max(abs(down), abs(right)) == distance
    )
    return itertools.islice(((mirrored, *move) for move in moves for mirrored in (0, 1)), count)


def queries_of(images: Tensor, count: int) -> Tensor:
    """The queries [count, examples, channels, height, width] for images [examples, ...]; query 0 is the image itself.

    They are the same for every replica, and drawn by nobody: see `looks`. What enters at a border is the picture's own
    reflection, as in training (`fl_core.augmentation`). Raises InputError where a picture is too small to be moved so
    far.
    """
    return torch.stack([_looked_at(images, look) for look in looks(count)])


def _looked_at(images: Tensor, look: tuple[int, int, int]) -> Tensor:
    if not any(look):
        return images
    if max(map(abs, look[1:])) >= min(images.shape[2:]):
        size = f"{images.shape[2]}x{images.shape[3]}"
        raise InputError(f"pictures of {size} cannot be moved by {look[1:]} for a query; lower signals.queries")
    rows = torch.arange(len(images), device=images.device)
    return looked_at(images, rows, torch.tensor(look, device=images.device).expand(len(images), 3))


# Reading


def last_layer(model: nn.Module) -> list[str]:
    """The names of the last linear layer's parameters; of the last layer with any, where none is linear."""
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    linear = [each for each in layers if isinstance(each[1], nn.Linear)]
    name, layer = (linear or layers)[-1]
    return [f"{name}.{own}" if name else own for own, _ in layer.named_parameters(recurse=False)]


class _Reader:
    """Asks one model after another about the same examples."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> None:
        if images.dim() != 4 or labels.shape != images.shape[:1] or not len(labels):
            raise InputError(
                f"images {tuple(images.shape)} and labels {tuple(labels.shape)} do not fit; give "
                "[examples, channels, height, width] and [examples], at least one"
            )
        self.model, self.device, self.images = model, device, images
        self.labels = labels.to(device=device, dtype=torch.long)
        self.truth = labels.cpu().numpy()
        last = last_layer(model)
        self.sizes = {name: value.numel() for name, value in model.named_parameters()}
        self.names = [name for name in self.sizes if name not in last] + [name for name in self.sizes if name in last]
        self.layer = slice(sum(self.sizes[name] for name in self.names if name not in last), None)
        self.losses = ClassificationLosses(model)
        self.statistics = statistics_of(model)

    @torch.no_grad()
    def logits(self, variables: Tree, look: tuple[int, int, int] = (0, 0, 0)) -> Array:
        """[examples, classes] of one replica's variables."""
        self.model.eval()
        parts = [_looked_at(part.to(self.device), look) for part in self.images.split(MOST_EXAMPLES)]
        return _numbers(torch.cat([functional_call(self.model, variables, (part,)) for part in parts]))

    def confidence(self, variables: Tree) -> Array:
        """Scaled confidence [examples], in nats."""
        return scaled_confidence(self.logits(variables), self.truth)

    def flat(self, tree: Tree, like: Tree) -> Tensor:
        """A tree's parameters in one row [parameters], the last layer's last; what `like` has and it lacks is zero."""
        return torch.cat([tree.get(name, torch.zeros_like(like[name])).reshape(-1) for name in self.names])

    def gradients(self, variables: Tree) -> Iterator[Tensor]:
        """Each example's gradient of the loss, a chunk of examples [chunk, parameters] at a time."""
        self.model.eval()
        fixed = {name: value for name, value in variables.items() if name in self.statistics}
        moving = {name: variables[name] for name in self.names}
        wide = sum(self.sizes.values()) * next(iter(moving.values())).element_size()
        # Twice: layer by layer, and laid out in rows.
        chunk = min(max(GRADIENT_BYTES // (2 * wide), 1), MOST_EXAMPLES)

        def losses(mine: Tree, images: Tensor, labels: Tensor) -> Tensor:
            return self.losses(mine | fixed, images, labels)

        for images, labels in zip(self.images.split(chunk), self.labels.split(chunk), strict=True):
            found = example_gradients(losses, moving, (images.to(self.device), labels))
            yield torch.cat([_rows(found[name], len(labels)) for name in self.names], 1)

    def products(self, variables: Tree, directions: Tensor) -> Tensor:
        """What the gradients of the loss at `variables` are to `directions` [directions, parameters].

        [2 + 2 directions, examples]: lengths of the gradient and of its part in the last layer; then the inner products
        of minus the gradient, and of minus that part.
        """
        parts = []
        for gradient in self.gradients(variables):
            layer = gradient[:, self.layer]
            lengths = torch.stack([gradient.norm(dim=1), layer.norm(dim=1)])
            parts.append(torch.cat([lengths, -directions @ gradient.T, -directions[:, self.layer] @ layer.T]))
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class _Seen:
    """What was seen of a round, and which sent model it is held against.

    `what` is "step", "sum" or "client", `row` the round's place among those read; a client's update was in `seat`.
    """

    what: str
    row: int
    version: int
    client: int = 0
    seat: int = 0

    @property
    def at(self) -> tuple[int, ...]:
        """Its place in the arrays."""
        return (self.row, self.client) if self.what == "client" else (self.row,)


@dataclass(frozen=True)
class _Replica:
    """One replica of an observation of training."""

    observation: Participant
    replica: int
    reader: _Reader
    read: Sequence[int]

    def row_of(self, tree: Tree) -> Tree:
        return _row(tree, self.replica, self.reader.device)

    @cached_property
    def final(self) -> Tree:
        return self.row_of(self.observation.model)

    def sent(self, version: int) -> Tree:
        return self.final | self.row_of(self.observation.models[version])

    def after(self, round: int) -> Tree:
        """The next model that was recorded."""
        later = [other for other in self.observation.models if other > round]
        return self.sent(min(later)) if later else self.final

    def seen(self) -> list[_Seen]:
        found = [_Seen("step", row, round) for row, round in enumerate(self.read)]
        if isinstance(self.observation, SecureServer):
            found += [_Seen("sum", row, round) for row, round in enumerate(self.read)]
        if isinstance(self.observation, Server):
            for row, round in enumerate(self.read):
                clients = self.observation.cohorts[round][self.replica].tolist()
                versions = self.observation.versions[round][self.replica].tolist()
                found += [
                    _Seen("client", row, version, client, seat)
                    for seat, (client, version) in enumerate(zip(clients, versions, strict=True))
                    if client != NOBODY
                ]
        return found

    def tree(self, seen: _Seen) -> Tree:
        """What was seen, by variable."""
        round = self.read[seen.row]
        if seen.what == "step":
            before, after = self.sent(round), self.after(round)
            return {name: after[name] - value for name, value in before.items() if name in after}
        if seen.what == "sum":
            assert isinstance(self.observation, SecureServer)
            return self.row_of(self.observation.sums[round])
        assert isinstance(self.observation, Server)
        return self.row_of({name: value[:, seen.seat] for name, value in self.observation.updates[round].items()})

    def signals(self, clients: int) -> dict[str, Array]:
        """Those of training, by name and without the replicas' axis."""
        seen, rounds, examples = self.seen(), len(self.read), len(self.reader.truth)
        kind = _numbers(self.reader.flat(self.final, self.final)).dtype
        found = {
            name: np.zeros((rounds, examples), kind) for name in ("round_confidence", "gradient_norm", "layer_norm")
        }
        for what in dict.fromkeys(each.what for each in seen):
            shape = (rounds, clients) if what == "client" else (rounds,)
            found |= {f"{what}_norm": np.full(shape, np.nan, kind)}
            for name in _NAMES[what]:
                found[name] = np.full((*shape, examples), np.nan, kind)
        for version in sorted({each.version for each in seen}):
            self._at(version, [each for each in seen if each.version == version], found)
        if isinstance(self.observation, MaliciousServer):
            found["returned_confidence"], found["returned_norm"] = map(
                np.stack, zip(*map(self.returned, self.read), strict=True)
            )
        if isinstance(self.observation, Server):
            found["took_part"] = ~np.isnan(found["client_norm"])
        return found

    def returned(self, round: int) -> tuple[Array, Array]:
        """Confidence and length of the gradient under what was sent plus the sum, each [examples]."""
        assert isinstance(self.observation, SecureServer)
        total = self.row_of(self.observation.sums[round])
        model = {name: value + total[name] if name in total else value for name, value in self.sent(round).items()}
        lengths = [_numbers(gradient.norm(dim=1)) for gradient in self.reader.gradients(model)]
        return self.reader.confidence(model), np.concatenate(lengths)

    def _at(self, version: int, here: list[_Seen], found: dict[str, Array]) -> None:
        """Fill in what is held against one sent model."""
        sent = self.sent(version)
        trees = [self.tree(each) for each in here]
        directions = torch.stack([self.reader.flat(tree, self.final) for tree in trees])
        lengths, products = _numbers(directions.norm(dim=1)), _numbers(self.reader.products(sent, directions))
        for row in (row for row, round in enumerate(self.read) if round == version):
            found["round_confidence"][row] = self.reader.confidence(sent)
            found["gradient_norm"][row], found["layer_norm"][row] = products[:2]
        for place, (each, tree) in enumerate(zip(here, trees, strict=True)):
            whole, layer, *of_client = _NAMES[each.what]
            found[f"{each.what}_norm"][each.at] = lengths[place]
            found[whole][each.at], found[layer][each.at] = products[2 + place], products[2 + len(here) + place]
            if of_client:
                own = sent | {name: sent[name] + value for name, value in tree.items() if name in sent}
                found["client_confidence"][each.at] = self.reader.confidence(own)
                found["client_gradient_norm"][each.at] = products[0]


_NAMES = {
    "step": ("step_product", "layer_product"),
    "sum": ("sum_product", "sum_layer_product"),
    "client": ("client_product", "client_layer_product", "client_confidence", "client_gradient_norm"),
}
"""The arrays of what was seen: its inner products, those in the last layer, and what else there is of a client."""


def _check_recorded(observation: Participant, read: Sequence[int], clients: int) -> None:
    missing = [round for round in read if round not in observation.models]
    if missing or not read:
        raise InputError(f"rounds {missing} were not recorded; recorded: {sorted(observation.models) or 'none'}")
    if isinstance(observation, MaliciousServer):
        for round in read:
            sent, models = observation.sent[round], observation.models[round]
            if any(not torch.equal(value, models[name].unsqueeze(1).expand_as(value)) for name, value in sent.items()):
                raise InputError(
                    f"clients of round {round} were sent different models; their signals are not read here"
                )
    if not isinstance(observation, Server):
        return
    for round in read:
        cohort, versions = observation.cohorts[round], observation.versions[round]
        if cohort.numel() and int(cohort.max()) >= clients:
            raise InputError(f"clients is {clients}, but client {int(cohort.max())} was seen; give the true number")
        older = set(versions[cohort != NOBODY].tolist()) - observation.models.keys()
        if older:
            raise InputError(
                f"clients of round {round} trained on the models of rounds {sorted(older)}, which were not recorded; "
                "record them too"
            )


def _most_clients(observation: Participant) -> int:
    """One more than the largest number seen."""
    cohorts = observation.cohorts.values() if isinstance(observation, Server) else []
    return max((int(cohort.max()) + 1 for cohort in cohorts if cohort.numel()), default=0)


def _replicas(observation: Observation) -> int:
    return len(next(iter(observation.model.values())))


def _row(tree: Tree, replica: int, device: torch.device) -> Tree:
    return {name: value[replica].to(device) for name, value in tree.items()}


def _rows(value: Tensor | Outer, count: int) -> Tensor:
    """Single gradients [count, ...] as rows."""
    return (value.whole() if isinstance(value, Outer) else value).reshape(count, -1)


def _numbers(value: Tensor) -> Array:
    found: Array = value.detach().cpu().numpy()
    return found
