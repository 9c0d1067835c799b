"""How much of the accountant's ε an audit can show, by kind of canary and by auditor.

Every run plants some canaries, each by its own fair coin: examples of one client under DP-SGD, whose updates the server
sees, or whole clients under DP-FedAvg, whose global models everybody sees. The attacker is the one of the definition:
it knows all but the coins, and scores a canary by the log-likelihood ratio of what was released, summed over rounds.
Two-world audits use the first canary of every run alone, one-run audits all canaries of all runs, pooled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from attacks.audit.canaries import blank, dirac, flat, mislabelled, orthogonal, quiet_coordinates, unflattened
from attacks.audit.gaussian import gaussian_bound
from attacks.audit.one_run import audit_one_run
from attacks.audit.one_run_fdp import audit_one_run_fdp
from attacks.audit.outcomes import Outcome
from attacks.audit.sequential import sequential_bound
from attacks.audit.thresholds import Everywhere
from attacks.audit.two_world import two_world_bound
from defenses.accounting import Unit
from defenses.base import Defense
from defenses.clipping import Clipping
from defenses.composed import Composed
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_sgd import DPSGD
from experiments.studies import audit_canaries_figure
from experiments.studies.base import Setting, Study, Values
from experiments.studies.planted import Planted
from experiments.table import Page
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import MLP
from fl_core.data import ImageSet
from fl_core.errors import InputError, check_choice, check_number
from fl_core.federation import Federation, run
from fl_core.models import ClassificationLosses, initial_parameters, variables_of
from fl_core.optimizers import Tree
from fl_core.per_example import stacked_example_gradients
from fl_core.rules import Outer
from fl_core.sampling import Poisson, Shuffled
from fl_core.seeds import generator, seed
from fl_core.views import Recorder, Server

KINDS = ("mislabelled", "blank", "orthogonal", "dirac")
MECHANISMS: dict[str, Unit] = {"dp_sgd": "example", "dp_fedavg": "client"}
REFERENCES, MODELS = 40, 4  # pictures and models that a canary is made on; none of them is in a run
TOGETHER = 50  # runs whose gradients are in memory at once
LONGER = 1000.0  # a crafted gradient, in clips: long enough for a client's clip after its learning rate, too

Audit = Callable[["AuditCanaries", "Scores"], Outcome]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-likelihood ratios of all canaries, and who took part, both [runs, canaries]."""

    scores: NDArray[np.float64]
    members: NDArray[np.bool_]

    @property
    def worlds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The first canary's score in runs with it and in runs without, each [trials] in the runs' order."""
        first, there = self.scores[:, 0], self.members[:, 0]
        return first[there], first[~there]


def _sequential(study: AuditCanaries, seen: Scores) -> Outcome:
    inside, outside = seen.worlds
    pairs = min(len(inside), len(outside))
    return sequential_bound(inside[:pairs], outside[:pairs], (0.0, 1.0, 2.0), delta=study.delta)


AUDITS: dict[str, Audit] = {
    "two worlds": lambda study, seen: two_world_bound(*seen.worlds, Everywhere(), delta=study.delta),
    "two worlds, Gaussian": lambda study, seen: gaussian_bound(*seen.worlds, Everywhere(), delta=study.delta),
    "two worlds, sequential": _sequential,
    "one run": lambda study, seen: audit_one_run(seen.scores, seen.members, fraction=study.fraction, delta=study.delta),
    "one run, Gaussian": lambda study, seen: audit_one_run_fdp(
        seen.scores, seen.members, fraction=study.fraction, delta=study.delta
    ),
}


@dataclass(frozen=True, kw_only=True)
class AuditCanaries(Study):
    """Each of `mechanisms` at each of `epsilons`, with `canaries` of each of `kinds`, in `runs` independent runs.

    `clients` hold `each` ordinary pictures and take one full step a round, for `rounds` of them, so that a canary's
    trade-off is exactly Gaussian and the Gaussian auditors' guarantee covers it. `fraction` of the canaries are guessed
    in one-run audits. The model is a perceptron of `hidden` units; its clients descend at `lr`, under a clip of
    `clip_norm` for an example's gradient and of `update_clip` for a client's update.
    """

    mechanisms: Sequence[str] = tuple(MECHANISMS)
    epsilons: Sequence[float] = (1.0, 4.0, 16.0)
    kinds: Sequence[str] = KINDS
    runs: int = 300
    canaries: int = 8
    clients: int = 3
    each: int = 20
    rounds: int = 5
    hidden: int = 16
    lr: float = 0.5
    clip_norm: float = 1.0
    update_clip: float = 0.2
    delta: float = 1e-5
    fraction: float = 0.25

    grid: ClassVar[tuple[str, ...]] = ("mechanisms", "epsilons", "kinds")

    def __post_init__(self) -> None:
        for mechanism in self.mechanisms:
            check_choice("an entry of study.mechanisms", mechanism, MECHANISMS)
        for kind in self.kinds:
            check_choice("an entry of study.kinds", kind, KINDS)
        for epsilon in self.epsilons:
            check_number("an entry of study.epsilons", epsilon, minimum=0.05, maximum=500)
        check_number("study.runs", self.runs, minimum=20, integer=True)
        for name in ("canaries", "clients", "each", "rounds", "hidden"):
            check_number(f"study.{name}", getattr(self, name), minimum=1, integer=True)
        for name in ("lr", "clip_norm", "update_clip"):
            check_number(f"study.{name}", getattr(self, name), above=0)
        check_number("study.delta", self.delta, minimum=1e-12, below=1)
        check_number("study.fraction", self.fraction, above=0, maximum=1)

    def check(self, setting: Setting) -> None:
        needed = self.clients * self.each + self.canaries + REFERENCES
        if len(setting.pool) < needed:
            raise InputError(
                f"ordinary pictures, canaries and references need {needed} pictures, and the pool has "
                f"{len(setting.pool)}; lower study.clients or study.each"
            )

    def points(self) -> list[Values]:
        return [
            {"mechanism": mechanism, "kind": kind, "epsilon": float(epsilon)}
            for mechanism in self.mechanisms
            for kind in self.kinds
            for epsilon in self.epsilons
        ]

    def measure(self, point: Values, setting: Setting) -> Values:
        scene = made(self, point["mechanism"], point["kind"], point["epsilon"], setting)
        seen = played(scene)
        found = {name: audit(self, seen) for name, audit in AUDITS.items()}
        inside, outside = seen.worlds
        return {
            "rows": [
                {
                    "metric": "epsilon", "auditor": name, "value": one.epsilon, "ceiling": one.ceiling,
                    "accounted": scene.epsilon, "assumes": one.assumes, "unit": MECHANISMS[point["mechanism"]],
                    "trials": len(inside) + len(outside) if one.kind == "two-world" else seen.members.size,
                }
                for name, one in found.items()
            ]
        }  # fmt: skip

    def figure(self, records: Sequence[Values], title: str) -> Figure:
        return audit_canaries_figure.draw(records, title)

    def table(self, records: Sequence[Values]) -> Page:
        return audit_canaries_figure.table(self, records)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A federation with its canaries, ready to be played.

    The first `ordinary` rows of its data are in every run; the canaries come after them. `crafted` [canaries, d] are
    their gradients where these are not their own. `epsilon` is the accountant's, `noise` the deviation in clips.
    """

    federation: Federation
    ordinary: int
    crafted: Tensor | None
    epsilon: float
    noise: float
    unit: Unit
    clip: float


