"""What a GPU makes of the engine: rounds of FedAvg on MNIST, and 256 shadow models of CIFAR-10 on half the data.

    python -m experiments.benchmarks.gpu --train mnist-train.parquet --test mnist-test.parquet \
        --cifar cifar10-train.parquet --cifar-test cifar10-test.parquet

Writes `gpu.json` and `gpu.md` to `--out`, each section as it is done, with the arithmetic that was done a second beside
that of the chip's own matrix products. The shadows are replicas of a federation with one client: a round is an epoch,
and the learning rate follows the cosine over all of them. Without a GPU there is nothing to measure: exit code 2.
`--quick --device cpu` takes a few small steps of everything, to try the program itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from defenses.base import Defense
from experiments.benchmarks.ceiling import round_operations
from experiments.benchmarks.peers.mirage_peer import federation as mnist_federation
from experiments.benchmarks.peers.problem import LR, Settings, problem_of
from experiments.store import circumstances
from experiments.terminal import Parser, command, one_line_errors
from fl_core.algorithms.fedavg import FedAvg
from fl_core.augmentation import FlipAndShift
from fl_core.checkpoint import write_json, write_text
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.federation import Federation, federate, rounds
from fl_core.loaders import parquet
from fl_core.models import PRECISIONS, ClassificationLosses, Precision, accuracy, variables_of
from fl_core.residual import ResNet, WideResNet
from fl_core.sampling import Shuffled
from fl_core.schedules import Cosine
from fl_core.state import State

MODELS: dict[str, Callable[[tuple[int, int, int]], nn.Module]] = {
    "resnet8": lambda shape: ResNet(shape, 10, depth=8, width=16),
    "resnet8, width 64": lambda shape: ResNet(shape, 10, depth=8, width=64),
    "wrn16_4": lambda shape: WideResNet(shape, 10, depth=16, widen=4),
    "resnet18": lambda shape: ResNet(shape, 10, depth=18, width=64),
}
BATCH = 128
GOAL_SECONDS, GOAL_ACCURACY = 600.0, 0.9


def product_rate(device: torch.device, precision: Precision, side: int) -> float:
    """Floating-point operations a second of square matrix products."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.rand(side, side, device=device, dtype=kind) for _ in range(2))
    for _ in range(3):
        torch.mm(left, right)
    _wait(device)
    began, times = time.perf_counter(), 20
    for _ in range(times):
        torch.mm(left, right)
    _wait(device)
    return 2 * side**3 * times / (time.perf_counter() - began)


def laps(federation: Federation, device: torch.device) -> Iterator[tuple[float, State]]:
    """Seconds of each round, and the state after it."""
    began = time.perf_counter()
    for state in rounds(federation):
        _wait(device)
        yield time.perf_counter() - began, state
        began = time.perf_counter()


def measure_rounds(train: str, test: str, device: torch.device, count: int) -> list[dict[str, Any]]:
    """Seconds a round of FedAvg on MNIST by width, backend and precision, the first two rounds apart."""
    found = []
    for width in LR:
        settings = Settings(train=train, test=test, width=width, rounds=count, warmup=2)
        problem = problem_of(settings)
        for backend in ("vmap", "loop"):
            for precision in PRECISIONS:
                plain = mnist_federation(problem, settings, backend)
                moved = replace(plain, data=plain.data.to(device), model=plain.model.to(device), precision=precision)
                played = list(laps(moved, device))
                seconds = [took for took, _ in played]
                right = float(accuracy(moved.model, played[-1][1].model, problem.test.to(device))[0])
                row = {"width": width, "backend": backend, "precision": precision, "warmup": seconds[:2]}
                found.append(row | {"seconds": seconds[2:], "accuracy": right, "operations": round_operations(width)})
                print(f"width {width}, {backend}, {precision}: {median(seconds[2:]):.4f} s a round", flush=True)
    return found


