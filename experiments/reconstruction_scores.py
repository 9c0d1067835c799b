"""From recovered pictures to rows with intervals, for every study that reconstructs. Only this sees the truth.

What a number means, whichever attack it is about:

- A batch is matched to its victim's pictures by the least total squared error, for each restart by itself.
- Restarts are chosen twice: by the attacker, and in hindsight by the truth (`_oracle`); `psnr_gap` lies between.
- A picture that the attack has no answer for, or that is not finite, is a failure. It is counted, matched last, is
  neither recognised nor identified, and enters means as constant grey, which is what no knowledge at all would say.
- Pixels are cut to [0, 1] first, as an attacker who knows what a picture is would.
- A recovery of 100 dB or more is exact. It is counted, and enters means as 100 dB.
- The unit is the victim: what its pictures score is averaged first, and intervals are over victims.
- Blind guesses that never saw the update stand in the same table, scored in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks import perceptual
from attacks.metrics import Interval, label_recall, mean_interval, median_interval, share_interval
from attacks.pictures import EXACT_DB, RECOGNISED_DB, completed, decibels, failed, match, mse
from attacks.reconstruction.base import Reconstruction
from attacks.similarity import WINDOW, identified, reach_of, registered_psnr, ssim, window_of
from experiments.cell import Cell
from experiments.pieces import probe_parts
from experiments.scoring import make_row
from fl_core.checkpoint import load_tensors
from fl_core.errors import InputError
from fl_core.views import Server

Array = NDArray[np.float64]
Rows = list[dict[str, Any]]
PRIOR = "blind (prior without the gradient)"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What only the scorer sees: each victim's `images` [victims, examples, channels, height, width] and `labels`.

    `labels` are [victims, examples]. `others` [pictures, ...] stand beside the victims' own pictures in the gallery in
    which a recovered picture has to be told from all others. Raises InputError for shapes that do not fit.
    """

    images: Tensor
    labels: Tensor
    others: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 5 or self.labels.shape != self.images.shape[:2] or not self.images.numel():
            raise InputError(
                f"true images {list(self.images.shape)} and labels {list(self.labels.shape)} do not fit; give "
                "[victims, examples, channels, height, width] and [victims, examples]"
            )
        if self.others is not None and self.others.shape[1:] != self.images.shape[2:]:
            raise InputError(
                f"the gallery's other pictures {list(self.others.shape)} are not of the size of the victims' "
                f"{list(self.images.shape)}"
            )


@dataclass(frozen=True, kw_only=True)
class Public:
    """Pictures [pictures, channels, height, width] that no victim holds, for blind guesses; `labels` where known."""

    images: Tensor
    labels: Tensor | None = None


