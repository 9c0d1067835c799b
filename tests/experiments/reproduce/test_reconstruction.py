"""The reproductions of gradient inversion, at their smallest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import nn

from attacks.reconstruction.gradient_matching import GradientMatching
from experiments.reconstruction_scores import Truth
from experiments.reproduce.__main__ import configuration, reproductions
from experiments.reproduce.base import verdicts
from experiments.reproduce.inversion import (
    NormalPixels,
    Standardised,
    first_pictures,
    in_parts,
    shared_gradients,
    to_each,
    told,
)
from experiments.studies.base import build
from experiments.studies.clients import initial
from experiments.table import page_markdown
from fl_core.architectures import LeNet
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.models import cross_entropy
from fl_core.residual import ResNet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smoke():
    """The lines of a reproduction's smoke budget, by what they are about, and its records."""
    known = {}

    def measure(name):
        if name not in known:
            GlobalHydra.instance().clear()
            torch.set_num_threads(1)
            made = build(configuration(name, reproductions()[name], "smoke", Path()))
            records = [point | made.study.measure(point, made.setting) for point in made.points]
            known[name] = made.study, records, {line.what: line for line in verdicts(made.study, records)}
            GlobalHydra.instance().clear()
        return known[name]

    return measure


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["idlg", "dlg", "inverting_gradients", "robbing_the_fed", "spear"])
def test_the_smoke_budget_gives_every_published_number_a_verdict(smoke, name):
    study, records, lines = smoke(name)
    for published in study.published:
        line = lines[published.what]
        assert line.verdict in ("matched", "missed", "scaled down", "not attempted")
        assert line.verdict != "not attempted" or line.why
    assert any(line.row is not None for line in lines.values() if line.published)
    page = page_markdown(study.table(records))
    assert all(published.what in page for published in study.published)
    shown = next(one["shown"] for one in records if "shown" in one)
    assert torch.tensor(shown["truth"]).shape == torch.tensor(shown["found"]).shape


@pytest.mark.heavy
def test_idlg_reads_every_label_and_dlg_most(smoke):
    _, _, lines = smoke("idlg")
    assert lines["MNIST, iDLG"].row["value"] == 100.0
    assert lines["MNIST, DLG"].row["value"] >= 75.0
    assert lines["LFW, iDLG"].verdict == "not attempted"


@pytest.mark.heavy
def test_an_imprint_layers_closed_forms_are_matched(smoke):
    _, _, lines = smoke("robbing_the_fed")
    for what in ("share alone, 64 bins", "share alone, 128 bins", "pictures alone, float32", "pictures alone, float64"):
        assert lines[what].verdict == "matched", what
    assert lines["pictures alone, float64"].row["value"] > 200


@pytest.mark.heavy
def test_small_batches_are_exact(smoke):
    _, _, lines = smoke("spear")
    assert lines["batches of 2 recovered"].row["value"] == 1.0
    assert lines["batches of 4 recovered"].row["value"] == 1.0
    assert lines["largest batch recovered exactly"].row["value"] == 4


@pytest.mark.heavy
def test_squared_distance_brings_pictures_back_from_an_untrained_lenet(smoke):
    _, _, lines = smoke("inverting_gradients")
    assert lines["LeNet (Zhu), untrained, L2 + L-BFGS"].row["value"] > 40
    assert lines["LeNet (Zhu), untrained, L2 + L-BFGS"].published.remembered


def test_standardised_pixels_enter_the_model_as_the_paper_has_them():
    seen = []
    inner = LeNet((3, 8, 8), 10)
    inner.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.rand(2, 3, 8, 8)
    Standardised(inner, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))(pixels)
    mean, deviation = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 1.0])
    torch.testing.assert_close(seen[0], (pixels - mean[:, None, None]) / deviation[:, None, None])


def test_an_evaluated_model_uses_the_running_statistics_that_it_was_sent():
    data, _ = digits(limit=8)
    model = Standardised(ResNet(data.shape, 10, depth=8, width=4, norm="batch"), evaluated=True)
    start = initial(model, 0, CPU)
    start["inner.norm.running_mean"] = start["inner.norm.running_mean"] + 0.5
    sent = to_each(model, start, 2)
    assert not any("running" in name for name in sent)
    truth = first_pictures(data, 2)
    updates = shared_gradients(model, sent, truth)
    batch_norm = model.get_submodule("inner.norm")
    assert isinstance(batch_norm, nn.BatchNorm2d)
    assert float(batch_norm.running_mean.mean()) == 0.5
    model.eval()
    model.zero_grad()
    cross_entropy(model(truth.images[1]), truth.labels[1]).mean().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(updates.moved[name][1], -value.grad)


def test_parts_of_the_victims_answer_as_all_together():
    data, _ = digits(limit=8)
    truth = first_pictures(data, 3)
    model = Standardised(LeNet(data.shape, 10))
    updates = shared_gradients(model, to_each(model, initial(model, 0, CPU), 3), truth)
    attack = GradientMatching(iterations=3, restarts=2, parametrisation=NormalPixels(mean=0.5, deviation=0.2))
    knowledge = told(model, data, truth, labels=True)
    whole = attack.run(updates, knowledge)
    parts = in_parts(attack, updates, knowledge, run=0, device=CPU, at_once=2)
    torch.testing.assert_close(parts.images, whole.images)
    torch.testing.assert_close(parts.objective, whole.objective)
    assert parts.method == whole.method


def test_more_victims_than_pictures_are_refused():
    data, _ = digits(limit=8)
    assert isinstance(first_pictures(data, 2, 4), Truth)
    with pytest.raises(InputError, match="9 pictures are needed, and there are 8"):
        first_pictures(data, 9)
