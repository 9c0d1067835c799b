"""FedMIA's Table 1: what a server learns of one client's examples from its updates, beside the other clients'.

The authors' code measures every loss under the client's own model after its local training, and takes another client's
training pictures for the non-members: whose an example is, not whether anybody trained on it. Both are measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.base import MembershipKnowledge
from attacks.membership.observed import ServerSignals, Signals, require_signals
from attacks.membership.series import last_round, mean_over_rounds, of_owner
from attacks.membership.signals import loss
from attacks.metrics import bootstrap_over_replicas
from experiments import store
from experiments.cell import Cell
from experiments.replicas import signals_of
from experiments.reproduce.base import CIFAR10, JPEG, Budget, Published, Reproduction
from experiments.reproduce.membership import READS, cell_of, leaks
from experiments.studies.base import Setting, Values
from fl_core.architectures import Shape, centred

Array = NDArray[np.float64]

COSINE = "attacks.membership.cosine.UpdateCosine"
OWN_LOSS = f"{__name__}.ClientLoss"
ATTACKS: dict[str, Values] = {
    "loss": {"_target_": OWN_LOSS, "rounds": "last"},
    "gradient cosine": {"_target_": COSINE, "rounds": "last"},
    "loss series": {"_target_": OWN_LOSS, "rounds": "all"},
    "average cosine": {"_target_": COSINE, "rounds": "all"},
    "FedMIA-I": {"_target_": "attacks.membership.fedmia.FedMIA", "measurement": "loss"},
    "FedMIA-II": {"_target_": "attacks.membership.fedmia.FedMIA", "measurement": "cosine"},
}
TABLE = {
    "loss": (0.18, 0.58),
    "gradient cosine": (7.26, 0.78),
    "loss series": (25.3, 0.82),
    "average cosine": (54.7, 0.85),
    "FedMIA-I": (53.8, 0.90),
    "FedMIA-II": (67.0, 0.89),
}
"""TPR at FPR 0.1% in percent, and AUC."""

SERVER = (
    "clients=10", "canaries=0", "signals.view=server", "signals.public=0", "sampler=shuffled", "attack.victims=0",
    "attack.audit_with=[]", "attack.fpr=0.001", "sampler.local_epochs=1", "schedule@client_schedule=cosine",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClientLoss:
    """The negated loss under the own model of the client that would hold the example.

    `rounds` is `all` for the average over the recorded rounds, or `last`.
    """

    rounds: Literal["all", "last"]
    needs: ClassVar[type[Signals]] = ServerSignals

    @property
    def name(self) -> str:
        """What tables call it: over all rounds it is a series."""
        return "client's loss series" if self.rounds == "all" else "client's loss"

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Scores [examples], in nats. Raises InputError for a view that does not show each update."""
        require_signals(self.name, signals, self.needs)
        assert isinstance(signals, ServerSignals)
        each = -loss(signals.client_confidence[0]).swapaxes(0, 1)  # [clients, rounds, examples]
        scores = mean_over_rounds(each) if self.rounds == "all" else last_round(each)
        return of_owner(self.name, scores, knowledge.owners)


