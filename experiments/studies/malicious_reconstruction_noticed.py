"""What a client makes of the models that the study's attacks send, and of benign ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attacks.metrics import clopper_pearson
from attacks.reconstruction.detectability import detect
from attacks.reconstruction.fishing import Fishing
from attacks.reconstruction.imprint import Imprinted
from attacks.reconstruction.label_flip import LabelFlip
from experiments.studies.base import Setting, Values
from experiments.studies.malicious_reconstruction_scene import FISHING, FLIP, LARGEST, LAYERS, layer, mean_gradient
from experiments.studies.tampering import drawn, plain, row, to_all, updates_of
from fl_core.architectures import MLP
from fl_core.data import ImageSet
from fl_core.models import initial_parameters
from fl_core.optimizers import Tree
from fl_core.seeds import generator, seed

SCORES = ("d_snr", "distance", "deficient", "silent", "extreme")
BENIGN = {"benign, new": 0, "benign, 50 steps": 50, "benign, 1000 steps": 1000}
NOTICED = (*BENIGN, *LAYERS, FISHING, FLIP)
KERNELS = 4  # clients that LOKI sends kernels to


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client with `batch` pictures, of a federation whose model is a perceptron of `hidden` units trained at `lr`.

    Attacks put a layer of `units` into it, or traps into a perceptron of as many.
    """

    units: int
    hidden: int
    batch: int
    lr: float
    setting: Setting

    def looks_at(self, name: str, models: int) -> list[Values]:
        """The median scores of so many models of a kind, and how often one is faulted, and by what."""
        pool = self.setting.pool
        scores: dict[str, list[float]] = {}
        for trial in range(models):
            rows = drawn(pool, self.batch, self.setting.seed, trial)
            sent, code, reference = self._sent(name, trial)
            mark = detect(sent, code, reference, (pool.images[rows], pool.labels[rows]))
            over = {score: mark.worst(score) > getattr(mark.limits, score) for score in SCORES}
            found = {score: min(mark.worst(score), LARGEST) for score in SCORES}
            found |= {f"{score} over": float(is_over) for score, is_over in over.items()}
            found |= {"added": float(len(mark.added)), "noticed": float(mark.noticed)}
            found["parameters"] = float(any(over[score] for score in SCORES[1:]))
            for metric, value in found.items():
                scores.setdefault(metric, []).append(value)
        return [
            plain(float(np.median(values)), metric=metric)
            if metric in (*SCORES, "added")
            else row(clopper_pearson(int(sum(values)), models), metric=metric)
            for metric, values in scores.items()
        ]

    def _sent(self, name: str, trial: int) -> tuple[Tree, nn.Module, Tree]:
        """What the client is sent, its code, and the benign model that it is compared with: a new one of the old code.

        For a trained model that is the one of ten steps before, as the last round's.
        """
        pool, run = self.setting.pool, seed(self.setting.seed, "noticed", trial)
        shape, classes = pool.shape, len(pool.classes)
        if name in LAYERS:
            public = self.setting.test.images
            mine = layer(name, pool, public, self.units, self.hidden, run, clients=KERNELS, crowd=self.batch)
            sent = {key: value[0] for key, value in mine.sent_to(slice(0, 1), KERNELS).items()}
            inner, own = (mine.model.inner, "inner.") if isinstance(mine.model, Imprinted) else (mine.model, "")
            return sent, mine.model, {own + key: it for key, it in self._new(inner, run, "reference").items()}
        model = MLP(shape, classes, hidden=(self.hidden,))
        start, new = self._new(model, run, "model"), self._new(model, run, "reference")
        if name == FISHING:
            return self._fished(model, start, trial), model, new
        if name == FLIP:
            return LabelFlip(first=trial % classes, second=(trial + 1) % classes).flipped(start), model, new
        if not BENIGN[name]:
            return start, model, new
        draw = generator(run, "batches")
        batches = [torch.randint(len(pool), (32,), generator=draw) for _ in range(BENIGN[name])]
        before = self._trained(model, start, batches[:-10], pool)
        return self._trained(model, before, batches[-10:], pool), model, before

    def _fished(self, model: nn.Module, start: Tree, trial: int) -> Tree:
        """What the client is sent in the last round, in which one of its own examples is left."""
        pool, attack = self.setting.pool, Fishing(target=trial % len(self.setting.pool.classes))
        rows, sent = drawn(pool, self.batch, self.setting.seed, trial), []

        def play(model_sent: Tree) -> Tree:
            sent.append(model_sent)
            return mean_gradient(model, model_sent, pool, rows[None])

        attack.run(play, start, self.batch, attack.direction(start, trial))
        return sent[-1]

    def _new(self, model: nn.Module, run: int, purpose: str) -> Tree:
        return initial_parameters(model, seed(run, purpose))

    def _trained(self, model: nn.Module, start: Tree, batches: list[Tensor], data: ImageSet) -> Tree:
        moved = updates_of(model, to_all(start, 1), data, [batches], self.lr)
        return {name: value + moved[name][0] for name, value in start.items()}
