"""Observations with some of what their view shows, the rest empty."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from fl_core.views import ReleasedModel

Kind = TypeVar("Kind", bound=ReleasedModel)


def observation(kind: type[Kind], **shown: Any) -> Kind:
    return kind(**{field.name: {} for field in fields(kind)} | shown)
