"""What a turn costs on which device."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, chi2, norm

from fl_core.devices import MEGABYTE, Devices, Workload
from fl_core.errors import InputError
from fl_core.seeds import generator

ALIKE = {"example_sigma": 0, "download_sigma": 0, "upload_sigma": 0, "compute_jitter": 0, "network_jitter": 0}


def workload(clients: int, steps: int = 3) -> Workload:
    return Workload(clients=clients, steps=torch.full((clients,), steps), step_examples=5.0, model_bytes=2_000_000)


def trips(devices: Devices, work: Workload, asked: torch.Tensor, round: int = 0):
    return devices.trips(devices.hardware(work.clients, 0, 0), work, asked, generator(0, "test", 0, round))


def test_a_turn_takes_what_its_speeds_say():
    devices = Devices(example_seconds=0.2, download=4, upload=0.5, latency=0.25, **ALIKE)
    one = trips(devices, workload(2), torch.tensor([1]))
    assert one.download.tolist() == [0.25 + 2 / 4]
    assert one.step.tolist() == [5 * 0.2]
    assert one.upload.tolist() == [0.25 + 2 / 0.5]
    assert one.heard(torch.tensor([3])).tolist() == [0.75 + 3.0 + 4.25]


def test_who_is_lost_before_training_is_heard_of_after_the_download():
    devices = Devices(example_seconds=0.2, dropout_before=1 - 1e-12, dropout_after=0, latency=0.5, **ALIKE)
    one = trips(devices, workload(1), torch.tensor([0]))
    assert one.before.tolist() == [True]
    assert torch.equal(one.heard(torch.tensor([3])), one.download)


def near_log_normal(values: torch.Tensor, median: float, sigma: float) -> bool:
    """Mean and variance of the logarithms, each within its two-sided 1e-6 interval under the null."""
    logs = values.log() - math.log(median)
    n = len(logs)
    mean = abs(float(logs.mean())) < norm.isf(5e-7) * sigma / math.sqrt(n)
    spread = float(logs.square().sum()) / sigma**2
    return mean and chi2.ppf(5e-7, n) < spread < chi2.isf(5e-7, n)


def uncorrelated(rows: torch.Tensor) -> bool:
    """Correlations of n normals have a standard error of 1 / sqrt(n); five of them are a false alarm of 6e-7 a pair."""
    return float(torch.corrcoef(rows).triu(1).abs().max()) < 5 / math.sqrt(rows.shape[1])


def test_speeds_are_log_normal_over_clients():
    # A quantity has two checks of 1e-6 each.
    hardware = Devices().hardware(4000, 0, 0)
    assert near_log_normal(hardware.example, 0.1, 0.5)
    assert near_log_normal(hardware.download, 5.3 * MEGABYTE, 0.5)
    assert near_log_normal(hardware.upload, 3.2 * MEGABYTE, 0.7)
    assert not near_log_normal(hardware.upload, 3.2 * MEGABYTE, 0.5), "the test can tell 0.5 from 0.7"
    assert uncorrelated(torch.stack([hardware.example, hardware.download, hardware.upload]).log())


def test_jitter_is_log_normal_over_turns_around_a_speed_that_stays():
    # As above.
    devices = Devices(latency=0, compute_jitter=0.2, network_jitter=0.4)
    work, hardware = workload(4000), devices.hardware(4000, 0, 0)
    found = trips(devices, work, torch.arange(4000))
    assert near_log_normal(found.step / (5 * hardware.example), 1, 0.2)
    assert near_log_normal(found.download / (2 * MEGABYTE / hardware.download), 1, 0.4)
    assert near_log_normal(found.upload / (2 * MEGABYTE / hardware.upload), 1, 0.4)
    factors = [found.step / hardware.example, found.download * hardware.download, found.upload * hardware.upload]
    assert uncorrelated(torch.stack(factors).log())
    again = trips(devices, work, torch.arange(4000), round=1)
    assert not torch.equal(again.step, found.step)
    steady = Devices(compute_jitter=0, network_jitter=0)
    first, second = (trips(steady, work, torch.arange(4000), round) for round in range(2))
    assert torch.equal(first.step, second.step)
    assert torch.equal(first.upload, second.upload)


def test_dropouts_come_at_their_rates_and_a_client_is_lost_once():
    # Binomial over 20000 clients, two-sided false alarm 1e-6 each.
    lost = trips(Devices(dropout_before=0.1, dropout_after=0.2), workload(20_000), torch.arange(20_000))
    for flags, rate in ((lost.before, 0.1), (lost.after, 0.2)):
        many = int(flags.sum())
        assert min(binom.cdf(many, 20_000, rate), binom.sf(many - 1, 20_000, rate)) > 5e-7
    assert not bool((lost.before & lost.after).any())


def test_a_clients_luck_does_not_depend_on_who_else_is_asked():
    everyone = trips(Devices(), workload(9), torch.arange(9))
    some = trips(Devices(), workload(9), torch.tensor([2, 7]))
    for name in ("download", "step", "upload", "before", "after"):
        assert torch.equal(getattr(some, name), getattr(everyone, name)[[2, 7]])


def test_devices_are_a_function_of_run_and_replica():
    first = Devices().hardware(5, 0, 0)
    assert torch.equal(Devices().hardware(5, 0, 0).example, first.example)
    assert not torch.equal(Devices().hardware(5, 0, 1).example, first.example)
    assert not torch.equal(Devices().hardware(5, 1, 0).example, first.example)


@pytest.mark.parametrize("name", ["example_seconds", "download", "upload"])
def test_a_speed_is_above_zero(name):
    with pytest.raises(InputError, match=rf"fleet\.devices\.{name} is 0"):
        Devices(**{name: 0})


@pytest.mark.parametrize(
    "name", ["example_sigma", "download_sigma", "upload_sigma", "latency", "compute_jitter", "network_jitter"]
)
def test_a_spread_is_not_negative(name):
    with pytest.raises(InputError, match=rf"fleet\.devices\.{name} is -1"):
        Devices(**{name: -1})


def test_somebody_must_be_able_to_arrive():
    with pytest.raises(InputError, match=r"fleet\.devices\.dropout_before is 1"):
        Devices(dropout_before=1)
    with pytest.raises(InputError, match=r"dropout_before \+ fleet\.devices\.dropout_after is 1"):
        Devices(dropout_before=0.5, dropout_after=0.5)