def score(
    found: Reconstruction,
    truth: Truth,
    public: Public,
    *,
    attack: str,
    view: str,
    knowledge: str,
    prior: Reconstruction | None = None,
    group: str = "victims",
    samples: str = "",
) -> Rows:
    """The rows of an attack, and of the blind guesses beside it: the mean image of `public`, its class means for the
    labels that the attacker inferred or was told, its picture nearest to each true one, and `prior`, what the attack
    answers without the gradient.

    `knowledge` starts with the letter of the taxonomy. Rows are those of `experiments.scoring.Row`. Raises InputError
    where what was found does not fit the truth.
    """
    victims, examples = truth.labels.shape
    _check_fits(found, truth)
    pictures = "" if examples == 1 else f", {examples} pictures each"
    about = {"question": "reconstruction", "view": view, "knowledge": knowledge, "group": group}
    about["samples"] = samples or f"{victims} victims{pictures}"

    answers = Answers.of(found, truth)
    own = about | {"attack": attack}
    rows = [*_picture_rows(answers.picked(answers.chosen), truth, own, note=_methods(found.method))]
    rows += _picture_rows(answers.picked(answers.best), truth, own, "_oracle", "best restart by the truth")
    if absent := perceptual.missing():
        rows.append(make_row(None, **own, metric="lpips", note=absent))
    gap = mean_interval(answers.likeness(answers.best) - answers.likeness(answers.chosen))
    rows.append(make_row(gap, **own, metric="psnr_gap", note="what the attacker loses by its own choice of a restart"))
    for suffix, restart in (("", answers.chosen), ("_oracle", answers.best)):
        labels = found.labels.cpu().numpy()[np.arange(victims), restart]
        recall = share_interval(label_recall(labels, truth.labels.cpu().numpy()))
        rows.append(make_row(recall, **own, metric=f"label_recall{suffix}"))
    checked = share_interval(found.exact.cpu().double().numpy())
    rows.append(
        make_row(checked, **own, metric="verified", note="the attacker saw that its answer explains the update")
    )
    spent = mean_interval(found.evaluations.cpu().double().numpy())
    rows.append(make_row(spent, **own, metric="evaluations", note="gradients on a victim's batch, all restarts"))

    for name, guess, note in _blind(found.selected_labels(), truth, public):
        told = about | {"attack": name}
        if guess is None:
            rows.append(make_row(None, **told, metric="psnr", note=note))
        else:
            rows += _picture_rows(guess, truth, told, note=note)
    if prior is None:
        rows.append(make_row(None, **about, attack=PRIOR, metric="psnr", note="not run"))
    else:
        _check_fits(prior, truth)
        without = Answers.of(prior, truth)
        rows += _picture_rows(without.picked(without.chosen), truth, about | {"attack": PRIOR})
    return rows


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Recovered pictures lined up with the true ones.

    `images` [victims, restarts, candidates, ...]; `order` [victims, restarts, examples] the candidate that answers each
    true picture; `psnr` [victims, restarts, examples] in dB, at most EXACT_DB, grey for a failure. `chosen` [victims]
    is the attacker's restart, `best` the one with the highest mean PSNR.
    """

    images: Array
    order: NDArray[np.int64]
    psnr: Array
    chosen: NDArray[np.int64]

    @classmethod
    def of(cls, found: Reconstruction, truth: Truth) -> Answers:
        """Match every restart of every victim."""
        pixels, originals = found.images.detach().cpu(), truth.images.cpu().numpy()
        images = pixels.clamp(0, 1).masked_fill(~pixels.isfinite(), torch.nan).numpy()
        order = np.empty((*images.shape[:2], originals.shape[1]), dtype=np.int64)
        likeness = np.empty(order.shape)
        for victim, restart in np.ndindex(*images.shape[:2]):
            own, true = images[victim, restart], originals[victim]
            order[victim, restart] = match(own, true)
            likeness[victim, restart] = _capped(mse(completed(own[order[victim, restart]]), true))
        return cls(images=images, order=order, psnr=likeness, chosen=found.chosen.cpu().numpy())

    @property
    def best(self) -> NDArray[np.int64]:
        """The restart with the highest mean PSNR [victims]: by the truth, so out of an attacker's reach."""
        restart: NDArray[np.int64] = self.psnr.mean(2).argmax(1)
        return restart

    def picked(self, restart: NDArray[np.int64]) -> Array:
        """The pictures [victims, examples, ...] of one restart a victim, in the order of the true ones."""
        victims = np.arange(len(restart))
        return self.images[victims[:, None], restart[:, None], self.order[victims, restart]]

    def likeness(self, restart: NDArray[np.int64]) -> Array:
        """Their PSNR [victims] in dB, averaged over a victim's pictures."""
        mean: Array = self.psnr[np.arange(len(restart)), restart].mean(1)
        return mean


def _capped(error: Array) -> Array:
    return np.minimum(decibels(error), EXACT_DB)


def _picture_rows(
    pictures: Array, truth: Truth, about: dict[str, Any], suffix: str = "", note: str = ""
) -> Iterator[dict[str, Any]]:
    """The rows about one picture [victims, examples, ...] for each true one."""
    victims, examples = truth.labels.shape
    missing = failed(pictures.reshape(victims * examples, -1))
    guesses = completed(pictures.reshape(victims * examples, *pictures.shape[2:]))
    originals = truth.images.cpu().flatten(0, 1).numpy()

    def row(metric: str, interval: Interval | None, *notes: str) -> dict[str, Any]:
        said = "; ".join(one for one in notes if one)
        return make_row(interval, **about, metric=metric + suffix, note=said)

    def mean(values: Array) -> Array:
        """Over each victim's pictures."""
        found: Array = values.reshape(victims, examples).mean(1)
        return found

    error = mse(guesses, originals)
    likeness = _capped(error)
    exact = (likeness >= EXACT_DB) & ~missing
    counts = [f"{int(flags.sum())} {word}" for flags, word in ((exact, "exact"), (missing, "failed")) if flags.any()]
    yield row("psnr", mean_interval(mean(likeness)), ", ".join(counts), note)
    yield row("psnr_median", median_interval(mean(likeness)), note)
    yield row("mse", mean_interval(mean(error)), note)
    height, width = originals.shape[-2:]
    if min(height, width) < 3:
        yield row("ssim", None, f"pictures of {height}x{width} have no structure to compare")
    else:
        window = window_of(height, width)
        small = f"window of {window}x{window} pixels, the largest that fits" if window < WINDOW else ""
        yield row("ssim", mean_interval(mean(ssim(guesses, originals))), small, note)
    registered = np.minimum(registered_psnr(guesses, originals), EXACT_DB)
    reach = reach_of(height, width)
    yield row(
        "registered_psnr",
        mean_interval(mean(registered)),
        f"the best of shifts by up to {reach} {'pixel' if reach == 1 else 'pixels'}, on the overlap",
        note,
    )
    if not perceptual.missing():
        yield row("lpips", mean_interval(mean(perceptual.lpips(guesses, originals))), note)
    recognised = (likeness >= RECOGNISED_DB) & ~missing
    for metric, flags in (("recognised", recognised), ("exact", exact), ("failed", missing)):
        yield row(metric, share_interval(mean(flags.astype(float))), note)
    gallery = originals if truth.others is None else np.concatenate([originals, truth.others.cpu().numpy()])
    if len(gallery) < 2:
        yield row("identified", None, "a gallery of one picture tells nothing")
    else:
        hits = identified(guesses, np.arange(len(originals)), gallery) & ~missing
        # A guess near to any picture of its batch is matched to that one.
        chance = f"among {len(gallery)} pictures; by chance {'at most ' * (examples > 1)}{examples / len(gallery):.2g}"
        yield row("identified", share_interval(mean(hits.astype(float))), chance, note)


