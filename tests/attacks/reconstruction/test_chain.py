"""What is a chain of layers, and what is refused as none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.reconstruction.chain import Activation, chain_of
from fl_core.architectures import CNN, MLP, ConvNet, LeNet, McMahanCNN
from fl_core.errors import InputError

SHAPE, CLASSES = (3, 8, 8), 5


def replayed(model: nn.Module, picture: Tensor) -> Tensor:
    """The logits by the chain alone."""
    chain = chain_of(model, SHAPE, "the test")
    hidden = chain.scale * picture.flatten() + chain.shift
    functions = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "identity": lambda value: value}
    for link in chain.links:
        hidden = link.layer(hidden.view(1, *link.inputs)).flatten()
        slope = link.activation.slope
        kinked = lambda value, slope=slope: torch.where(value > 0, value, slope * value)  # noqa: E731
        hidden = functions.get(link.activation.kind, kinked)(hidden)
    return hidden


class Normalised(nn.Module):
    """Pixels by a mean and deviation of each channel, and layers inside a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(36, CLASSES))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.body((pixels - self.mean) / 0.25)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head((pixels + self.conv(pixels)).flatten(1))


class Branching(Residual):
    def forward(self, pixels: Tensor) -> Tensor:
        return self.head((pixels if pixels.sum() > 0 else self.conv(pixels)).flatten(1))


class Trained(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.conv(pixels * self.gain).view(pixels.shape[0], -1))


class Twice(Residual):
    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(pixels)).flatten(1))


@pytest.mark.parametrize(
    "model",
    [
        LeNet(SHAPE, CLASSES),
        LeNet(SHAPE, CLASSES, activation="tanh"),
        CNN(SHAPE, CLASSES, width=4, halve="stride"),
        MLP(SHAPE, CLASSES, hidden=(7, 6), activation="leaky_relu"),
        MLP(SHAPE, CLASSES, hidden=()),
        Normalised(),
    ],
    ids=["lenet", "tanh", "cnn", "mlp", "softmax regression", "normalised"],
)
def test_the_chain_alone_gives_the_model_s_logits(model: nn.Module):
    picture = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(replayed(model.double(), picture), model(picture).flatten(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (CNN(SHAPE, CLASSES, width=4), "max_pool is none"),
        (McMahanCNN(SHAPE, CLASSES, width=1), "max_pool is none"),
        (CNN(SHAPE, CLASSES, width=4, halve="stride", norm="group"), r"GroupNorm \(norm1\) is none"),
        (ConvNet((3, 9, 9), CLASSES, width=4), r"GroupNorm \(norms.0\) is none"),
        (Residual(), "add takes more than"),
        (Branching(), "cannot follow this model"),
        (Trained(), "mul uses gain"),
        (Twice(), "conv is used again"),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(216, 5)), "0 has 3 groups"),
        (nn.Sequential(nn.Conv2d(3, 6, 3, padding_mode="reflect", padding=1)), "padded otherwise"),
        (nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.Linear(192, 5)), "0 works on parts"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Sigmoid()), "last operation is a fully connected"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Softmax(1)), r"Softmax \(2\) is none"),
    ],
)
def test_what_is_no_chain_is_refused_by_the_operation_s_name(model: nn.Module, why: str):
    shape = (3, 9, 9) if isinstance(model, ConvNet) else SHAPE
    with pytest.raises(InputError, match=why) as refused:
        chain_of(model, shape, "R-GAP")
    assert "\n" not in str(refused.value)


def test_a_trial_run_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).train()
    with pytest.raises(InputError, match=r"BatchNorm2d \(1\) is none"):
        chain_of(model, SHAPE, "R-GAP")
    assert model.training
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("kind", ["identity", "relu", "leaky_relu", "sigmoid", "tanh"])
def test_inverses_and_derivatives_are_the_activation_s_to_the_last_digits(kind: str):
    functions = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "identity": lambda value: value}
    function = functions.get(kind, lambda value: nn.functional.leaky_relu(value, 0.2))
    activation = Activation(kind=kind, slope={"relu": 0.0, "leaky_relu": 0.2}.get(kind, 1.0))
    entered = torch.linspace(-3, 3, 30, dtype=torch.float64).requires_grad_()
    left = function(entered)
    slopes = torch.autograd.grad(left.sum(), entered)[0]
    torch.testing.assert_close(activation.derivative(left.detach()), slopes, rtol=1e-13, atol=0)
    kept = entered.detach().clamp(min=0) if kind == "relu" else entered.detach()
    torch.testing.assert_close(activation.inverse(left.detach()), kept, rtol=1e-13, atol=0)