def step_operations(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """Floating-point operations of one picture's step, forward and backward."""
    variables = {name: value.requires_grad_() for name, value in variables_of(model).items()}
    device = next(model.parameters()).device
    images, labels = torch.zeros(2, *shape, device=device), torch.zeros(2, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(ClassificationLosses(model)(variables, images, labels).mean(), list(variables.values()))
    return float(counter.get_total_flops()) / 2


def measure_shadows(pool: ImageSet, test: ImageSet, device: torch.device, asked: argparse.Namespace) -> dict[str, Any]:
    """All shadow models on random halves of the pool: seconds an epoch, and each model's test accuracy at the end."""
    model = MODELS[asked.model](pool.shape).to(device)
    federation = federate(
        model,
        pool.to(device),
        clients=1,
        rounds=asked.epochs,
        replicas=asked.models,
        membership=0.5,
        algorithm=FedAvg(
            sampler=Shuffled(local_epochs=1, batch_size=BATCH),
            lr=asked.lr,
            momentum=0.9,
            weight_decay=5e-4,
            schedule=Cosine(),
        ),
        defense=Defense(),
        augmentation=FlipAndShift(),
        precision=asked.precision,
        backend=asked.backend,
    )
    seconds: list[float] = []
    for took, state in laps(federation, device):
        seconds.append(took)
        print(f"epoch {state.round}: {took:.1f} s", flush=True)
    each = accuracy(model, state.model, test.to(device)).tolist()
    examples = int(federation.members.sum()) * asked.epochs
    return {
        "model": asked.model, "models": asked.models, "epochs": asked.epochs, "precision": asked.precision,
        "backend": asked.backend, "lr": asked.lr, "seconds": seconds, "accuracy": each,
        "operations": step_operations(model, pool.shape) * examples,
        "reached": sum(seconds) <= GOAL_SECONDS and sum(each) / len(each) >= GOAL_ACCURACY and asked.models == 256,
    }  # fmt: skip


def markdown(record: Mapping[str, Any]) -> str:
    """The page for people, from the JSON record alone."""
    rate, hardware = record["product_rates"], record["measured"]["hardware"]
    lines = [
        "# The engine on a GPU\n",
        f"On {hardware.get('gpu', 'no GPU')}, {hardware['processor']}, {hardware['cores']} cores; torch "
        f"{record['measured']['versions']['torch']}. Matrix products: "
        + ", ".join(f"{name} {rate[name] / 1e12:.1f} TFLOP/s" for name in PRECISIONS)
        + f".\n\nMade by `{record['measured']['command']}` at revision {record['measured']['revision']}.\n",
    ]
    if "rounds" in record:
        lines += [
            "## FedAvg on MNIST, 100 clients × 600 pictures, cohort 10, batch 10, one epoch\n",
            "| width | backend | precision | seconds a round | accuracy | of the products' speed |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in record["rounds"]:
            took = median(row["seconds"])
            share = row["operations"] / took / rate[row["precision"]]
            spread = f"{took:.4f} [{min(row['seconds']):.4f}, {max(row['seconds']):.4f}]"
            cells = [row["width"], row["backend"], row["precision"], spread, f"{row['accuracy']:.3f}", f"{share:.2%}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    if "shadows" in record:
        one = record["shadows"]
        mean = sum(one["accuracy"]) / len(one["accuracy"])
        share = one["operations"] / sum(one["seconds"]) / rate[one["precision"]]
        lines += [
            "\n## Shadow models of CIFAR-10 on half the data\n",
            f"{one['models']} × {one['model']}, {one['epochs']} epochs, {one['precision']}, backend {one['backend']}: "
            f"{sum(one['seconds']):.0f} s; test accuracy {mean:.3f} [{min(one['accuracy']):.3f}, "
            f"{max(one['accuracy']):.3f}]; {share:.1%} of the products' speed. The goal, 256 models at "
            f"{GOAL_ACCURACY:.0%} in {GOAL_SECONDS:.0f} s: {'reached' if one['reached'] else 'missed'}.",
        ]
    return "\n".join(lines) + "\n"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.benchmarks.gpu", __doc__)
    parser.add_argument("--train", help="MNIST's training pictures, a parquet file; left out, so are the rounds")
    parser.add_argument("--test", help="its test pictures")
    parser.add_argument("--cifar", help="CIFAR-10's training pictures, a parquet file; left out, so are the shadows")
    parser.add_argument("--cifar-test", help="its test pictures")
    parser.add_argument("--models", type=int, default=256, help="shadows")
    parser.add_argument("--model", choices=list(MODELS), default="wrn16_4", help="of the shadows")
    parser.add_argument("--epochs", type=int, default=20, help="that a shadow is trained")
    parser.add_argument("--lr", type=float, default=0.1, help="of the shadows, at first")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="of the shadows' training")
    parser.add_argument("--backend", choices=("vmap", "loop"), default="vmap", help="how lanes are trained")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds of FedAvg")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where; cpu only with --quick")
    parser.add_argument("--quick", action="store_true", help="everything small")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder for what is written")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --quick --device cpu tries the program without one")
    if asked.device == "cpu" and not asked.quick:
        parser.error("--device cpu measures no GPU; it goes with --quick")
    if (asked.train is None) != (asked.test is None) or (asked.cifar is None) != (asked.cifar_test is None):
        parser.error("training and test pictures go together: --train with --test, --cifar with --cifar-test")
    if asked.train is None and asked.cifar is None:
        parser.error("nothing to measure: give --train and --test, --cifar and --cifar-test, or all four")
    device = torch.device(asked.device)
    limit: int | None = None
    if asked.quick:
        asked.models, asked.epochs, asked.rounds, asked.model, limit = 2, 1, 1, "resnet8", 60
    side = 256 if asked.quick else 8192
    record: dict[str, Any] = {
        "measured": {**circumstances(device), "command": command()},
        "product_rates": {precision: product_rate(device, precision, side) for precision in PRECISIONS},
    }
    try:
        if asked.train is not None:
            record["rounds"] = measure_rounds(asked.train, asked.test, device, asked.rounds)
            write_json(asked.out / "gpu.json", record)
        if asked.cifar is not None:
            pool, test = (_whole(file, limit) for file in (asked.cifar, asked.cifar_test))
            record["shadows"] = measure_shadows(pool, test, device, asked)
            write_json(asked.out / "gpu.json", record)
    except InputError as error:
        parser.error(str(error))
    write_text(asked.out / "gpu.md", markdown(record))
    print(f"wrote {asked.out / 'gpu.json'} and gpu.md")


def _whole(file: str, limit: int | None) -> ImageSet:
    """All pictures of a file, the held-out part among them: no test part belongs to it."""
    kept, rest = parquet(file, limit=limit)
    return replace(kept, images=torch.cat([kept.images, rest.images]), labels=torch.cat([kept.labels, rest.labels]))


if __name__ == "__main__":
    with one_line_errors():
        main()