def _methods(method: tuple[str, ...]) -> str:
    """Which attack answered how many victims, where several did."""
    counts = Counter(method)
    return "answered by " + ", ".join(f"{name} ({n})" for name, n in counts.most_common()) if len(counts) > 1 else ""


# Blind guesses


def _blind(labels: Tensor, truth: Truth, public: Public) -> Iterator[tuple[str, Array | None, str]]:
    """Each blind guess's name, pictures [victims, examples, ...] and a note; none, and why, where it cannot be made."""
    shape, known = truth.images.shape, public.images.cpu().numpy()
    if known.shape[1:] != shape[2:] or not len(known):
        raise InputError(f"public pictures {list(known.shape)} do not fit true ones of {list(shape[2:])}")
    mean = known.mean(0)
    yield "blind (mean image)", np.broadcast_to(mean, shape), ""
    if public.labels is None:
        yield "blind (class mean)", None, "the public pictures have no labels"
    else:
        means = np.broadcast_to(mean, shape).copy()
        theirs, guessed = public.labels.cpu().numpy(), labels.cpu().numpy()
        for label in np.intersect1d(guessed, theirs):
            means[guessed == label] = known[theirs == label].mean(0)
        yield "blind (class mean)", means, "of the labels that the attacker inferred or was told"
    nearest = known[_nearest(truth.images.cpu().numpy().reshape(shape[0] * shape[1], -1), known)]
    yield "blind (nearest public image)", nearest.reshape(shape), "picked by the truth"


def _nearest(truth: Array, public: Array, block: int = 4096) -> NDArray[np.int64]:
    """For each true picture [pictures, pixels] the index of the public one with the least squared error."""
    wanted, best = truth.astype(np.float64), np.zeros(len(truth), dtype=np.int64)
    least = np.full(len(truth), np.inf)
    for start in range(0, len(public), block):
        pixels = public[start : start + block].reshape(-1, wanted.shape[1]).astype(np.float64)
        far = (pixels**2).sum(1) - 2 * wanted @ pixels.T  # less ‖truth‖², which all have in common
        near = far.argmin(1)
        value = far[np.arange(len(truth)), near]
        best, least = np.where(value < least, start + near, best), np.minimum(value, least)
    return best


def _check_fits(found: Reconstruction, truth: Truth) -> None:
    shape, wanted = tuple(found.images.shape), tuple(truth.images.shape)
    if len(shape) != 6 or (shape[0], *shape[3:]) != (wanted[0], *wanted[2:]) or shape[2] < wanted[1]:
        raise InputError(
            f"recovered pictures {list(shape)}, [victims, restarts, examples, channels, height, width], do not fit the "
            f"true ones {list(wanted)}; an attack that found fewer fills up with NaN, which is a failure"
        )


# The leakage sweep

SWEPT = ("psnr", "psnr_oracle", "blind (mean image)", "blind (nearest public image)", "label_recall")


def probe_rows(cell: Cell, folder: Path) -> Rows:
    """Of the probe round of a cell: the attacker's PSNR and the best in hindsight, two blind guesses, labels found."""
    parts = [load_tensors(folder / f"probe-{part}.safetensors")[0] for part in range(probe_parts(cell))]
    if not parts:
        return []
    stored = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if "." not in name}
    attack, victims = cell.reconstruction, len(stored["true_images"])
    rows = score(
        read_back(stored),
        Truth(images=stored["true_images"].unsqueeze(1), labels=stored["true_labels"].unsqueeze(1)),
        Public(images=cell.targets.test.images),
        attack=attack.name,
        view=Server.view,
        knowledge=f"{attack.letter}: the update, the model, the rate, one step on one example; no label, no data",
        samples=f"{victims} victims in as many replicas",
    )
    # Of what the attack found, and of the first row, PSNR, of each blind guess.
    named = {row["metric"] if row["attack"] == attack.name else row["attack"]: row for row in reversed(rows)}
    return [named[name] for name in SWEPT]


def read_back(stored: dict[str, Tensor]) -> Reconstruction:
    """What a probe round stored: one picture a victim, of which `recovered` holds each restart's [victims, restarts].

    What was spent on it is not stored, nor what the attacker verified.
    """
    objective, recovered = stored["objective"], stored["recovered"]
    victims, restarts = objective.shape
    return Reconstruction(
        images=recovered.reshape(victims, restarts, 1, *recovered.shape[-3:]),
        labels=stored["labels"].reshape(victims, -1, 1).expand(victims, restarts, 1),
        objective=objective,
        evaluations=torch.zeros(victims),
        method=("",) * victims,
        exact=torch.zeros(victims, dtype=torch.bool),
    )
