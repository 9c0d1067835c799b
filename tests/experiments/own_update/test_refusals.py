"""What cannot be attacked comes to a line with exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.own_update.attacks import PRESETS
from tests.experiments.conftest import refusal
from tests.experiments.own_update.deployment import QUICK, USUAL, make, summary


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
    assert says in refusal(capsys, mirage, *arguments)
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
