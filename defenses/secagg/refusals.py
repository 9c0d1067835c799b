"""Why a message is refused, and why a round ends without a sum."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """What was wrong with a message, as the one who refuses it can tell."""

    MALFORMED = "malformed"  # not a message of this protocol: cut, too long, of an unknown type, badly laid out
    TOO_LARGE = "too large"  # longer than any message that these parameters allow
    WRONG_ROUND = "wrong round"
    BAD_SEAL = "bad seal"  # changed on the way, made for another context, or signed by someone else
    BAD_KEY = "bad key"  # a public key that leads to no secret
    BAD_SHARE = "bad share"  # a share that does not decrypt, is out of range, or is no part of what was promised
    CONTEXT = "context"  # another round, model or parameters than the client was told of
    THRESHOLD = "threshold"  # a threshold below what the client was told, or fewer clients than it
    UNKNOWN = "unknown client"
    REPEATED = "repeated"
    OUT_OF_ORDER = "out of order"
    GRAPH = "graph"  # neighbours other than the roster's own randomness gives
    BOTH_SECRETS = "both secrets"  # a second set of survivors: its shares would be those of the other secret
    INCONSISTENT = "inconsistent"  # survivors that too few others have signed


class Rejected(Exception):
    """A message that is refused; whoever refuses it is as before, and can still take the right one."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Aborted(Exception):
    """The round ends without a sum; nothing of it is to be used, and its secrets are never asked for again.

    refusals: those clients' that refused to go on, by their numbers, where the one who ran the round knows them.
    """

    def __init__(self, detail: str, refusals: Mapping[int, Rejected] | None = None) -> None:
        super().__init__(detail)
        self.refusals = dict(refusals or {})
