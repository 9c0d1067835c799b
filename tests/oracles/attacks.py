"""Every attack on a released model once, for claims that hold of all of them."""

from __future__ import annotations

from attacks.base import MembershipAttack
from attacks.membership.bavaria import BaVarIA
from attacks.membership.blind import Blind, LabelOnly
from attacks.membership.blind_pictures import ImageStatistics, NearestPublic
from attacks.membership.calibration import AttackR, DifficultyCalibration
from attacks.membership.label_only import AugmentationRobustness, Gap
from attacks.membership.lira import LiRA
from attacks.membership.quantile_regression import QuantileRegression
from attacks.membership.rmia import RMIA
from attacks.membership.shadow_classifier import ShadowClassifier
from attacks.membership.threshold import LossThreshold, Threshold
from attacks.membership.tuned import Tuned

WITHOUT_SHADOWS: tuple[MembershipAttack, ...] = (
    LossThreshold(),
    Threshold(statistic="confidence"),
    Threshold(statistic="entropy"),
    Threshold(statistic="modified entropy"),
    Gap(),
    AugmentationRobustness(),
    QuantileRegression(iterations=10),
    QuantileRegression(iterations=10, method="quantile"),
    NearestPublic(),
)
OFFLINE: tuple[MembershipAttack, ...] = (
    AttackR(),
    DifficultyCalibration(),
    LiRA(online=False),
    LiRA(online=False, fixed_variance=False),
    RMIA(online=False, gamma=1.0),
    RMIA(online=False, gamma=1.0, references=2),
    BaVarIA(online=False),
    BaVarIA(online=False, gaussian=True),
)
ONLINE: tuple[MembershipAttack, ...] = (
    LossThreshold(per_class=True),
    Threshold(per_class=True),
    ShadowClassifier(max_rows=4000),
    ShadowClassifier(max_rows=500, min_rows=500, classifier="random forest"),
    LiRA(),
    LiRA(fixed_variance=False),
    LiRA(fixed_variance="auto", every_query=True),
    RMIA(gamma=1.0),
    RMIA(gamma=1.0, references=2),
    BaVarIA(),
    BaVarIA(gaussian=True),
    ImageStatistics(),
    Tuned(attack=RMIA(), grid={"gamma": [1.0, 2.0]}, targets=2),
)
DESIGN: tuple[MembershipAttack, ...] = (LabelOnly(), Blind())
"""Attacks that read the shadows' membership alone."""

EVERY = (*WITHOUT_SHADOWS, *OFFLINE, *ONLINE, *DESIGN)
NEEDING_SHADOWS = (*OFFLINE, *ONLINE, *DESIGN)
NEEDING_PUBLIC = tuple(one for one in EVERY if isinstance(one, RMIA | QuantileRegression | NearestPublic | Tuned))
NEEDING_PICTURES = tuple(one for one in EVERY if isinstance(one, QuantileRegression | NearestPublic | ImageStatistics))
BLIND = tuple(one for one in EVERY if one.name.startswith("blind"))
"""Attacks that never look at the target."""
