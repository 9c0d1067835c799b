"""Baselines that see the pictures and never the target: what members look like by themselves.

Where members and non-members come from different sources, or public data overlap with either, these find it, and an
attack is credited with what it does beyond them. On a coin flip's members they stay at chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.base import Floats, MembershipKnowledge, require_target
from attacks.membership.observed import Signals, require_shadows
from attacks.membership.picture_features import shrunk, statistics
from fl_core.errors import InputError, check_number

Array = NDArray[np.float64]

FOLDS = 5
BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class ImageStatistics:
    """Log-odds by a logistic regression of the shadows' membership on brightness, contrast and the like.

    An example counts as member and as non-member, weighted by the shares of the shadows with and without it. Whoever is
    scored is left out of the fit, in five folds: its own row of the design would tie its score to the coin in question.
    At most `max_examples` are fitted to, drawn with `seed`.
    """

    max_examples: int = 20_000
    seed: int = 0
    name: ClassVar[str] = "blind (image statistics)"
    needs: ClassVar[type[Signals]] = Signals

    def __post_init__(self) -> None:
        check_number("image statistics' max_examples", self.max_examples, minimum=2 * FOLDS, integer=True)

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Log-odds [examples], in nats. Ignores what the model says.

        Raises InputError without pictures, shadows, or shadows with and without the examples of every fold.
        """
        shadows = require_shadows(self.name, signals, knowledge)
        features = statistics(_pictures(self.name, signals, knowledge))
        share = shadows.members.mean(axis=0, dtype=np.float64)
        draw = np.random.default_rng(self.seed)
        order = draw.permutation(share.size)
        used = order[: self.max_examples]
        scores = np.empty(share.size)
        for fold in range(FOLDS):
            asked, fitted = order[fold::FOLDS], np.delete(used, np.arange(fold, used.size, FOLDS))
            weights = np.concatenate([share[fitted], 1 - share[fitted]])
            if not share[fitted].any() or not (1 - share[fitted]).any():
                raise InputError(f"{self.name} needs shadows with and without the examples; all are of one kind")
            inside = np.arange(weights.size) < fitted.size
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
            model.fit(np.tile(features[fitted], (2, 1)), inside, logisticregression__sample_weight=weights)
            if asked.size:
                scores[asked] = model.decision_function(features[asked])
        return scores


@dataclass(frozen=True, kw_only=True)
class NearestPublic:
    """The distance to the nearest public picture: no replica trained on those, so a copy of one is no member.

    Euclidean, over pixels averaged into at most `side` × `side` cells; at most `max_public` public pictures, drawn with
    `seed`. It cannot tell more than whether members lie farther from the public data than non-members.
    """

    side: int = 8
    max_public: int = 4_000
    seed: int = 0
    name: ClassVar[str] = "blind (nearest public image)"
    needs: ClassVar[type[Signals]] = Signals

    def __post_init__(self) -> None:
        check_number("nearest public image's side", self.side, minimum=1, integer=True)
        check_number("nearest public image's max_public", self.max_public, minimum=1, integer=True)

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Distances [examples], in root summed squares of pixels. Ignores what the model says.

        Raises InputError without the candidates' pictures or public ones, or where their shapes differ.
        """
        images, public = _pictures(self.name, signals, knowledge), knowledge.public_images
        if public is None:
            raise InputError(f"{self.name} needs public pictures and the attacker has none; set attack.public")
        if public.shape[1:] != images.shape[1:]:
            raise InputError(
                f"public pictures {public.shape} and candidates {images.shape} differ in size; use one size"
            )
        if len(public) > self.max_public:
            rows = np.random.default_rng(self.seed).choice(len(public), self.max_public, replace=False)
            public = public[np.sort(rows)]
        ours, theirs = shrunk(images, self.side), shrunk(public, self.side)
        half = (theirs**2).sum(axis=1) / 2
        scores = np.empty(len(ours))
        for start in range(0, len(ours), BLOCK):
            block = ours[start : start + BLOCK]
            nearest = theirs[(half - block @ theirs.T).argmin(axis=1)]
            # The distance itself anew: through the products that of a copy would be rounding.
            apart = block.astype(np.float64) - nearest
            scores[start : start + BLOCK] = np.sqrt((apart**2).sum(axis=1))
        return scores


def _pictures(attack: str, signals: Signals, knowledge: MembershipKnowledge) -> Floats:
    require_target(attack, signals)
    images = knowledge.images
    if images is None or len(images) != len(signals.labels):
        has = "none" if images is None else str(len(images))
        raise InputError(f"{attack} needs a picture of each of {len(signals.labels)} candidates, has {has}")
    return images
