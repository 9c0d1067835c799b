"""What a client's turn costs, and the devices that do it: speeds, networks, jitter and dropouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.errors import check_number
from fl_core.seeds import generator

MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a client's turn costs; all known before training.

    `steps` [clients] are the local steps of a full turn (at least 1), `step_examples` the examples of a step, and
    `model_bytes` what is sent down and up, once a turn each.
    """

    clients: int
    steps: Tensor
    step_examples: float
    model_bytes: int


@dataclass(frozen=True)
class Hardware:
    """What each client has for a whole replica [clients], float64: seconds an example, and bytes a second."""

    example: Tensor
    download: Tensor
    upload: Tensor


@dataclass(frozen=True)
class Trips:
    """How turns would go if nobody stopped them [n], float64: seconds to download, for a step, and to upload.

    `before` and `after` [n] say whose device drops out before it trains, or after.
    """

    download: Tensor
    step: Tensor
    upload: Tensor
    before: Tensor
    after: Tensor

    def heard(self, steps: Tensor) -> Tensor:
        """Seconds until the server hears from each, or would have: who never trains ends with the download."""
        return self.download + torch.where(self.before, 0.0, steps * self.step + self.upload)


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Phones. Each client draws its speeds once a replica and keeps them; every turn is a little off.

    Speeds are log-normal over clients: a median and the standard deviation of the logarithm (`_sigma`; 0 makes all
    clients alike). A turn multiplies them with log-normal factors of median 1, whose logarithms have the standard
    deviations `compute_jitter` and `network_jitter`. `latency` (seconds) is added to every message. The dropout rates
    are shares of all clients asked.

    The defaults are fitted to the measurements published with Yang et al. (2021, FLASH): the CNN of FEMNIST at batch
    size 10 takes 1.64, 0.59 and 0.18 s a step on three phones, weighted 53, 46 and 0.4% as they mix them; 19 networks
    have the mean rates whose geometric means and spreads these are, and vary by 38% each. A model of another size
    wants other seconds. Bonawitz et al. (2019) see 6 to 10% of the devices drop out; how these divide into before and
    after, and the latency, are illustrative.
    """

    example_seconds: float = 0.1
    example_sigma: float = 0.5
    download: float = 5.3
    download_sigma: float = 0.5
    upload: float = 3.2
    upload_sigma: float = 0.7
    latency: float = 0.05
    compute_jitter: float = 0.05
    network_jitter: float = 0.4
    dropout_before: float = 0.04
    dropout_after: float = 0.04

    def __post_init__(self) -> None:
        for name in ("example_seconds", "download", "upload"):
            check_number(f"fleet.devices.{name}", getattr(self, name), above=0)
        for name in ("example_sigma", "download_sigma", "upload_sigma", "latency", "compute_jitter", "network_jitter"):
            check_number(f"fleet.devices.{name}", getattr(self, name), minimum=0)
        for name in ("dropout_before", "dropout_after"):
            check_number(f"fleet.devices.{name}", getattr(self, name), minimum=0, below=1)
        # Somebody must be able to arrive, or an asynchronous server would wait for ever.
        both = self.dropout_before + self.dropout_after
        check_number("fleet.devices.dropout_before + fleet.devices.dropout_after", both, below=1)

    def hardware(self, clients: int, run: int, replica: int) -> Hardware:
        """The speeds of a replica's clients, drawn from the run and the replica alone."""
        normal = torch.randn(3, clients, dtype=torch.float64, generator=generator(run, "device speeds", replica))
        sigmas = torch.tensor([self.example_sigma, self.download_sigma, self.upload_sigma], dtype=torch.float64)
        medians = [self.example_seconds, self.download * MEGABYTE, self.upload * MEGABYTE]
        return Hardware(*torch.tensor(medians, dtype=torch.float64)[:, None] * (sigmas[:, None] * normal).exp())

    def trips(self, hardware: Hardware, work: Workload, asked: Tensor, draw: torch.Generator) -> Trips:
        """The turns of `asked` [n]. Everybody draws, so that a client's luck does not depend on who else is asked."""
        jitter = torch.randn(3, work.clients, dtype=torch.float64, generator=draw)[:, asked]
        coins = torch.rand(work.clients, dtype=torch.float64, generator=draw)[asked]
        slower = (self.network_jitter * jitter[1:]).exp()
        return Trips(
            download=self.latency + work.model_bytes / hardware.download[asked] * slower[0],
            step=work.step_examples * hardware.example[asked] * (self.compute_jitter * jitter[0]).exp(),
            upload=self.latency + work.model_bytes / hardware.upload[asked] * slower[1],
            before=coins < self.dropout_before,
            after=(coins >= self.dropout_before) & (coins < self.dropout_before + self.dropout_after),
        )
