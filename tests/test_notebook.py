"""The notebook runs as it is committed, and what its text says is what comes out."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "federation_attack_defence.ipynb"


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_drives_the_python_api_in_under_forty_lines_and_is_committed_without_outputs():
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip()]
    assert len(lines) < 40
    assert not [line for line in lines if re.search(r"hydra|omegaconf|experiments", line)]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.heavy
def test_it_runs_and_shows_that_the_leak_goes_with_epsilon(tmp_path: Path):
    notebook = read()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    told = "".join(output.text for output in outputs if output.output_type == "stream")
    found = {name: list(map(float, numbers)) for name, *numbers in re.findall(
        r"ε = (\w+): AUC ([\d.]+) \[([\d.]+), ([\d.]+)\], accuracy ([\d.]+)", told
    )}  # fmt: skip
    assert list(found) == ["2", "32", "inf"]
    (_, low, high, poor), (_, _, some, fair), (area, least, _, good) = found.values()
    assert low < 0.5 < high  # nothing shown
    assert some < 0.6  # little left
    assert area > 0.85  # most of the canaries
    assert least > some
    assert poor < 0.3 < 0.6 < fair < good
    (picture,) = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert base64.b64decode(picture).startswith(b"\x89PNG")
