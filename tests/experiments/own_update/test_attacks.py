"""Which attacks an update is given to, and what each is told of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from attacks.pictures import psnr
from attacks.reconstruction import fitting as descent
from attacks.reconstruction.labels import infer_labels
from attacks.reconstruction.simulation import observed_moments
from experiments.own_update.case import case_of
from experiments.own_update.options import read
from experiments.own_update.trust import misfit
from fl_core.data import digits
from tests.experiments.own_update.deployment import FILES, QUICK, USUAL, make, summary


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
