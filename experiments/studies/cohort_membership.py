"""The membership half of `cohort`: is the target in the sum, or was it replaced by a fresh draw?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attacks.membership.population import Population, estimate
from attacks.membership.update_product import InnerProduct, MatchedFilter, TargetKnowledge, matched_filters
from attacks.metrics import bootstrap_over_replicas
from defenses.accounting import Event, calibrate
from defenses.bounds import auc_gaussian, tpr_gaussian
from defenses.noise import cut
from defenses.sums import GaussianScores, auc_of_mean, auc_of_pair
from experiments.studies.base import Setting, Values
from experiments.studies.clients import Recipe, initial, seen_sums, seen_update, shortened, sums, trained, updates
from fl_core.data import ImageSet
from fl_core.optimizers import Tree
from fl_core.seeds import generator

if TYPE_CHECKING:
    from experiments.studies.cohort import Cohort

PUBLIC, EXACT = "public data", "public data, exact mean"
"""What the attacker knows of the population: estimates from public clients; or its very mean, which n cannot blur."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One model, its clients, and what is in question.

    `bank` [clients, parameters] is the population; `public` what the attacker makes of public data. `targets`
    [targets, parameters] are the updates of clients that hold the target alone, and `inside` [targets, sums,
    parameters] what the victim sends with the target among its examples, 1/`share` of which it is. `clip_norm` is
    what all updates are clipped to, None for not at all.
    """

    start: Tree
    bank: Tensor
    public: Population
    targets: Tensor
    inside: Tensor
    share: int
    clip_norm: float | None

    @property
    def exact(self) -> Population:
        """What the attacker makes of public data, around the very mean of the population."""
        return self.public.with_mean(self.bank.mean(0))


def world(study: Cohort, setting: Setting, *, model: str, target: str, local_steps: int, clip: bool = False) -> World:
    """Deal out the data and simulate all clients; no example is both public, the population's or a target's.

    With `clip`, all updates are clipped to the median length of public ones.
    """
    run, held = setting.seed, study.examples
    pool, test = setting.pool.to(setting.device), setting.test.to(setting.device)
    order = torch.randperm(len(pool), generator=generator(run, "public or not"))
    crowd, public = order.chunk(2)
    seen, unseen = public[: len(public) * 3 // 4], public[len(public) * 3 // 4 :]
    net = setting.make("model", shape=pool.shape, classes=len(pool.classes)).to(setting.device)
    recipe = Recipe(model=net, lr=study.lr, local_steps=local_steps)
    start = initial(net, run, setting.device)
    if model == "trained":
        start = trained(net, pool.select(public.to(setting.device)), study.pretraining, study.lr, run)

    def drawn(rows: Tensor, clients: int, each: int, purpose: str) -> Tensor:
        return rows[torch.randint(len(rows), (clients, each), generator=generator(run, purpose))]

    known = updates(recipe, start, pool, drawn(seen, study.public * 3 // 4, held, "public clients"))
    norm = float(known.norm(dim=1).median()) if clip else None

    def sent(examples: ImageSet, rows: Tensor) -> Tensor:
        return shortened(updates(recipe, start, examples, rows), norm)

    each = held if target == "client" else 1
    theirs = [torch.randperm(len(test), generator=generator(run, "target", one))[:each] for one in range(study.targets)]
    chosen = torch.stack(theirs)
    targets = sent(test, chosen)
    inside = targets.unsqueeze(1).expand(-1, study.sums, -1)
    if each < held:
        both = ImageSet(torch.cat([pool.images, test.images]), torch.cat([pool.labels, test.labels]), pool.classes)
        beside = drawn(crowd, study.targets * study.sums, held - 1, "beside the target")
        rows = torch.cat([len(pool) + chosen.repeat_interleave(study.sums, 0), beside], 1)
        inside = sent(both, rows).unflatten(0, (study.targets, study.sums))
    return World(
        start=start,
        bank=sent(pool, drawn(crowd, study.bank, held, "bank")),
        public=estimate(
            shortened(known, norm), sent(pool, drawn(unseen, study.public // 4, held, "unseen public clients"))
        ),
        targets=targets,
        inside=inside,
        share=held // each,
        clip_norm=norm,
    )


def gaussian(study: Cohort, setting: Setting, point: Values) -> Values:
    """The known answer: standard normal updates, whose population the attacker knows, in both games."""
    d = point["dimension"]
    none = torch.zeros(0, d)
    population = Population(mean=torch.zeros(d), directions=none, variances=torch.zeros(0), floor=1.0)
    model = {"": torch.zeros(1, d)}
    rows = []
    for cohort in study.cohorts:
        draw = generator(setting.seed, "gaussian", d, cohort)
        target, other = torch.randn(2, study.targets, d, generator=draw)
        for game, expected in (("replaced", auc_of_mean), ("pair", auc_of_pair)):
            if game == "pair" and cohort == 1:  # the sum is one of two known updates
                continue
            known = TargetKnowledge(
                targets=cut(per_sum(target, study), model),
                population=population,
                alternatives=cut(per_sum(other, study), model) if game == "pair" else None,
            )
            fresh = torch.randn(study.targets, study.sums, d, generator=draw)
            out = other.unsqueeze(1).expand_as(fresh) if game == "pair" else fresh
            # A sum over k standard normals is one normal of variance k.
            others = math.sqrt(cohort - 1) * torch.randn(study.targets, 2, study.sums, d, generator=draw)
            totals = others + torch.stack([target.unsqueeze(1).expand_as(fresh), out], 1)
            scores = MatchedFilter().run(seen_sums(model, totals.flatten(0, 2), cohort), known)
            about = {"attack": MatchedFilter.name, "view": "secure_server", "knowledge": "everything", "game": game}
            rows += _rows(study, scores, about | {"cohort": cohort}, theory={"auc": expected(d, cohort)})
    return {"rows": rows}


def membership(study: Cohort, setting: Setting, point: Values) -> Values:
    """Real updates, the sum alone: every attack against every cohort size, beside what a Gaussian sum predicts."""
    made = world(study, setting, model=point["model"], target=point["target"], local_steps=point["local_steps"])
    rows = []
    for cohort in study.cohorts:
        observation = seen_sums(made.start, _totals(study, setting, made, cohort), cohort)
        for attack, population, knowledge in (
            (InnerProduct(cosine=True), None, "none"),
            (InnerProduct(), None, "none"),
            (MatchedFilter(), made.public, PUBLIC),
            (MatchedFilter(), made.exact, EXACT),
        ):
            targets = cut(per_sum(made.targets, study), made.start)
            scores = attack.run(observation, TargetKnowledge(targets=targets, population=population))
            about = {"attack": attack.name, "view": "secure_server", "knowledge": knowledge, "cohort": cohort}
            expected = None if attack == InnerProduct(cosine=True) else _expected(made, cohort, population)
            rows += _rows(study, scores, about, _predicted(expected, study.fpr))
    return {"rows": rows, "rank": len(made.public.variances), "parameters": made.bank.shape[1]}


def noisy(study: Cohort, setting: Setting, point: Values) -> Values:
    """Clipped updates with Gaussian noise in shares: what is learned from the sum, and from each update with its share.

    `epsilon` None is the sum without noise. The shares of n clients add up to the noise of the ε, and one alone is
    1/√n of it. The sum is drawn with all of it at once, which has the same distribution.
    """
    made = world(study, setting, model=point["model"], target="client", local_steps=1, clip=True)
    assert made.clip_norm is not None
    epsilon = point["epsilon"]
    # Another client's data in place of the target's: the sum moves by two clips at most.
    event = Event(relation="replace", rate=1.0, steps=1)
    sigma = 0.0 if epsilon is None else calibrate(epsilon, study.delta, [event])
    targets = cut(per_sum(made.targets, study), made.start)
    rows = []
    for cohort in study.cohorts:
        draw = generator(setting.seed, "noise", 0 if epsilon is None else round(1000 * epsilon), cohort)
        totals = _totals(study, setting, made, cohort)
        seen = {"secure_server": (MatchedFilter(), totals, cohort, sigma)}
        if epsilon is not None:
            alone = _totals(study, setting, made, 1)
            seen["server"] = (MatchedFilter(seat=0), alone, 1, sigma / math.sqrt(cohort))
        for view, (attack, clean, summed, multiplier) in seen.items():
            noise = multiplier * made.clip_norm
            dirty = clean + noise * torch.randn(clean.shape, generator=draw).to(clean)
            show = seen_sums if view == "secure_server" else seen_update
            known = TargetKnowledge(targets=targets, population=made.exact, noise=noise)
            scores = attack.run(show(made.start, dirty, cohort), known)
            about = {"attack": attack.name, "view": view, "knowledge": EXACT, "cohort": cohort}
            ceiling = {}
            if multiplier:
                mu = 2 / multiplier
                ceiling = {"auc": auc_gaussian(mu), "tpr": float(tpr_gaussian(study.fpr, mu))}
            expected = _expected(made, summed, made.exact, noise)
            rows += _rows(study, scores, about, _predicted(expected, study.fpr), ceiling)
    return {"rows": rows, "noise_multiplier": sigma, "clip_norm": made.clip_norm, "parameters": made.bank.shape[1]}


def per_sum(rows: Tensor, study: Cohort) -> Tensor:
    """Each target's row [targets, ...] for all of its sums [targets · 2 · sums, ...]: those with it come first."""
    return rows.repeat_interleave(2 * study.sums, 0)


