"""A deployment's update comes to a page of pictures, and what cannot be one to a line with exit code 2."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks.pictures import psnr
from attacks.reconstruction import fitting as descent
from attacks.reconstruction.base import Reconstruction
from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.labels import infer_labels
from attacks.reconstruction.simulation import observed_moments
from experiments import attack_update
from experiments.own_update.attacks import PRESETS
from experiments.own_update.case import case_of
from experiments.own_update.options import read
from experiments.own_update.trust import Trust, misfit, scores, trust
from fl_core.data import digits

NETS = """
from torch import nn

def mlp(units=32):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.Sigmoid(), nn.Linear(units, 10))

def normed():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 10)
    )

def curved():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(144, 10))

def text(): return "no model"
def biasless(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
def counting():
    model = mlp()
    model.forward = lambda pixels: model[1:](pixels.flatten(1)) * float(pixels.mean() > 0)
    return model
"""
FILES = ["page.html", "pictures.png", "reconstruction.safetensors", "summary.json"]
USUAL = {
    "update": "U.safetensors",
    "global": "G.safetensors",
    "model": "own_nets:mlp",
    "shape": "[1,8,8]",
    "batch_size": "1",
}
QUICK = ["attack=inverting_gradients", "attack.iterations=4", "attack.restarts=2", "attack.part=2", "backend=vmap"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a client's update of one step at rate 0.1 on one digit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_nets.py").write_text(NETS)
    make()
    yield tmp_path
    sys.modules.pop("own_nets", None)


def trained(model: nn.Module, pictures: Tensor, labels: Tensor, lr: float = 0.1) -> dict[str, Tensor]:
    """The state after one step of plain SGD."""
    F.cross_entropy(model.train()(pictures), labels).backward()
    torch.optim.SGD(model.parameters(), lr).step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def make(factory: str = "mlp", pictures: int = 1) -> None:
    """G, U (the difference), N (the new model), D (the gradient) and T (the truth), here."""
    scope: dict[str, Callable[[], nn.Module]] = {}
    exec(NETS, scope)  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = scope[factory]()
    data = digits()[0]
    images, labels = data.images[:pictures], data.labels[:pictures]
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    after = trained(model, images, labels)
    save_file(before, "G.safetensors")
    save_file(after, "N.safetensors")
    save_file({name: after[name] - before[name] for name in before}, "U.safetensors")
    save_file({name: value.grad.clone() for name, value in model.named_parameters()}, "D.safetensors")
    save_file({"images": images, "labels": labels}, "T.safetensors")


@pytest.fixture
def mirage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call the command line in this process, with the usual options and those given."""

    def call(*arguments: str, **changed: str | None) -> None:
        usual = [f"{name}={value}" for name, value in (USUAL | changed).items() if value is not None]
        monkeypatch.setattr(sys, "argv", ["attack_update.py", *usual, *arguments])
        attack_update.main()

    return call


def summary(folder: str = "results/own_update") -> dict:
    return json.loads((Path(folder) / "summary.json").read_text())


# What comes of it


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


def test_running_statistics_give_the_batchs_moments_to_the_attack_and_their_counter_is_ignored(here: Path, mirage):
    make("normed", pictures=2)
    mirage(*QUICK, "attack=auto", "model=own_nets:normed", batch_size="2")
    assert summary()["attack"] == "GradInversion"
    case = case_of(read([f"{n}={v}" for n, v in (USUAL | {"model": "own_nets:normed"}).items()]))
    assert not any("tracked" in name for name in case.updates.moved)
    mean, variance = observed_moments(case.knowledge.model, case.updates.sent, case.updates.moved)["1"]
    import own_nets

    model = own_nets.normed()
    model.load_state_dict(load_file("G.safetensors"))
    entered = model[0](load_file("T.safetensors")["images"])
    torch.testing.assert_close(mean[0], entered.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(variance[0], entered.var((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_an_update_without_statistics_leaves_the_models_own(here: Path, mirage):
    make("normed", pictures=2)
    mirage(*QUICK, "attack=auto", "update_is=gradient", "model=own_nets:normed", update="D.safetensors", batch_size="2")
    assert summary()["attack"] == "GradInversion"


def test_what_algebra_solves_is_not_searched_for(here: Path, mirage):
    mirage("truth=T.safetensors", attack="auto")
    told = summary()
    assert told["attack"] == "fully connected layer"
    assert told["exact"]
    assert told["evaluations"] < 5
    assert told["scores"]["psnr"][0] > 90  # what float32 leaves of a difference of models
    assert "It explains the update to rounding" in Path("results/own_update/page.html").read_text()


def test_a_batch_size_that_the_update_s_rank_contradicts_is_refused(here: Path, mirage, capsys):
    make("mlp", pictures=4)
    with pytest.raises(SystemExit) as caught:
        mirage(attack="auto", batch_size="2")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "4 pictures at least, not 2" in said or "at least 4" in said, said
    assert not Path("results").exists()


def test_all_tries_what_fits_and_the_least_misfit_answers(here: Path, mirage):
    make("curved")
    mirage(*QUICK, "attack=all", "lr=0.1", model="own_nets:curved")
    told = summary()
    exact = told["attacks"].pop("exact attacks")
    assert [reason.split(":")[0] for reason in exact["reasons"]] == ["fully connected layer", "SPEAR", "R-GAP"]
    assert set(told["attacks"]) == {"inverting gradients", "layer-weighted", "deep image prior", "iDLG", "DLG"}
    least = min(told["attacks"], key=lambda name: told["attacks"][name]["misfit"])
    assert told["attack"] == least
    assert told["trust"]["misfit"] == told["attacks"][least]["misfit"]
    assert f"{least} (answered)" in Path("results/own_update/page.html").read_text()


def test_without_the_learning_rate_only_what_needs_no_length_fits(here: Path, mirage):
    mirage(*QUICK, "attack=all")
    assert not {"DLG", "iDLG"} & summary()["attacks"].keys()


def test_an_attacks_fields_are_set_together(here: Path, mirage):
    make("normed", pictures=2)
    lone = ["attack=grad_inversion", "attack.iterations=2", "attack.restarts=1", "attack.group=0"]
    mirage(*lone, "attack.distance.measure=cosine", "backend=vmap", model="own_nets:normed", batch_size="2")
    assert summary()["trust"]["restarts"] == 1


def test_public_pictures_are_the_blind_baseline(here: Path, mirage):
    np.savez("P.npz", images=digits()[1].images[:50].numpy())
    mirage(*QUICK, "public=P.npz")
    assert set(summary()["trust"]["blind"]) == {"the mean public picture", "random public pictures"}
    folder = Path("pictures")
    folder.mkdir()
    for place in range(3):
        Image.fromarray(np.full((8, 8), 80 * place, dtype=np.uint8)).save(folder / f"{place}.png")
    mirage(*QUICK, f"public={folder}")
    assert "3 public pictures" in summary()["threat_model"]


def test_an_interrupted_attack_leaves_no_folder_and_the_same_command_goes_on(here: Path, mirage, monkeypatch, capsys):
    mirage(*QUICK, "name=whole")
    judge, calls = descent._judge, []

    def interrupted(*given) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        judge(*given)

    monkeypatch.setattr(descent, "_judge", interrupted)
    with pytest.raises(SystemExit) as stopped:
        mirage(*QUICK, "name=halves")
    assert stopped.value.code == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not Path("results/halves").exists()
    mirage(*QUICK, "name=halves")
    assert len(calls) == 3  # the second half alone
    first, second = (Path(f"results/{name}/reconstruction.safetensors").read_bytes() for name in ("whole", "halves"))
    assert first == second
    assert sorted(path.name for path in Path("results").iterdir()) == ["halves", "whole"]


def test_a_folder_that_is_there_keeps_what_it_holds(here: Path, mirage):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("of my own")
    mirage(*QUICK, "out=mine")
    assert sorted(path.name for path in Path("mine").iterdir()) == sorted([*FILES, "notes.txt"])


@pytest.mark.parametrize("pictures", [2, 5])
def test_an_unknown_rate_costs_no_label_of_a_batch(pictures, here: Path, mirage):
    make(pictures=pictures)
    state = load_file("U.safetensors")
    save_file({name: 0.03 * value for name, value in state.items()}, "U.safetensors")  # a rate of 0.003
    case = case_of(read([f"{name}={value}" for name, value in (USUAL | {"batch_size": pictures}).items()]))
    truth = load_file("T.safetensors")["labels"].sort().values
    assert len(set(truth.tolist())) > 1
    assert infer_labels(case.updates, case.knowledge)[0].tolist() == truth.tolist()
    rates = 0.03 * state["3.bias"] / case.updates.moved["3.bias"][0]
    torch.testing.assert_close(rates, torch.full((10,), 0.003), rtol=0.05, atol=0)


def test_local_epochs_are_simulated(here: Path, mirage):
    mirage(*QUICK, "attack=auto", "lr=0.1", "steps=2", "epochs=2", batch_size="2")
    assert summary()["attack"] == "simulated local steps"
    assert "2 x 2 local steps" in summary()["threat_model"]


def test_a_part_of_the_model_is_enough_where_that_is_said(here: Path, mirage):
    state = load_file("U.safetensors")
    save_file({name: state[name] for name in ("3.weight", "3.bias")}, "head.safetensors")
    given = USUAL | {"update": "head.safetensors", "partial": "true"}
    case = case_of(read([f"{name}={value}" for name, value in given.items()]))
    truth = load_file("T.safetensors")
    assert misfit(case, truth["images"].unsqueeze(0), truth["labels"].unsqueeze(0)).item() < 1e-6
    mirage(*QUICK, "partial=true", update="head.safetensors")
    assert summary()["labels"] == load_file("T.safetensors")["labels"].tolist()


@pytest.mark.heavy
def test_one_picture_comes_back_from_a_file_through_the_command(here: Path):
    command = [sys.executable, "-m", "experiments.attack_update"]
    usual = [f"{name}={value}" for name, value in USUAL.items()]
    quick = ["attack=inverting_gradients", "attack.iterations=600", "attack.restarts=2", "backend=vmap"]
    more = [*quick, "truth=T.safetensors"]
    done = subprocess.run([*command, *usual, *more], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found, truth = load_file("results/own_update/reconstruction.safetensors"), load_file("T.safetensors")
    assert psnr(found["images"], truth["images"])[0] > 20
    assert found["labels"].tolist() == truth["labels"].tolist()
    assert summary()["trust"]["words"].endswith("and 2 of 2 restarts came to the same.")
    assert Path("results/own_update/page.html").stat().st_size > 3000


def test_help_lists_every_option(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attack_update.py", "--help"])
    attack_update.main()
    printed = capsys.readouterr().out
    for option in ("update_is: difference", "shape: ???", "truth: null", "attack: auto"):
        assert option in printed


# What cannot be used


def spoil(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(f"{name}.safetensors")), f"{name}2.safetensors")


def spoiled() -> None:
    """Files that are wrong each in one way."""
    spoil("U", lambda state: {f"x{name}": value for name, value in state.items()})
    Path("U2.safetensors").rename("names.safetensors")
    spoil("U", lambda state: state | {"1.bias": torch.zeros(7)})
    Path("U2.safetensors").rename("shapes.safetensors")
    spoil("U", lambda state: state | {"1.bias": state["1.bias"] * torch.nan})
    Path("U2.safetensors").rename("nan.safetensors")
    spoil("G", lambda state: state | {"1.bias": state["1.bias"] + torch.inf})
    Path("G2.safetensors").rename("inf.safetensors")
    spoil("U", lambda state: {name: 0 * value for name, value in state.items()})
    Path("U2.safetensors").rename("zero.safetensors")
    spoil("U", lambda state: {"3.bias": state["3.bias"]})
    Path("U2.safetensors").rename("head.safetensors")
    Path("damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    np.savez("pairs.npz", images=np.zeros((2, 8, 8), dtype=np.uint8))
    np.savez("large.npz", images=np.zeros((1, 9, 9), dtype=np.uint8))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["update=names.safetensors"], "update does not fit the model: 4 missing (1.weight, 1.bias, 3.weight, ...)"),
        (["update=shapes.safetensors"], "1.bias is [7], and in the model [32]"),
        (["update=nan.safetensors"], "update holds NaN or infinite values, first in 1.bias"),
        (["global=inf.safetensors"], "global holds NaN or infinite values, first in 1.bias"),
        (["update=zero.safetensors"], "a difference of zeros"),
        (["update=zero.safetensors", "update_is=gradient"], "a gradient of zeros"),
        (["update=G.safetensors", "update_is=model"], "the update equals the global model"),
        (["update=N.safetensors"], "looks like a whole model; set update_is=model"),
        (["update_is=model"], "is it a difference?"),
        (["update=head.safetensors"], "set partial=true"),
        (["update=missing.safetensors"], "update is missing.safetensors, which is not a file"),
        (["update=damaged.safetensors"], "damaged or of another kind"),
        (["update=U.pt"], "a pickle, which can run code when read; convert it with: python -c"),
        (["update=own_nets.py"], "one of the kinds .safetensors, .npz"),
        (["update_is=delta"], "update_is is 'delta'; allowed: difference, gradient, model"),
        (["update_is=gradient", "lr=0.1"], "has no rate"),
        (["batch_size=0"], "batch_size is 0; it must be a whole number at least 1"),
        (["batch_size=-2"], "batch_size is -2"),
        (["batch_size=two"], "batch_size is 'two'"),
        (["batch_size=4", "steps=3", "lr=0.1"], "cannot be split over 3 steps"),
        (["batch_size=4", "steps=2"], "give lr="),
        (["labels=[1,2]"], "labels has 2 entries for batch_size=1"),
        (["labels=[10]"], "labels has 10; the model has 10 classes"),
        (["labels=[a]"], "labels is ['a']"),
        (["lr=0"], "lr is 0; it must be a number above 0"),
        (["shape=[8,8]"], "shape is [8, 8]; it must be [channels,height,width]"),
        (["shape=64"], "shape is 64"),
        (["shape=[8,8,1]"], "1 or 3 channels, which come first"),
        (["shape=[1,9,9]"], "cannot take pixels [1, 1, 9, 9]"),
        (["classes=7"], "it must give logits [2, 7]"),
        (["model=own_nowhere:net"], "own_nowhere cannot be imported"),
        (["model=own_nets"], "model is 'own_nets'; it must be package.module:factory"),
        (["model=own_nets:text"], "returned str"),
        (["model=own_nets:counting"], "stacked by torch.func.vmap (RuntimeError"),
        (["options.unit=3"], "come from options"),
        (["options.units=16"], "1.weight is [32, 64], and in the model [16, 64]"),
        (["mean=[0.5,0.5]"], "mean is [0.5, 0.5]"),
        (["updat=U.safetensors"], "there is no option updat; allowed: update, update_is,"),
        (["updat=U.safetensors"], "did you mean update?"),
        (["shape.x=3"], "shape has no fields"),
        (["attack=dgl"], "did you mean 'dlg'?"),
        (["attack=[dlg,dlg]"], "name each attack once"),
        (["attack.restart=3"], "did you mean 'restarts'?"),
        (["attack.restarts=0"], "attack.restarts is 0; it must be a whole number at least 1"),
        (["attack.distance=3"], "as in attack.distance.NAME"),
        (["attack.distance.mesure=squared"], "did you mean 'measure'?"),
        (["attack=all", "attack.distance.measure=squared"], "give lr="),
        (["attack=grad_inversion", "attack.restarts=1"], "attack.group compares restarts; give at least two"),
        (["attack.iterations=many"], "is 'many'; it must be a whole number"),
        (["attack=dlg"], "attack=dlg compares the lengths of updates; give lr="),
        (["attack.distance.measure=squared", "attack=idlg"], "give lr="),
        (["device=gpu"], "device is 'gpu'"),
        (["backend=gpu"], "backend is 'gpu'"),
        (["partial=1"], "partial is 1; allowed: true, false"),
        (["truth=pairs.npz"], "truth has 2 pictures, and batch_size is 1"),
        (["truth=large.npz"], "pictures of 1x9x9; shape=1x8x8"),
        (["public=nowhere"], "public is nowhere, which is neither a file nor a folder"),
        (["nonsense"], "not of the form option=value"),
        (["lr=0.1,0.2"], "one update is attacked at a time"),
        (["name=[a"], "the value of name cannot be read"),
    ],
)
def test_a_bad_input_is_one_line_with_exit_code_2_and_nothing_written(arguments, says, here, mirage, capsys):
    spoiled()
    there = set(here.iterdir())
    with pytest.raises(SystemExit) as stopped:
        mirage(*arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("mirage: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert printed.out == ""
    assert set(here.iterdir()) - {here / "__pycache__"} == there


def test_labels_that_cannot_be_inferred_are_asked_for(here, mirage, capsys):
    make("biasless")
    with pytest.raises(SystemExit):
        mirage(*QUICK, model="own_nets:biasless")
    assert "attack=inverting_gradients infers labels from the gradient of an output bias" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        mirage(*QUICK, "lr=0.1", "attack=[dlg,idlg]", model="own_nets:biasless")
    assert "attack=idlg infers labels" in capsys.readouterr().err
    assert not Path("results").exists()
    mirage(*QUICK, "lr=0.1", "attack=all", model="own_nets:biasless")
    assert set(summary()["attacks"]) == {"R-GAP"}  # which needs no output bias, so that nothing is searched for
    mirage(*QUICK, "labels=[3]", model="own_nets:biasless")
    assert summary()["labels"] == [3]


@pytest.mark.parametrize("option", list(USUAL))
def test_a_missing_option_is_named(option, here, mirage, capsys):
    with pytest.raises(SystemExit) as stopped:
        mirage(**{option: None})
    assert stopped.value.code == 2
    assert f"{option} has no value; give it on the command line, as in {option}=..." in capsys.readouterr().err


def test_debug_shows_the_traceback(here, mirage, capsys):
    with pytest.raises(SystemExit) as stopped:
        mirage("debug=true", batch_size="0")
    assert stopped.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_every_preset_that_is_offered_can_be_made():
    assert [make().name for make in PRESETS.values()]
