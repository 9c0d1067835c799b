"""A model of one's own is taken by its path, and refused in one line where it cannot be trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fl_core.errors import InputError
from fl_core.factories import from_path
from fl_core.models import initial_parameters

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes, width=5):
        super().__init__()
        self.body = nn.Linear(shape[0] * shape[1] * shape[2], width)
        self.head = nn.Linear(width, classes)
    def forward(self, pixels):
        return self.head(self.body(pixels.flatten(1)).relu())

class Raw(Net):
    def __init__(self, **given):
        super().__init__((1, 4, 4), 3)
        self.scale = nn.Parameter(torch.ones(1))

class Normed(Net):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.norm = nn.BatchNorm1d(16)
    def forward(self, pixels):
        return super().forward(self.norm(pixels.flatten(1))) + 0 * torch.rand(1)

def linear(classes, *, bias): return nn.Sequential(nn.Flatten(), nn.Linear(16, classes, bias))
def fixed(outputs=3): return nn.Sequential(nn.Flatten(), nn.Linear(16, outputs))
def dropping(): return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
def flat(): return nn.Linear(16, 3)
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
def frozen(): return fixed().requires_grad_(False)
def empty(): return nn.Flatten()
def nothing(): pass
def broken(): raise RuntimeError("no\\nluck")
def infinite():
    model = fixed()
    model[1].reset_parameters = lambda: None
    nn.init.constant_(model[1].weight, float("inf"))
    return model
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, which an installed command would not find by itself."""
    (tmp_path / "own_models.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import no_such_thing\n")
    (tmp_path / "own_script.py").write_text("raise SystemExit(1)\n")
    path = [entry for entry in sys.path if entry not in ("", str(Path.cwd()))]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", path)
    yield "own_models"
    for name in ("own_models", "own_broken", "own_script"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("Net", None, 16 * 5 + 5 + 5 * 3 + 3),
        ("Net", {"width": 2}, 16 * 2 + 2 + 2 * 3 + 3),
        ("linear", {"bias": False}, 16 * 3),
        ("fixed", {}, 16 * 3 + 3),
    ],
)
def test_a_factory_gets_shape_and_classes_where_it_names_them_and_the_options(own, name, options, parameters):
    model = from_path((1, 4, 4), 3, f"{own}:{name}", options)
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert initial_parameters(model, 0).keys() == dict(model.named_parameters()).keys()


def test_the_check_of_a_model_leaves_its_statistics_and_torch_s_generator_alone(own):
    torch.manual_seed(3)
    model = from_path((1, 4, 4), 3, f"{own}:Normed")
    after = torch.rand(1)
    assert model.norm.running_mean.eq(0).all()
    assert model.norm.num_batches_tracked == 0
    torch.manual_seed(3)
    sys.modules[own].Normed((1, 4, 4), 3)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("own_models", {}, r"must be package\.module:factory"),
        ("own_models:Net:x", {}, r"must be package\.module:factory"),
        ("own models:Net", {}, r"must be package\.module:factory"),
        (".own_models:Net", {}, r"must be package\.module:factory"),
        (None, {}, r"must be package\.module:factory"),
        ("own_nowhere:Net", {}, r"own_nowhere cannot be imported \(ModuleNotFoundError: No module named 'own_nowhere'"),
        ("own_broken:Net", {}, r"own_broken cannot be imported \(ModuleNotFoundError: No module named 'no_such_thing'"),
        ("own_script:Net", {}, r"own_script cannot be imported \(SystemExit: 1\)"),
        ("own_models:Nett", {}, r"own_models has no 'Nett'"),
        ("own_models:number", {}, r"own_models cannot call its 'number'"),
        ("own_models:broken", {}, r"failed \(RuntimeError: no luck\)"),
        ("own_models:Net", {"wide": 3}, r"failed \(TypeError: .*'wide'.*come from model\.options"),
        ("own_models:Net", {"classes": 4}, r"is given classes by the data; take classes out of model\.options"),
        ("own_models:linear", {}, r"failed \(TypeError: .*'bias'.*come from model\.options"),
        ("own_models:nothing", {}, r"returned NoneType; it must return a torch\.nn\.Module"),
        ("own_models:empty", {}, r"a model without parameters"),
        ("own_models:Raw", {}, r"Raw has parameters but no reset_parameters\(\)"),
        ("own_models:lazy", {}, r"1 \(LazyLinear\) is lazy"),
        ("own_models:frozen", {}, r"1 \(Linear\) is frozen"),
        ("own_models:flat", {}, r"cannot take pixels \[2, 1, 4, 4\] \(RuntimeError"),
        ("own_models:fixed", {"outputs": 5}, r"to \[2, 5\]; it must give logits \[2, 3\]"),
        ("own_models:infinite", {}, r"logits that are not finite"),
        ("own_models:dropping", {}, r"other logits for the same pixels"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused_in_one_line_that_names_the_field(own, factory, options, message):
    with pytest.raises(InputError, match=message) as caught:
        from_path((1, 4, 4), 3, factory, options)
    assert str(caught.value).startswith("model.factory")
    assert "\n" not in str(caught.value)