def made(study: AuditCanaries, mechanism: str, kind: str, epsilon: float, setting: Setting) -> Scene:
    """The scene of one point; its canaries are drawn from `setting.seed` alone, and so are its coins."""
    pool, run_seed = setting.pool, setting.seed
    order = torch.randperm(len(pool), generator=generator(run_seed, "audit pictures"))
    ordinary, rest = study.clients * study.each, order[study.clients * study.each :]
    model = MLP(pool.shape, len(pool.classes), hidden=(study.hidden,))
    drawn, references = pool.select(rest[: study.canaries]), pool.select(rest[study.canaries :][:REFERENCES])
    canaries, crafted = made_canaries(study, kind, model, drawn, references, run_seed)
    known = pool.select(order[:ordinary])
    data = ImageSet(
        torch.cat([known.images, canaries.images]), torch.cat([known.labels, canaries.labels]), pool.classes
    )
    members = torch.ones(study.runs, len(data), dtype=torch.bool)
    coins = generator(run_seed, f"audit coins {mechanism} {kind} {epsilon}")
    members[:, ordinary:] = torch.rand(study.runs, study.canaries, generator=coins) < 0.5

    by_client = MECHANISMS[mechanism] == "client"
    owners = torch.arange(ordinary) % study.clients
    theirs = study.clients + torch.arange(study.canaries) if by_client else torch.zeros(study.canaries).long()
    sizes = torch.full((study.clients,), study.each)
    if by_client:
        sizes = torch.cat([sizes, torch.ones(study.canaries).long()])
    clip = study.update_clip if by_client else study.clip_norm
    private: Defense = (
        DPFedAvg(epsilon=epsilon, delta=study.delta, clip_norm=clip)
        if by_client
        else DPSGD(epsilon=epsilon, delta=study.delta, clip_norm=clip)
    )
    if crafted is not None:
        variables = variables_of(model)
        private = Composed((Planted(canaries.images, unflattened(crafted, variables)), private))
    sampler = Shuffled(batch_size=None, local_steps=1) if by_client else Poisson(batch_size=study.each, local_steps=1)
    federation = Federation(
        model=model,
        data=data,
        owners=torch.cat([owners, theirs]),
        members=members,
        sizes=sizes,
        algorithm=FedAvg(sampler=sampler, lr=study.lr),
        defense=private,
        rounds=study.rounds,
        run=seed(run_seed, f"audit {mechanism} {kind} {epsilon}"),
        replica_ids=range(study.runs),
        backend="vmap",
    )
    prepared = private.prepare(federation.plan)
    view: str = "participant" if by_client else "server"
    stated = prepared.guarantee(view, MECHANISMS[mechanism], federation.plan)
    assert prepared.noise_multiplier is not None
    return Scene(
        federation=dataclasses.replace(federation, defense=prepared),
        ordinary=ordinary,
        crafted=crafted,
        epsilon=stated.epsilon,
        noise=prepared.noise_multiplier,
        unit=MECHANISMS[mechanism],
        clip=clip,
    )


