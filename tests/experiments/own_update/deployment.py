"""A deployment: files of a model, of the update that a client sent, and of the pictures behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

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


def summary(folder: str = "results/own_update") -> dict:
    return json.loads((Path(folder) / "summary.json").read_text())
