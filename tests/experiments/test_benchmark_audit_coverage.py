"""The audit of auditors: known ε, a verdict that can fail, and a page from the record alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from attacks.audit.one_run import audit_one_run
from experiments.benchmarks import audit_coverage
from experiments.benchmarks.audit_coverage import Row, all_rows, broken, markdown, measure
from experiments.benchmarks.audit_mechanisms import (
    SAMPLED,
    SAMPLED_NOISE,
    Mechanism,
    frame_products,
    mechanisms,
    name_and_shame_runs,
    sampled_pairs,
    xor_runs,
)

ROOT = Path(__file__).resolve().parents[2]
ROWS = {(row.auditor, row.mechanism): row for row in all_rows()}
KNOWN = {one.name: one for one in mechanisms()}


def test_every_mechanism_has_the_epsilon_of_its_closed_form():
    epsilons = {name: one.epsilon for name, one in KNOWN.items()}
    assert epsilons["null, δ = 1e-05"] == 0
    assert epsilons["Gaussian, μ = 1, δ = 1e-05"] == pytest.approx(4.377, abs=5e-4)
    assert epsilons["Gaussian, μ = 2, δ = 1e-05"] == pytest.approx(10.0, abs=5e-3)
    assert {epsilons["Laplace, ε = 1"], epsilons["Laplace, ε = 2"]} == {1, 2}
    assert epsilons["XOR of pairs"] == epsilons["name and shame"] == math.inf


def test_the_subsampled_gaussian_s_likelihood_ratio_averages_to_one():
    # E over the world without the canary of the ratio is 1; the accountant is told the same steps.
    _, outside = sampled_pairs(np.random.default_rng(0), 1, 200_000)
    ratio = np.exp(outside)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(ratio.size)
    assert (SAMPLED.rate, SAMPLED.steps, SAMPLED_NOISE) == (0.2, 10, 1.0)


@pytest.mark.parametrize("runs", [xor_runs, name_and_shame_runs])
def test_one_run_audits_see_about_nothing_of_mechanisms_out_of_their_reach(runs):
    scores, members = runs(np.random.default_rng(1), 500, 1000)
    found = [audit_one_run(s[None], m[None], delta=1e-5).epsilon for s, m in zip(scores, members, strict=True)]
    # 95% of 500 audits of independent guesses report 0, 475 on average with a deviation of 5.
    assert np.mean(np.array(found) == 0) > 0.9
    assert max(found) < 0.5


def test_two_worlds_see_all_of_what_one_run_cannot():
    found = measure(ROWS["pre-registered threshold", "XOR of pairs"], 10, 0)
    assert found["median"] == found["ceiling"] > 4


def test_the_frame_s_products_have_the_mean_and_noise_that_are_asked_for():
    draws = np.random.default_rng(2)
    inside, outside = frame_products(draws, 2.0, 5000, 5000, 20_000, 30.0)
    # The others' 30 clips lie along random directions: 900/20,000 of variance, besides 1/4 of noise.
    assert inside.mean() == pytest.approx(1.0, abs=5 * 0.54 / math.sqrt(5000))
    assert outside.var() == pytest.approx(0.25 + 900 / 20_000, rel=5 * math.sqrt(2 / 5000))


def constant(claim: float) -> Row:
    """An auditor that always claims `claim` of a mechanism whose ε is 1."""

    def audits(draws: np.random.Generator, count: int) -> Iterator[tuple[float, float]]:
        return iter([(claim, 9.0)] * count)

    return Row(auditor="constant", mechanism="known", kind="bound", epsilon=1.0, delta=0.0, audits=audits)


def test_an_auditor_that_claims_too_much_is_found_and_one_at_the_truth_is_not():
    assert broken([measure(constant(1.1), 50, 0)])
    assert not broken([measure(constant(1.0), 50, 0), measure(constant(0.0), 50, 0)])


def test_the_wrong_ways_do_claim_too_much():
    for name in (
        ("best threshold, observed rates", "Laplace, ε = 2"),
        ("one run, best number of guesses", "null, δ = 1e-05"),
        ("one-shot final iterate, estimate as a bound", "Gaussian, μ = 1, δ = 1e-05"),
    ):
        found = measure(ROWS[name], 300, 0)
        assert found["kind"] == "wrong"
        assert found["claims_too_much"], name


def test_the_same_seed_gives_the_same_row_and_another_does_not():
    row = ROWS["split", "Laplace, ε = 1"]
    assert measure(row, 20, 3) == measure(row, 20, 3)
    assert measure(row, 20, 3) != measure(row, 20, 4)


def test_a_table_with_a_broken_bound_exits_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(audit_coverage, "all_rows", lambda: [constant(0.5), constant(2.0)])
    assert audit_coverage.main(["--trials", "50", "--out", str(tmp_path)]) == 1
    assert "constant on known claims more than the truth in 100.0% of audits" in capsys.readouterr().out
    assert "NOT VALID: constant on known" in (tmp_path / "audit_coverage.md").read_text()


def test_the_page_has_every_row_of_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    some = [row for row in all_rows() if row.mechanism == "Laplace, ε = 1"]
    monkeypatch.setattr(audit_coverage, "all_rows", lambda: some)
    assert audit_coverage.main(["--trials", "20", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "audit_coverage.json").read_text())
    page = (tmp_path / "audit_coverage.md").read_text()
    assert markdown(record) == page
    assert sum(line.startswith("| Laplace") for line in page.splitlines()) == len(some)
    assert {"hardware", "versions", "revision", "seed", "command"} <= set(record)


def test_the_committed_table_has_no_bound_that_claims_too_much():
    record = json.loads((ROOT / "results/benchmarks/audit_coverage.json").read_text())
    assert record["trials"] >= 2000
    assert {(row["auditor"], row["mechanism"]) for row in record["rows"]} == set(ROWS)
    assert not broken(record["rows"])
    assert markdown(record) == (ROOT / "results/benchmarks/audit_coverage.md").read_text()


def test_every_gaussian_auditor_off_its_assumption_is_marked_so():
    for (auditor, mechanism), row in ROWS.items():
        gaussian = KNOWN[mechanism].mu is not None
        if "Gaussian" in auditor and auditor != "Gaussian, plug-in":
            assert row.kind == ("bound" if gaussian else "off"), (auditor, mechanism)


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        audit_coverage.main(["--trials", "3"])
    assert caught.value.code == 2
    assert "--trials is 3" in capsys.readouterr().err.splitlines()[-1]


def test_mechanisms_are_named_once():
    names = [one.name for one in mechanisms()]
    assert len(set(names)) == len(names)
    assert all(isinstance(one, Mechanism) for one in mechanisms())
