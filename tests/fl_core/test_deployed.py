"""A deployment's files and Flower's objects become the model's variables, or are refused in one line."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fl_core.deployed import deployed_model, fitting, from_flower, read_state
from fl_core.errors import InputError


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def variables(model: nn.Module) -> dict[str, Tensor]:
    """In the order parameters, then statistics."""
    buffers = {name: value for name, value in model.named_buffers() if "tracked" not in name}
    return {name: value.detach() for name, value in model.named_parameters()} | buffers


class Record:
    """As Flower's ArrayRecord: a mapping whose arrays are asked for together."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)

    def keys(self):
        return self.arrays.keys()

    def to_numpy_ndarrays(self) -> list[np.ndarray]:
        return list(self.arrays.values())


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_all_formats_give_the_same_variables(tmp_path: Path):
    model = net()
    model[1].running_mean += 0.3
    state, arrays = model.state_dict(), arrays_of(model)
    save_file(state, tmp_path / "s.safetensors")
    np.savez(tmp_path / "named.npz", **arrays)
    np.savez(tmp_path / "list.npz", *arrays.values())
    np.savez(tmp_path / "untracked.npz", *(value for name, value in arrays.items() if "tracked" not in name))
    for file in ("s.safetensors", "named.npz", "list.npz", "untracked.npz"):
        assert same(fitting(read_state(tmp_path / file, model, "global"), model, "global"), variables(model)), file


def test_ten_unnamed_arrays_and_more_keep_their_order(tmp_path: Path):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(7)))
    np.savez(tmp_path / "list.npz", *arrays_of(model).values())
    assert same(fitting(read_state(tmp_path / "list.npz", model, "global"), model, "global"), variables(model))


def old_parameters(arrays: Mapping[str, np.ndarray]) -> object:
    class Parameters:
        tensors: list[bytes] = []  # noqa: RUF012

    made = Parameters()
    for value in arrays.values():
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        made.tensors.append(buffer.getvalue())
    return made


@pytest.mark.parametrize(
    "make",
    [
        Record,
        lambda arrays: Record({str(place): value for place, value in enumerate(arrays.values())}),
        lambda arrays: list(arrays.values()),
        old_parameters,
    ],
    ids=["named record", "numbered record", "list", "parameters"],
)
def test_flowers_objects_give_the_same_variables(make):
    model = net()
    assert same(fitting(from_flower(make(arrays_of(model)), model), model, "update"), variables(model))


def test_flowers_own_array_records_are_read():
    app = pytest.importorskip("flwr.app")
    model = net()
    for record in (app.ArrayRecord(model.state_dict()), app.ArrayRecord(list(arrays_of(model).values()))):
        assert same(fitting(from_flower(record, model), model, "update"), variables(model))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("text", "str is no ArrayRecord, Parameters or list"),
        ([1, 2], "list is no ArrayRecord"),
        ([np.zeros(3)], "1 arrays without names; the model's state_dict has 9 .6 of them parameters"),
        ([np.array(["a"])], "holds <U1, no numbers"),
    ],
)
def test_what_flower_never_made_is_refused(record, says):
    with pytest.raises(InputError, match=says):
        from_flower(record, net())


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: without(state, "0.bias"), r"1 missing \(0\.bias\); set partial=true"),
        (lambda state: without(state, *list(state)[:2], "4.weight", "4.bias"), r"4 missing \(0.weight, 0.bias, 4"),
        (lambda state: state | {"head": torch.zeros(1)}, r"1 unexpected \(head\)"),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, r"have module\. before the model's"),
        (lambda state: state | {"0.bias": torch.zeros(5)}, r"0\.bias is \[5\], and in the model \[4\]"),
        (lambda state: state | {"0.bias": torch.full((4,), torch.nan)}, r"NaN or infinite values, first in 0\.bias"),
        (lambda state: state | {"0.bias": torch.full((4,), torch.inf)}, r"NaN or infinite values, first in 0\.bias"),
        (lambda state: without(state, *state), r"6 missing"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line_that_says_why(change, says):
    model = net()
    with pytest.raises(InputError, match=f"^update (does not fit the model|holds).*{says}") as caught:
        fitting(change(model.state_dict()), model, "update")
    assert "\n" not in str(caught.value)


def test_statistics_may_be_missing_and_a_part_may_be_sent_where_that_is_said():
    model = net()
    parameters = dict(model.named_parameters())
    assert list(fitting(parameters, model, "update")) == list(parameters)
    assert list(fitting({"4.bias": torch.ones(10)}, model, "update", partial=True)) == ["4.bias"]


def test_half_precision_becomes_the_models_own():
    model = net()
    found = fitting({name: value.half() for name, value in model.state_dict().items()}, model, "update")
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "pkl"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(ending, tmp_path: Path):
    torch.save(net().state_dict(), tmp_path / f"s.{ending}")
    with pytest.raises(
        InputError, match="a pickle, which can run code when read; convert it with: python -c"
    ) as caught:
        read_state(tmp_path / f"s.{ending}", net(), "update")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_a_damaged_file_is_named(ending, tmp_path: Path):
    path = tmp_path / f"s.{ending}"
    with pytest.raises(InputError, match=r"which is not a file"):
        read_state(path, net(), "update")
    path.write_bytes(b"no such thing")
    with pytest.raises(InputError, match=r"which is damaged or of another kind") as caught:
        read_state(path, net(), "update")
    assert "\n" not in str(caught.value)


def test_objects_in_an_npz_are_not_unpickled(tmp_path: Path):
    np.savez(tmp_path / "s.npz", weight=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="allow_pickle=False"):
        read_state(tmp_path / "s.npz", net(), "update")


# The model


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    code = (
        "import torch\n"
        "from torch import nn\n"
        "class Raw(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight = nn.Parameter(torch.eye(4)[:, :3].clone())\n"
        "    def forward(self, pixels): return pixels.flatten(1) @ self.weight\n"
        "def fixed(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\n"
        "def asks(classes): return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))\n"
        "def dropping(): return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))\n"
    )
    (tmp_path / "own_deployed.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_deployed", None)


def test_normalisation_is_undone_inside_and_names_stay(own):
    model, classes = deployed_model((1, 2, 2), None, "own_deployed:Raw", mean=[0.5], std=[0.25])
    pixels = torch.rand(5, 1, 2, 2)
    assert classes == 3
    assert list(model.state_dict()) == ["weight"]
    torch.testing.assert_close(model(pixels), (pixels.flatten(1)[:, :3] - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("factory", "more", "says"),
    [
        ("own_deployed:fixed", {"classes": 5}, r"to \[2, 3\]; it must give logits \[2, 5\]"),
        ("own_deployed:asks", {}, r"failed \(TypeError: .*'classes'.*come from options"),
        ("own_deployed:dropping", {}, r"dropout"),
        ("own_deployed:fixed", {"shape": (1, 3, 3)}, r"cannot take pixels \[1, 1, 3, 3\]"),
        ("own_deployed:nothing", {}, r"has no 'nothing'"),
        ("own_nowhere:net", {}, r"^model is 'own_nowhere:net', but own_nowhere cannot be imported"),
        ("own_deployed:fixed", {"mean": [0.1, 0.2]}, r"mean is \[0.1, 0.2\]; it must be a list of one number"),
        ("own_deployed:fixed", {"std": [0.0]}, r"std is \[0.0\]; it must hold numbers above 0"),
    ],
)
def test_a_model_that_cannot_be_the_clients_is_refused(own, factory, more, says):
    given = {"shape": (1, 2, 2), "classes": None} | more
    with pytest.raises(InputError, match=says):
        deployed_model(factory=factory, **given)
