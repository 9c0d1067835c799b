"""A deployment's update comes to a page of pictures: what stands there, and what it is trusted with."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from attacks.pictures import psnr
from attacks.reconstruction.base import Reconstruction
from attacks.reconstruction.gradient_matching import GradientMatching
from experiments import attack_update
from experiments.own_update.case import case_of
from experiments.own_update.options import read
from experiments.own_update.trust import Trust, misfit, scores, trust
from tests.experiments.own_update.deployment import FILES, QUICK, USUAL, make, summary


def test_the_folder_holds_pictures_page_and_summary_and_nothing_else_is_left(here: Path, mirage, capsys):
    before = {path.name for path in here.iterdir()}
    mirage(*QUICK, "truth=T.safetensors", "name=mine")
    assert "results/mine/page.html" in capsys.readouterr().out
    assert sorted(path.name for path in (here / "results/mine").iterdir()) == FILES
    assert [path.name for path in (here / "results").iterdir()] == ["mine"]
    assert {path.name for path in here.iterdir()} - before <= {"results", "__pycache__"}
    found = load_file("results/mine/reconstruction.safetensors")
    assert found["images"].shape == (1, 1, 8, 8)
    assert found["objective"].shape == (2,)
    told = summary("results/mine")
    assert told["labels"] == load_file("T.safetensors")["labels"].tolist()  # inferred
    assert told["evaluations"] == 2 * 4
    assert told["scores"]["psnr"] == pytest.approx(
        psnr(found["images"], load_file("T.safetensors")["images"]).tolist(), rel=1e-5
    )
    assert told["scores"]["label_recall"] == 1
    assert told["scores"]["hindsight"][0] >= told["scores"]["psnr"][0]
    assert told["command"].endswith("name=mine")
    assert told["versions"]["torch"] == torch.__version__.split("+")[0] or told["versions"]["torch"]
    with Image.open("results/mine/pictures.png") as image:
        assert image.size[0] > 50


def test_the_page_is_one_file_with_its_pictures_inside(here: Path, mirage):
    mirage(*QUICK, "truth=T.safetensors")
    text = Path("results/own_update/page.html").read_text()
    assert text.count('<img src="data:image/png;base64,') == 2
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|url\(', text)
    for words in (
        "image-rendering: pixelated",
        "color-scheme: light dark",
        'name="viewport"',
        "honest-but-curious server",
        "It does not know the labels or the learning rate",
        "Answered by: inverting gradients",
        "8 gradients",
        "noise, the best of 32",
        "1 of 1 labels are right",
    ):
        assert words in text, words


def test_the_truth_is_scored_by_assignment_and_hindsight_is_apart(here: Path):
    usual = USUAL | {"batch_size": "3"}
    make(pictures=3)
    case = case_of(read([f"{name}={value}" for name, value in usual.items()]))
    truth = load_file("T.safetensors")
    images, labels = truth["images"], truth["labels"]
    exact, noise = images[[2, 0, 1]], torch.rand_like(images)
    answer = Reconstruction(
        images=torch.stack([noise, exact]).unsqueeze(0),
        labels=labels[[2, 0, 1]].expand(1, 2, 3),
        objective=torch.tensor([[0.1, 0.2]]),
        evaluations=torch.tensor([6]),
        method=("made",),
        exact=torch.tensor([False]),
    )
    found = scores(images, labels, case, answer)
    assert max(found.psnr) < 20
    assert found.hindsight == [100.0, 100.0, 100.0]
    assert found.label_recall == 1
    turned = scores(images, labels, case, dataclasses.replace(answer, objective=torch.tensor([[0.2, 0.1]])))
    assert turned.order == [1, 2, 0]
    assert turned.psnr == [100.0, 100.0, 100.0]
    assert turned.ssim == pytest.approx([1.0, 1.0, 1.0])
    assert trust(case, answer, 0).agree == 1
    same = dataclasses.replace(answer, images=torch.stack([exact.flip(0), exact]).unsqueeze(0))
    assert trust(case, same, 0).agree == 2


def test_a_page_without_a_truth_claims_no_likeness(here: Path, mirage):
    mirage(*QUICK)
    text = Path("results/own_update/page.html").read_text()
    assert "nothing here says how alike they are" in text
    assert " dB" not in text.split("How far to trust it")[0]
    assert "scores" not in summary()


def test_text_from_outside_is_escaped_on_the_page(here: Path, mirage):
    mirage(*QUICK, "out='a<b>'")
    assert "a<b>" not in Path("a<b>/page.html").read_text()


def test_difference_model_and_gradient_are_the_same_update(here: Path, mirage):
    given = [("U", "difference"), ("N", "model"), ("D", "gradient")]
    for name, kind in given:
        mirage(*QUICK, f"name={kind}", f"update_is={kind}", update=f"{name}.safetensors")
    first, *others = (load_file(f"results/{kind}/reconstruction.safetensors")["images"] for _, kind in given)
    for other in others:
        torch.testing.assert_close(other, first, atol=2e-2, rtol=0)


def test_a_list_in_an_npz_is_the_same_update(here: Path, mirage):
    np.savez("U.npz", *(value.numpy() for value in in_order("U.safetensors")))
    mirage(*QUICK, "name=named")
    mirage(*QUICK, "name=listed", update="U.npz")
    first, second = (Path(f"results/{name}/reconstruction.safetensors").read_bytes() for name in ("named", "listed"))
    assert first == second


def in_order(path: str) -> list[Tensor]:
    import own_nets

    state = load_file(path)
    return [state[name] for name in own_nets.mlp().state_dict()]


def test_the_seed_decides_the_restarts(here: Path, mirage):
    for seed in (0, 1):
        mirage(*QUICK, f"seed={seed}", f"name=s{seed}")
    first, second = (load_file(f"results/s{seed}/reconstruction.safetensors")["images"] for seed in (0, 1))
    assert (first - second).abs().max() > 0.1


def test_the_truth_never_reaches_the_attack(here: Path, mirage):
    mirage(*QUICK, "name=without")
    mirage(*QUICK, "name=with", "truth=T.safetensors")
    first, second = (Path(f"results/{name}/reconstruction.safetensors").read_bytes() for name in ("without", "with"))
    assert first == second


def test_the_true_picture_explains_its_update_and_no_other_does(here: Path):
    case = case_of(read([f"{name}={value}" for name, value in USUAL.items()]))
    truth = load_file("T.safetensors")
    wrong = (truth["labels"] + 1) % 10
    guesses = torch.stack([truth["images"], truth["images"], torch.rand_like(truth["images"])])
    labels = torch.stack([truth["labels"], wrong, truth["labels"]])
    right, mislabelled, noise = misfit(case, guesses, labels).tolist()
    assert right < 1e-6
    assert noise > 0.01
    assert mislabelled > 0.1
    assert misfit(case, torch.full_like(guesses[:1], torch.nan), labels[:1]).item() == float("inf")


@pytest.mark.parametrize(
    ("missed", "agree", "restarts", "says"),
    [
        (float("inf"), 0, 4, "No attack came to an answer"),
        (0.45, 4, 4, "this answer is a guess"),
        (0.3, 4, 4, "far from explaining it"),
        (0.01, 1, 1, "a single restart cannot say"),
        (0.01, 1, 4, "no other restart came to the same"),
        (0.01, 3, 4, "and 3 of 4 restarts came to the same"),
    ],
)
def test_the_verdict_follows_the_misfit_and_the_restarts(missed, agree, restarts, says):
    found = Trust(misfit=missed, blind={"grey": [0.6], "noise": [0.9, 0.5]}, restarts=restarts, agree=agree)
    assert found.nothing == 0.5
    assert says in found.in_words()


def test_an_attack_that_fails_is_said_to_have_no_answer(here: Path, mirage, monkeypatch):
    run = GradientMatching.run

    def failing(*given, **named):
        found = run(*given, **named)
        return dataclasses.replace(found, images=found.images * torch.nan, objective=found.objective + torch.inf)

    monkeypatch.setattr(GradientMatching, "run", failing)
    mirage(*QUICK, "truth=T.safetensors")
    told = summary()
    assert told["trust"]["words"] == "No attack came to an answer."
    assert told["trust"]["misfit"] is None
    assert "no answer" in Path("results/own_update/page.html").read_text()


def test_help_lists_every_option(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attack_update.py", "--help"])
    attack_update.main()
    printed = capsys.readouterr().out
    for option in ("update_is: difference", "shape: ???", "truth: null", "attack: auto"):
        assert option in printed
