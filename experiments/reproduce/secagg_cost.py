"""Bonawitz et al. 2017: what secure aggregation adds to a client's traffic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.benchmarks.peers.mirage_secagg import play
from experiments.reproduce.base import Budget, Published, Reproduction
from experiments.studies.base import Setting, Values
from fl_core.errors import InputError, check_number
from fl_core.seeds import seed

INPUT_BITS = 16
LOOSE = 0.005  # a worse fit of the law says nothing of cohorts that were not played
CASES = {"2¹⁰ clients, 2²⁰ values": (2**10, 2**20, 1.73), "2¹⁴ clients, 2²⁴ values": (2**14, 2**24, 1.98)}
"""Clients, length, and the published traffic of a client over that of its vector alone."""

KEY, SHARE = 256, 256  # bits of a public key and of an encrypted share, in the paper's count


def counted(clients: int, length: int) -> float:
    """The paper's own count of a client's traffic, over the 16 bits a value of its vector.

    2n public keys, 5n − 4 shares, and a vector of words that hold the sum of n values of 16 bits.
    """
    words = length * (INPUT_BITS + math.ceil(math.log2(clients)))
    return (2 * clients * KEY + (5 * clients - 4) * SHARE + words) / (INPUT_BITS * length)


@dataclass(frozen=True, kw_only=True)
class Traffic(Reproduction):
    """A client's bytes, sent and received, in an aggregation of each of `cohorts` clients, every message a real one.

    Each cohort is on the complete graph and sums vectors of `length` and of twice that. Bytes are a constant, so many
    for each other client and so many for each value; what a cohort or length costs that was not played follows.
    """

    cohorts: Sequence[int]
    length: int = 1000

    title = "Secure aggregation: a client's traffic (Bonawitz et al. 2017)"
    source = (
        "Bonawitz et al. 2017, “Practical Secure Aggregation for Privacy-Preserving Machine Learning”, abstract, as "
        "two public notes on it quote it"
    )
    protocol = (
        "the complete graph against an honest-but-curious server, nobody lost; values of 16 bits, words that hold "
        "their sum (26 and 30 bits); bytes that a client sends and receives, over two bytes a value. Mirage's words "
        "are of whole bytes, so four here. Seconds depend on the machine and are not compared."
    )
    published = tuple(
        Published(what=what, value=value, unit="×", remembered=True, tolerance=0.005, sense="at most", digits=2)
        for what, (_, _, value) in CASES.items()
    )
    budgets: ClassVar = {
        "smoke": Budget(options={"cohorts": [4, 8, 16]}, differs=""),
        "cpu": Budget(options={"cohorts": [64, 128, 192]}, differs=""),
        "full": Budget(options={"cohorts": [256, 512, 1024]}, differs=""),
    }

    reads: ClassVar[tuple[str, ...]] = ()
    grid: ClassVar[tuple[str, ...]] = ("budget", "cohorts")

    def __post_init__(self) -> None:
        super().__post_init__()
        for cohort in self.cohorts:
            check_number("an entry of study.cohorts", cohort, minimum=2, integer=True)
        check_number("study.length", self.length, minimum=1, integer=True)
        if len(set(self.cohorts)) < 3:
            raise InputError("study.cohorts needs three sizes at least: two for the law, and one to check it by")

    def points(self) -> list[Values]:
        return [{"clients": cohort} for cohort in self.cohorts]

    def measure(self, point: Values, setting: Setting) -> Values:
        clients = point["clients"]
        short, long = (
            play(clients, length, sparse=False, lost=0, seed=seed(setting.seed, "secure aggregation", clients) % 2**31)
            for length in (self.length, 2 * self.length)
        )
        value = (long["client_bytes"] - short["client_bytes"]) / self.length
        up, down = short["client_bytes"] - value * self.length, short["client_bytes_down"]
        return {
            "rows": [
                {"metric": "bytes a value", "value": value},
                {"metric": "other bytes sent", "value": up},
                {"metric": "bytes received", "value": down},
            ],
            "seconds": {"client": short["client_seconds"], "server": short["server_seconds"]},
        }

    def measured(self, records: Sequence[Values]) -> list[Values]:
        """Both published cases by the law of the cohorts that were played, and the paper's own count of them."""
        law = Law.of(records)
        found: list[Values] = []
        for what, (clients, length, _) in CASES.items():
            plain, bits = INPUT_BITS / 8 * length, INPUT_BITS + math.ceil(math.log2(clients))
            rest = law.bytes(clients, 0) / plain
            sizes = ", ".join(str(record["clients"]) for record in records)
            packed = rest + bits / INPUT_BITS
            note = (
                f"{law.value:g} bytes a value and {law.each:.0f} for each other client, by cohorts of "
                f"{sizes}, which this law fits within {law.misfit:.2%}; words of {bits} bits would make it {packed:.2f}"
            )
            ours = law.bytes(clients, length) / plain
            about: Values = {"metric": what, "value": ours, "samples": len(records), "note": note}
            if law.misfit > LOOSE:
                about["differs"] = "cohorts of this size were not played, and smaller ones do not tell"
            found.append(about)
            count = counted(clients, length)
            found.append({"metric": f"{what}: the paper's count", "value": count, "note": "computed, as remembered"})
        return found


@dataclass(frozen=True, kw_only=True)
class Law:
    """A client's bytes, sent and received: `fixed`, and so many for `each` other client and for each `value`.

    `misfit` is the most by which a cohort that was played differs, relatively, without its vector.
    """

    fixed: float
    each: float
    value: float
    misfit: float

    @classmethod
    def of(cls, records: Sequence[Values]) -> Law:
        """From the smallest and the largest cohort; those between check it."""
        values = [{row["metric"]: row["value"] for row in record["rows"]} for record in records]
        points = sorted(
            (record["clients"], found["other bytes sent"] + found["bytes received"])
            for record, found in zip(records, values, strict=True)
        )
        (few, least), (many, most) = points[0], points[-1]
        each = (most - least) / (many - few)
        fixed = least - each * (few - 1)
        misfit = max(abs(fixed + each * (clients - 1) - found) / found for clients, found in points)
        (value,) = {found["bytes a value"] for found in values}
        return cls(fixed=fixed, each=each, value=value, misfit=misfit)

    def bytes(self, clients: int, length: int) -> float:
        """What a client of `clients` sends and receives for a vector of `length`."""
        return self.fixed + self.each * (clients - 1) + self.value * length