class AlexNet(nn.Module):
    """AlexNet for 32x32 pixels: five convolutions, the largest value of each channel, and one linear layer."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(shape[0], 64, 11, stride=4, padding=5),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            ]
        )
        self.head = nn.Linear(256, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        hidden = centred(pixels)
        for number, convolution in enumerate(self.convolutions):
            hidden = F.relu(convolution(hidden))
            if number < 2:
                hidden = F.max_pool2d(hidden, 2)
        logits: Tensor = self.head(hidden.flatten(2).amax(2))
        return logits


@dataclass(frozen=True, kw_only=True)
class FedMIATable(Reproduction):
    """The attacks of FedMIA's Table 1, on the server that sees each client's updates."""

    reads: ClassVar[tuple[str, ...]] = READS
    title: ClassVar[str] = "FedMIA: Table 1"
    source: ClassVar[str] = (
        'Zhu et al. 2025, "FedMIA: An Effective Membership Inference Attack Exploiting the All for One Principle in '
        'Federated Learning" (CVPR), Table 1, CIFAR-100 with AlexNet, IID'
    )
    protocol: ClassVar[str] = (
        "10 clients with 5,000 pictures each, all in each of 300 rounds of one epoch, SGD from 0.1 on (in the authors' "
        "code with a momentum of 0.9, anew each round, and a weight decay of 5e-4) in batches of 100; the server sees "
        "every update. As in the authors' code, losses are under a client's own model, and the "
        "non-members are another client's pictures; rows that say so have pictures that nobody trained on instead."
    )
    published: ClassVar[tuple[Published, ...]] = tuple(
        published
        for attack, (rate, area) in TABLE.items()
        for published in (
            Published(what=f"{attack}: TPR at FPR 0.1%", value=rate, unit="%", digits=2),
            Published(what=f"{attack}: AUC", value=area, tolerance=0.005, digits=2),
        )
    )
    budgets: ClassVar[Mapping[str, Budget]] = {
        "smoke": Budget(
            overrides=(
                *SERVER, "data=digits", "data.limit=600", "rounds=12", "replicas=4", "shard=2", "backend=vmap",
                "sampler.batch_size=8", "attack.resamples=100",
            ),
            differs="scikit-learn's digits, 30 a client, 12 rounds",
        ),
        # 30 rounds of seed 0 hardly overfitted (a loss threshold's AUC was .61); so many more, and another seed.
        "cpu": Budget(
            overrides=(
                *SERVER, *CIFAR10, "data.limit=2000", "data.test_limit=1000", "model.width=16", "seed=1", "rounds=100",
                "replicas=4", "shard=2", "backend=loop", "sampler.batch_size=10", "algorithm.lr=0.1",
                f"signals.rounds=[{','.join(str(round) for round in range(9, 100, 10))}]",
            ),
            differs=(
                f"10 classes ({JPEG}) in place of 100, 100 pictures a client in place of 5,000, a CNN of two "
                "convolutions, no momentum or weight decay, 100 rounds (30, tried first on another seed, hardly "
                "overfitted)"
            ),
        ),
        "full": Budget(
            overrides=(
                *SERVER, "data=cifar100_parquet", "data.path={data}/cifar100-train.parquet",
                "data.test_path={data}/cifar100-test.parquet", "data.limit=null", "data.test_limit=null",
                "membership=0.9", "model=custom", f"model.factory={__name__}:AlexNet", "rounds=300", "replicas=4",
                "shard=1", "sampler.batch_size=100", "algorithm.lr=0.1",
                "algorithm.momentum=0.9", "algorithm.weight_decay=5e-4",
                f"signals.rounds=[{','.join(str(round) for round in range(9, 300, 10))}]",
            ),
            differs="a client trains on 4,500 of its 5,000 pictures, since some must be nobody's",
        ),
    }  # fmt: skip

    def points(self) -> list[Values]:
        return [{"part": "IID"}]

    def cell(self, point: Values, setting: Setting) -> Cell:
        """The sweep's cell that trains the replicas and runs all attacks."""
        return cell_of(setting, {identifier(attack): one for attack, one in ATTACKS.items()})

    def measure(self, point: Values, setting: Setting) -> Values:
        cell = self.cell(point, setting)
        found = leaks(cell)
        rows = []
        for attack in ATTACKS:
            rows += whose(cell, attack)
        for attack in ATTACKS:
            name = identifier(attack)
            nobody = f"{attack}, nobody's pictures"
            rows.append(found.row(f"{nobody}: TPR at FPR 0.1%", name, "0.001", percent=True))
            rows.append(found.row(f"{nobody}: AUC", name, "auc"))
        return {"rows": [*rows, found.accuracy()]}


def identifier(attack: str) -> str:
    """An attack's name in the cell."""
    return attack.lower().replace(" ", "_").replace("-", "_")


def whose(cell: Cell, attack: str) -> list[Values]:
    """The rows of an attack that tells a client's training pictures from those of the client after it.

    The scores are those that the attack gives to each picture for its own client, and for the client before that.
    """
    signals = signals_of(store.RUNS / cell.targets.hash)
    members, owners, clients = cell.targets.members.numpy(), cell.targets.owners.numpy(), cell.config["clients"]
    method, settings = cell.membership_attacks[identifier(attack)], cell.config["attack"]
    scores = [
        np.concatenate(
            [
                method.run(signals.select([target]), MembershipKnowledge(owners=one))
                for one in (owners, (owners - 1) % clients)
            ]
        )
        for target in range(len(members))
    ]
    own = np.broadcast_to(np.arange(2 * len(owners)) < len(owners), (len(members), 2 * len(owners)))
    found = bootstrap_over_replicas(
        np.stack(scores), own, np.concatenate([members, members], 1), fpr=settings["fpr"],
        resamples=settings["resamples"],
    )  # fmt: skip
    samples = f"{len(members)} replicas, {found.members} pictures of the client, {found.non_members} of another"
    return [
        {"metric": f"{attack}: {metric}", "samples": samples, "note": ""}
        | {end: scale * getattr(interval, end) for end in ("value", "low", "high")}
        for metric, interval, scale in (("TPR at FPR 0.1%", found.tpr, 100), ("AUC", found.auc, 1))
    ]