def made_canaries(
    study: AuditCanaries, kind: str, model: MLP, drawn: ImageSet, references: ImageSet, run_seed: int
) -> tuple[ImageSet, Tensor | None]:
    """Canaries of a kind, and the gradients [canaries, d] that are put in place of theirs, if they are crafted."""
    if kind == "mislabelled":
        return mislabelled(drawn, run_seed), None
    if kind == "blank":
        return blank(drawn, len(drawn)), None
    models = [initial_parameters(model, seed(run_seed, "canary model", number)) for number in range(MODELS)]
    stacked = {name: torch.stack([one[name] for one in models]) for name in models[0]}
    losses = ClassificationLosses(model)
    seen = _gradients(losses, stacked, references)
    if kind == "orthogonal":
        start = mislabelled(drawn, run_seed)
        return orthogonal(losses, stacked, start, seen, clip_norm=study.clip_norm), None
    coordinates = quiet_coordinates(seen.flatten(0, 1), len(drawn))
    return drawn, dirac(coordinates, seen.shape[-1], LONGER * max(study.clip_norm, study.update_clip))


def played(scene: Scene) -> Scores:
    """Play all runs at once by the engine, and score what its views show."""
    recorder = Recorder(view=Server)
    last = run(scene.federation, recorder)
    seen = recorder.observation()
    assert isinstance(seen, Server)
    models = [seen.models[round] for round in range(scene.federation.rounds)] + [last.model]
    total = []
    for start in range(0, len(scene.federation.replica_ids), TOGETHER):
        part = slice(start, start + TOGETHER)
        here = [{name: value[part] for name, value in model.items()} for model in models]
        ratios: Tensor | float = 0.0
        for round in range(scene.federation.rounds):
            released = (
                flat(here[round + 1], 1) - flat(here[round], 1)
                if scene.unit == "client"
                else flat({name: value[part, 0] for name, value in seen.updates[round].items()}, 1)
            )
            ratios = ratios + _log_ratios(scene, here[round], released)
        assert isinstance(ratios, Tensor)
        total.append(ratios)
    members = scene.federation.members[:, scene.ordinary :]
    return Scores(scores=torch.cat(total).double().numpy(), members=members.numpy())


def _log_ratios(scene: Scene, model: Tree, released: Tensor) -> Tensor:
    """Of each canary [runs, canaries] from one round's `released` [runs, d], given the `model` [runs, ...] it was sent.

    What the ordinary units add is known and taken off; of the other canaries half is, which is their mean.
    """
    parts, scale = _contributions(scene, model)
    canaries = parts[:, -scene.federation.members.shape[1] + scene.ordinary :]
    known = parts[:, : parts.shape[1] - canaries.shape[1]].sum(1)
    left = released * scale - known - 0.5 * canaries.sum(1)
    # Of a canary itself half was taken off as well: the ratio of N(c/2, σ²) and N(−c/2, σ²) at what is left.
    return torch.einsum("rd,rcd->rc", left, canaries) / scene.noise**2


def _contributions(scene: Scene, model: Tree) -> tuple[Tensor, float]:
    """What each unit adds to a release [runs, units, d], in clips, canaries last; and a release's scale to clips."""
    federation = scene.federation
    rows = torch.arange(len(federation.data))
    if scene.unit == "example":
        rows = rows[federation.owners == 0]
    gradients = _gradients(ClassificationLosses(federation.model), model, federation.data.select(rows))
    if scene.crafted is not None:
        gradients[:, -len(scene.crafted) :] = scene.crafted
    if scene.unit == "example":
        batch = federation.algorithm.sampler.batch(int(federation.sizes.max()))
        return -_clipped(gradients, scene.clip), batch / (federation.algorithm.lr * scene.clip)
    held = torch.nn.functional.one_hot(federation.owners, len(federation.sizes)).to(gradients)
    updates = -federation.algorithm.lr * torch.einsum("rnd,nc->rcd", gradients, held / held.sum(0))
    return _clipped(updates, scene.clip), federation.public_divisor / scene.clip


def _clipped(vectors: Tensor, clip: float) -> Tensor:
    """Vectors [..., d] clipped, in clips."""
    factors, _ = Clipping(norm=clip).factors({"": vectors}, vectors.dim() - 1)
    return vectors * factors[""].unsqueeze(-1) / clip


def _gradients(losses: ClassificationLosses, models: Tree, data: ImageSet) -> Tensor:
    """Each example's gradient at each of the models, [models, examples, d]."""
    count = len(next(iter(models.values())))
    images = data.images.expand(count, *data.images.shape)
    found = stacked_example_gradients(losses, models, (images, data.labels.expand(count, -1)))
    whole = {name: value.whole() if isinstance(value, Outer) else value for name, value in found.items()}
    return flat(whole, 2).detach()
