"""The benchmark of secure aggregation: its contenders' sums, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks import secagg
from experiments.benchmarks.peers import mirage_secagg
from experiments.benchmarks.secagg import BESIDE_FLOWER, CELLS, COHORT, Cell


@pytest.mark.parametrize(("clients", "sparse", "lost"), [(4, False, 0), (5, False, 1), (60, True, 6)])
def test_ours_takes_a_whole_round_and_sends_about_four_bytes_a_coordinate(clients: int, sparse: bool, lost: int):
    found = mirage_secagg.play(clients, 5000, sparse, lost, seed=0)  # it compares the sum itself, bit for bit
    assert found["largest_error"] < 1e-6
    assert 4 * 5000 < found["client_bytes"] < 2 * 4 * 5000
    assert found["seconds"] > found["server_seconds"] > 0


def test_the_cells_are_those_that_the_table_is_to_have():
    assert {(cell.clients, cell.length) for cell in CELLS} == {
        (clients, length) for clients in (10, 100, 1000) for length in (10**4, 10**5, 10**6, 10**7)
    }
    assert any((cell.clients, cell.length) == COHORT and cell.sparse and cell.lost == 100 for cell in CELLS)
    assert Cell(clients=20, length=10**5) in BESIDE_FLOWER


def test_a_sparse_graph_expands_fewer_masks():
    complete, sparse = Cell(clients=1000, length=10**6), Cell(clients=1000, length=10**6, sparse=True)
    assert complete.gigabytes == pytest.approx(1000 * 1001 * 4e6 / 1e9)
    assert sparse.gigabytes < complete.gigabytes / 10


def found(seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "client_seconds": 0.1, "server_seconds": 1.0, "client_bytes": 6e6, "neighbours": 9,
            "grew_mib": 100.0}  # fmt: skip


def test_the_page_says_what_was_too_large_and_judges_paired_ratios():
    cells = [
        {"clients": 1000, "length": 10**6, "sparse": True, "lost": 0, "gigabytes": 200.0, "found": found(1.0)},
        {"clients": 1000, "length": 10**7, "sparse": False, "lost": 0, "gigabytes": 40040.0, "found": None},
    ]
    beside = [
        {"cell": "20 × 100k, complete", "ours": [found(1.0), found(2.0)], "flower": [found(9.0), found(24.0)]},
        {"cell": "10 × 1M, complete", "ours": [found(1.0)], "flower": [], "failed": "no flwr here"},
    ]
    page = secagg.markdown(
        {"command": "", "revision": "", "hardware": {"processor": "", "cores": 2}, "cells": cells, "beside": beside}
    )
    assert "not measured: 40,040 GB of masks" in page
    assert "at most 1.500; goal 2: reached" in page
    assert "yes, with 100 MiB beside the vectors" in page
    assert "10.5 [9.0, 12.0] | 10x | reached |" in page
    assert "cannot run: no flwr here" in page


@pytest.mark.heavy
def test_the_program_writes_its_record_and_says_why_flower_cannot_run(tmp_path: Path):
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\necho no flwr >&2\nexit 1\n")
    empty.chmod(0o755)
    secagg.main(["--quick", "--repeats", "1", "--out", str(tmp_path), "--python", str(empty)])
    record = json.loads((tmp_path / "secagg.json").read_text())
    assert [row["found"]["neighbours"] < row["clients"] for row in record["cells"]] == [True, True]
    assert record["beside"][0]["failed"] == "no flwr"
    assert (tmp_path / "secagg.md").read_text() == secagg.markdown(record)


@pytest.mark.parametrize(
    ("options", "said"), [(["--repeats", "0"], "--repeats"), (["--python", "/no"], "--python /no")]
)
def test_bad_input_is_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        secagg.main(options)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
