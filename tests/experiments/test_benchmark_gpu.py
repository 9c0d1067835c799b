"""The GPU benchmark: the program itself, tried without one, and what it says where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from experiments.benchmarks import gpu
from fl_core.architectures import MLP


def pictures(file: Path, count: int, size: tuple[int, int], mode: str) -> str:
    """A parquet file of grey or coloured pictures, each of its label's brightness."""
    rows = []
    for number in range(count):
        value = 25 * (number % 10)
        picture = Image.new(mode, size, value if mode == "L" else (value, 255 - value, 90))
        path = file.with_suffix(".png")
        picture.save(path)
        rows.append({"bytes": path.read_bytes(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": [number % 10 for number in range(count)]}), file)
    return str(file)


@pytest.mark.heavy
def test_a_quick_try_on_the_cpu_writes_every_section(tmp_path: Path):
    grey = {name: pictures(tmp_path / f"{name}.parquet", 200, (28, 28), "L") for name in ("train", "test")}
    colour = {name: pictures(tmp_path / f"{name}.parquet", 60, (32, 32), "RGB") for name in ("cifar", "cifar-test")}
    options = [part for name, file in (grey | colour).items() for part in (f"--{name}", file)]
    gpu.main([*options, "--quick", "--device", "cpu", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {(row["width"], row["backend"], row["precision"]) for row in record["rounds"]} == {
        (width, backend, precision)
        for width in (4, 16)
        for backend in ("vmap", "loop")
        for precision in ("float32", "bfloat16")
    }
    assert len(record["shadows"]["accuracy"]) == 2
    assert not record["shadows"]["reached"]
    page = (tmp_path / "gpu.md").read_text()
    assert page == gpu.markdown(record)
    assert "missed" in page


def test_a_step_s_operations_are_counted():
    shape = (1, 4, 4)
    # 16x8 and 8x3 products forward; backward both kernels' gradients and the second layer's inputs'.
    assert gpu.step_operations(MLP(shape, 3, hidden=(8,)), shape) == 2 * (2 * 16 * 8 + 3 * 8 * 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "cpu"], "it goes with --quick"),
        (["--quick", "--device", "cpu"], "nothing to measure"),
        (["--quick", "--device", "cpu", "--train", "a"], "--train with --test"),
        (["--quick", "--device", "cpu", "--train", "a", "--test", "b"], "a is not a file"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(options: list[str], says: str, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main([*options, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--cifar", "a", "--cifar-test", "b", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err
