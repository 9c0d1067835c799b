"""One problem of gradient matching for every contender, and the lines by which they are asked.

A contender is a program that stays: it answers each request, a line of JSON on its input, with a line of JSON, so that
contenders in environments of their own can take turns. `Contender` starts and asks one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_core.architectures import CNN, ConvNet, LeNet
from fl_core.models import initial_parameters

Model = Literal["lenet", "cnn", "convnet"]
CLASSES = 10
SHAPES: dict[str, tuple[int, int, int]] = {"lenet": (3, 32, 32), "cnn": (3, 8, 8), "convnet": (3, 32, 32)}
_MAKE: dict[str, Callable[[], nn.Module]] = {
    "lenet": lambda: LeNet(SHAPES["lenet"], CLASSES),
    "cnn": lambda: CNN(SHAPES["cnn"], CLASSES, width=8, halve="stride"),
    "convnet": lambda: ConvNet(SHAPES["convnet"], CLASSES, width=16),
}
LR = {"adam": 0.1, "lbfgs": 1.0}


@dataclass(frozen=True, kw_only=True)
class Request:
    """So many iterations from `restarts` starts on each of `victims` single pictures, labels known.

    `measure` is `cosine` with `total_variation`, or `squared` without; `optimizer` is Adam on the gradient's sign with
    pixels kept in [0, 1], or L-BFGS, whose iterations are evaluations of the gradient. `check` asks for the objective
    and its gradient at the first start instead.
    """

    model: Model
    measure: Literal["cosine", "squared"] = "cosine"
    optimizer: Literal["adam", "lbfgs"] = "adam"
    total_variation: float = 1e-3
    victims: int = 1
    restarts: int = 1
    iterations: int = 100
    threads: int = 1
    device: str = "cpu"
    check: bool = False


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model with its parameters, pictures [victims, 1, ...] drawn in [0, 1], labels [victims, 1] and gradients."""

    model: nn.Module
    labels: Tensor
    gradients: list[list[Tensor]]
    start: Tensor


def problem_of(request: Request) -> Problem:
    """Always the same for the same model; `start` [1, ...] is where an attack begins that draws no start itself."""
    model = _MAKE[request.model]()
    model.load_state_dict(initial_parameters(model, 0))
    model = model.to(request.device)
    draw = torch.Generator().manual_seed(0)
    start = torch.rand(1, *SHAPES[request.model], generator=draw)
    pictures = torch.rand(request.victims, 1, *SHAPES[request.model], generator=draw).to(request.device)
    labels = torch.randint(0, CLASSES, (request.victims, 1), generator=draw).to(request.device)
    losses = [F.cross_entropy(model(picture), label) for picture, label in zip(pictures, labels, strict=True)]
    gradients = [list(torch.autograd.grad(loss, list(model.parameters()))) for loss in losses]
    return Problem(model=model, labels=labels, gradients=gradients, start=start.to(request.device))


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given, so that a clock tells the truth."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


Answer = dict[str, Any]
"""`seconds` and `iterations`, of all restarts together; for a check, `objective` and `gradient`."""


def serve(play: Callable[[Request], Answer]) -> None:
    """Answer requests until the input ends. Whatever else is printed goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = Request(**json.loads(line))
        torch.set_num_threads(request.threads)
        answers.write(json.dumps(play(request)) + "\n")
        answers.flush()


class Contender:
    """`peer` in a process of its own, run by the interpreter `python`."""

    def __init__(self, peer: str, python: str | Path = sys.executable) -> None:
        self.peer = peer
        command = [str(python), "-m", f"{__package__}.{peer}"]
        pipe = subprocess.PIPE
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe would fill up while nobody reads it
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._said, text=True)

    def ask(self, request: Request) -> None:
        """Send a request; `answer` waits for what comes of it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(request)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says why

    def answer(self) -> Answer:
        """Raises RuntimeError with the last line that the process said where it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip() or "it said nothing"
            raise RuntimeError(f"{self.peer} ended: {said.splitlines()[-1][:300]}")
        found: Answer = json.loads(line)
        return found

    def close(self) -> None:
        """Let the process end, by closing what it reads, and wait until it has."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            self._process.wait()
