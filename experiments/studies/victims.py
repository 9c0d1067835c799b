"""One round in which victims train on pictures that an attacker is after, played by the engine under any defence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attacks.reconstruction.base import Knowledge, Updates, sums_of, updates_of
from defenses.base import Defense
from defenses.statements import NoGuarantee, PrivacyStatement
from experiments.studies.clients import flat
from fl_core.algorithms.fedavg import FedAvg
from fl_core.data import ImageSet
from fl_core.federation import Federation, initial_state, run
from fl_core.models import statistics_of
from fl_core.optimizers import Tree
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.views import Recorder, SecureServer, Server


@dataclass(frozen=True, kw_only=True)
class Victims:
    """Cohorts that each get the model `start` [1, ...] and train on pictures of their own for one round.

    `rows` [victims, clients, examples] of the `pool` say whose pictures they are. Each client takes `steps` local steps
    an epoch, each on a part of its pictures in an order that is shuffled every epoch, for `epochs`, at `lr`.
    """

    model: nn.Module
    start: Tree
    pool: ImageSet
    rows: Tensor
    lr: float
    steps: int = 1
    epochs: int = 1
    defense: Defense = field(default_factory=Defense)
    run: int = 0

    @property
    def federation(self) -> Federation:
        """Each cohort is a replica."""
        victims, clients, examples = self.rows.shape
        sampler = Shuffled(batch_size=examples // self.steps, local_epochs=self.epochs)
        return Federation(
            model=self.model,
            data=self.pool.select(self.rows.flatten()),
            owners=torch.arange(clients).repeat_interleave(examples).repeat(victims),
            members=torch.eye(victims, dtype=torch.bool).repeat_interleave(clients * examples, 1),
            sizes=torch.full((clients,), examples),
            algorithm=FedAvg(sampler=sampler, lr=self.lr),
            defense=self.defense.for_model(self.model),
            rounds=1,
            run=self.run,
            replica_ids=range(victims),
            backend="loop" if statistics_of(self.model) else "vmap",
        )

    def prepared(self) -> Victims:
        """With the noise calibrated, where the defence has any."""
        return dataclasses.replace(self, defense=self.defense.for_model(self.model).prepare(self.federation.plan))

    def updates(self, attack: str) -> Updates:
        """What an `attack` sees: the update of each cohort's one client, or each cohort's mean update under masks."""
        federation = self.federation
        recorder = Recorder(SecureServer if self.rows.shape[1] > 1 else Server)
        state = initial_state(federation)
        start = {name: self.start[name].expand_as(value) for name, value in state.model.items()}
        run(federation, recorder, state=dataclasses.replace(state, model=start))
        seen = recorder.observation()
        found = sums_of(seen, 0, attack) if self.rows.shape[1] > 1 else updates_of(seen, 0, attack)
        sent = {name: self.start[name].expand_as(value) for name, value in found.sent.items()}
        return dataclasses.replace(found, sent=sent)

    def knowledge(self, *, labels: bool = False, public: ImageSet | None = None, adaptive: bool = False) -> Knowledge:
        """What an attacker is told of them; `adaptive`, also the defence's clip and noise, in the update's unit."""
        _, clients, examples = self.rows.shape
        clip, noise = self.strength() if adaptive else (None, 0.0)
        return Knowledge(
            model=self.model,
            shape=self.pool.shape,
            classes=len(self.pool.classes),
            examples=clients * examples,
            labels=self.labels if labels else None,
            lr=self.lr,
            steps=self.steps,
            epochs=self.epochs,
            clip_norm=clip,
            noise=noise,
            public=None if public is None else public.images,
            public_labels=None if public is None else public.labels,
        )

    def strength(self) -> tuple[float | None, float]:
        """The norm that the defence clips to and the deviation of its noise, both in the update's unit.

        None and 0 where it does neither. Noise in a mean over a batch or a cohort is that of the mean.
        """
        parts = getattr(self.defense, "parts", (self.defense,))  # of a composition
        clip = next((part.clip_norm for part in parts if hasattr(part, "clip_norm")), None)
        sigma = self.defense.noise_multiplier or 0.0
        if clip is None:
            return None, 0.0
        unit = self.lr / self.rows.shape[2] if self.defense.reduces_examples else 1 / self.rows.shape[1]
        alone = self.rows.shape[1] == 1 and (not self.defense.reduces_examples or self.rows.shape[2] == 1)
        factor = self.lr if self.defense.reduces_examples else 1.0
        return (clip * factor if alone else None), clip * sigma * unit

    def promised(self, delta_view: str) -> PrivacyStatement | NoGuarantee:
        """What the defence guarantees its own unit against that view."""
        return self.defense.guarantee(delta_view, self.defense.protects, self.federation.plan)

    @property
    def images(self) -> Tensor:
        """The truth, [victims, pictures, channels, height, width], for the scorer alone."""
        return self.pool.images[self.rows.flatten(1)]

    @property
    def labels(self) -> Tensor:
        """[victims, pictures]."""
        return self.pool.labels[self.rows.flatten(1)]


def drawn(pool: ImageSet, victims: int, clients: int, examples: int, run: int) -> Tensor:
    """Different rows of `pool` for each victim, [victims, clients, examples], drawn by the seed."""
    order = torch.randperm(len(pool), generator=generator(run, "victims", clients, examples))
    return order[: victims * clients * examples].view(victims, clients, examples)


def median_length(victims: Victims, public: ImageSet, most: int = 200) -> float:
    """Of updates on single public pictures: what a client would clip to."""
    rows = torch.arange(min(len(public), most)).view(-1, 1, 1)
    alone = dataclasses.replace(victims, pool=public, rows=rows, defense=Defense(), steps=1, epochs=1)
    return float(flat(alone.updates("the median length").moved).norm(dim=1).median())
