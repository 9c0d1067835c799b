"""Files that are old or new, never half; and nothing is unpickled."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import pytest
import torch

from fl_core.checkpoint import all_finite, load_tensors, save_tensors, write_bytes, write_json, write_text
from fl_core.errors import InputError


def some_tensors() -> dict[str, torch.Tensor]:
    whole = torch.arange(24.0).view(2, 3, 4)
    return {
        "float": torch.randn(3, 2),
        "double": torch.randn(2, dtype=torch.float64),
        "whole": torch.tensor([1, -(2**40)]),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "transposed": whole.transpose(0, 2),
        "one view": whole[0],
        "another view": whole[1],
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def test_tensors_and_facts_come_back_in_bits(tmp_path: Path):
    tensors, facts = some_tensors(), {"round": 3, "name": "ε", "values": [1.5, None, True]}
    save_tensors(tmp_path / "deep" / "state.safetensors", tensors, facts)
    back, known = load_tensors(tmp_path / "deep" / "state.safetensors")
    assert known == facts
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert torch.equal(back[name].nan_to_num(7), value.nan_to_num(7))


def test_tensors_that_need_gradients_can_be_saved(tmp_path: Path):
    save_tensors(tmp_path / "x", {"x": torch.ones(2, requires_grad=True)})
    assert load_tensors(tmp_path / "x")[0]["x"].tolist() == [1, 1]
    assert load_tensors(tmp_path / "x")[1] == {}


@pytest.mark.parametrize("crash", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(crash: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"x": torch.zeros(3)}, {"round": 1})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, crash, die)
        with pytest.raises(KeyboardInterrupt):
            save_tensors(path, {"x": torch.ones(3)}, {"round": 2})
    assert load_tensors(path)[0]["x"].tolist() == [0, 0, 0]
    save_tensors(path, {"x": torch.ones(3)}, {"round": 2})
    assert load_tensors(path)[1] == {"round": 2}


def test_the_bytes_are_on_the_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    write_bytes(tmp_path / "x", b"data")
    assert order == ["fsync", "replace"]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_a_cut_off_file_is_an_input_error(kept: int, tmp_path: Path):
    path = tmp_path / "state.safetensors"
    save_tensors(path, some_tensors(), {"round": 1})
    path.write_bytes(path.read_bytes()[:kept])
    assert_damaged(path)


def assert_damaged(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is missing or damaged")
    assert "\n" not in message


def test_a_missing_file_a_folder_and_noise_are_input_errors(tmp_path: Path):
    assert_damaged(tmp_path / "nothing")
    assert_damaged(tmp_path)
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 9)
    assert_damaged(tmp_path / "noise")


class _Trap:
    """Leaves a mark where something unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "write", [lambda path, it: path.write_bytes(pickle.dumps(it)), lambda path, it: torch.save(it, path)]
)
def test_nothing_is_unpickled(write, tmp_path: Path):
    mark = tmp_path / "mark"
    write(tmp_path / "state.safetensors", _Trap(mark))
    assert_damaged(tmp_path / "state.safetensors")
    assert not mark.exists()


def test_json_is_sorted_so_that_equal_values_are_equal_files(tmp_path: Path):
    write_json(tmp_path / "a", {"b": 1, "a": [2]})
    write_json(tmp_path / "b", {"a": [2], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_text(tmp_path / "c", "ε\n")
    assert (tmp_path / "c").read_bytes() == "ε\n".encode()


def test_one_bad_number_is_not_finite():
    assert all_finite({"a": torch.ones(2), "b": torch.tensor([0, 1])})
    for bad in (math.nan, math.inf, -math.inf):
        assert not all_finite({"a": torch.ones(2), "b": torch.tensor([0.0, bad])})


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path):
    tensors = {"second": torch.ones(2), "first": torch.zeros(3)}
    written = set()
    for number in range(20):
        save_tensors(tmp_path / "one", tensors, {"a": 1, "b": number // 100})
        written.add((tmp_path / "one").read_bytes())
    assert len(written) == 1
    assert list(load_tensors(tmp_path / "one")[0]) == ["second", "first"]