def _totals(study: Cohort, setting: Setting, made: World, cohort: int) -> Tensor:
    """Sums over cohorts [targets · 2 · sums, parameters], in the order of `per_sum`, everything redrawn in each."""
    draw = generator(setting.seed, "cohorts", cohort)
    count = study.targets * study.sums

    def others(size: int) -> Tensor:
        rows = torch.randint(len(made.bank), (count, size), generator=draw)
        return sums(made.bank, rows.to(made.bank.device)).view(study.targets, study.sums, -1)

    return torch.stack([others(cohort - 1) + made.inside, others(cohort)], 1).flatten(0, 2)


def _expected(made: World, cohort: int, population: Population | None, noise: float = 0.0) -> GaussianScores:
    """The scores' means and variances by the bank's own, exactly; that they are Gaussian is the theory's assumption."""
    if population is None:
        filters = made.targets / (cohort * made.targets.norm(dim=1, keepdim=True).clamp(min=1e-30))
        offset = torch.zeros(len(filters))
    else:
        filters = matched_filters(made.targets, population, cohort, noise)
        offset = -cohort * (filters @ population.mean)
    each = (made.bank @ filters.T).double()
    usual, spread = each.mean(0), each.var(0, correction=0)
    own = (made.targets * filters).sum(1).double()
    extra = noise**2 * filters.double().square().sum(1)
    inside = usual + (own - usual) / made.share
    return GaussianScores(
        inside=((cohort - 1) * usual + inside + offset).cpu().numpy(),
        inside_variance=((cohort - 1 / made.share) * spread + extra).cpu().numpy(),
        outside=(cohort * usual + offset).cpu().numpy(),
        outside_variance=(cohort * spread + extra).cpu().numpy(),
    )


def _predicted(expected: GaussianScores | None, fpr: float) -> dict[str, float]:
    return {} if expected is None else {"auc": expected.auc(), "tpr": expected.tpr_at(fpr)}


def _rows(
    study: Cohort, scores: Any, about: Values, theory: dict[str, float], ceiling: dict[str, float] | None = None
) -> list[Values]:
    """AUC and TPR pooled over targets, with intervals that resample targets."""
    table = scores.reshape(study.targets, 2 * study.sums)
    inside = np.arange(2 * study.sums) < study.sums
    found = bootstrap_over_replicas(
        table, np.broadcast_to(inside, table.shape), fpr=study.fpr, resamples=study.resamples
    )
    return [
        about
        | {"metric": metric, "value": interval.value, "low": interval.low, "high": interval.high}
        | {"theory": theory.get(metric), "ceiling": (ceiling or {}).get(metric)}
        for metric, interval in (("auc", found.auc), ("tpr", found.tpr))
    ]
