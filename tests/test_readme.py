"""The README's numbers are those of the committed results."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from statistics import mean

import pytest

from experiments.benchmarks import client_dp, dp_utility, engine, reconstruction, scoring, secagg

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HEADS = {
    "leakage_vs_epsilon": ("ε", "test accuracy", "canaries: AUC", "canaries: TPR at 1% FPR", "ordinary: AUC",
                           "audited ε ≥", "PSNR, dB", "labels found"),
    "alice_and_bob": ("ε", "test accuracy", "canaries: AUC", "canaries: TPR at 1% FPR", "ordinary: AUC",
                      "audited ε ≥", "PSNR, dB", "labels found"),
}  # fmt: skip


def rows(study: str) -> list[dict[str, str]]:
    return list(csv.DictReader((ROOT / "results" / study / "table.csv").open()))


def value(found: list[dict[str, str]], digits: int, **wanted: str) -> str:
    (row,) = [row for row in found if all(row[name] == one for name, one in wanted.items())]
    number = f"{float(row['value']):.{digits}f}"
    return f"{number} [{float(row['low']):.{digits}f}, {float(row['high']):.{digits}f}]" if row["low"] else number


def table(study: str) -> str:
    """The README's table of a study, from its table.csv."""
    lines = ["| " + " | ".join(HEADS[study]) + " |", "|" + " --- |" * len(HEADS[study])]
    everything = rows(study)
    for epsilon in sorted({row["epsilon"] for row in everything}, key=float):
        found = [row for row in everything if row["epsilon"] == epsilon]
        cells = [
            "∞" if epsilon == "inf" else f"{float(epsilon):g}",
            value(found, 3, metric="accuracy"),
            value(found, 3, attack="LiRA", group="canary", metric="auc"),
            value(found, 3, attack="LiRA", group="canary", metric="tpr"),
            value(found, 3, attack="LiRA", group="ordinary", metric="auc"),
            value(found, 2, metric="epsilon_lower_bound"),
            value(found, 1, attack="inverting gradients", metric="psnr"),
            value(found, 2, metric="label_recall"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize("study", HEADS)
def test_the_readme_s_table_is_the_committed_one(study: str):
    assert table(study) in README, f"the README should hold this table:\n{table(study)}"


def test_the_committed_demo_reaches_what_it_promises():
    found = [row for row in rows("leakage_vs_epsilon") if row["epsilon"] == "inf"]
    assert float(value(found, 9, attack="LiRA", group="canary", metric="auc").split()[0]) >= 0.85
    assert float(value(found, 9, attack="LiRA", group="canary", metric="tpr").split()[0]) >= 0.25
    assert float(value(found, 9, metric="accuracy").split()[0]) >= 0.93
    private = [row for row in rows("leakage_vs_epsilon") if row["epsilon"] == "0.5"]
    for group in ("canary", "ordinary"):
        (row,) = [r for r in private if (r["attack"], r["group"], r["metric"]) == ("LiRA", group, "auc")]
        assert float(row["low"]) <= 0.5 <= float(row["high"])
    for row in rows("leakage_vs_epsilon"):
        if row["metric"] == "epsilon_lower_bound":
            assert float(row["value"]) <= float(row["accounted_epsilon"])


def test_every_file_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_readme_s_speed_table_is_the_committed_benchmark():
    stored = json.loads((ROOT / "results/benchmarks/lanes.json").read_text())
    for row in stored["rows"]:
        line = next((line for line in README.splitlines() if line.startswith(f"| {row['name']} |")), None)
        assert line is not None, row["name"]
        for contender in ("loop", "vmap", "auto"):
            assert f"{row['ratios'][contender]['median']:.2f}" in line, (row["name"], contender)


def test_the_readme_s_seconds_are_the_manifest_s():
    manifest = json.loads((ROOT / "results/leakage_vs_epsilon/manifest.json").read_text())
    assert f"took {manifest['seconds']:.0f} s on two cores" in README
    assert len(manifest["cells"]) == 7


def test_the_readme_s_peers_and_shadows_are_the_committed_benchmark():
    page = (ROOT / "results/benchmarks/engine.md").read_text()
    assert page == engine.markdown(json.loads((ROOT / "results/benchmarks/engine.json").read_text()))
    for head in ("| model | peer | Mirage |", "| study | Mirage, s |"):
        table = page[page.index(head) :].split("\n\n")[0].strip()
        assert table in README, table


def test_the_readme_s_trust_models_are_the_committed_ones():
    record = json.loads((ROOT / "results/benchmarks/client_dp.json").read_text())
    page = (ROOT / "results/benchmarks/client_dp.md").read_text()
    assert page == client_dp.markdown(record)
    table = page[page.index("| ε |") :].split("\n\n")[0]
    assert table in README, table
    (plain,) = [mean(one["accuracy"]) for one in record["points"] if one["mechanism"] == "none"]
    assert f"defence is {plain:.3f}".replace("is 0.", "is .") in README


def test_the_readme_s_utility_is_the_committed_one():
    page = (ROOT / "results/benchmarks/dp_utility.md").read_text()
    assert page == dp_utility.markdown(json.loads((ROOT / "results/benchmarks/dp_utility.json").read_text()))
    table = page[page.index("| σ |") :].split("\n\n")[0]
    assert table in README, table
    assert table.count("| reached |") == len(dp_utility.LEVELS)


def test_the_readme_s_secure_aggregation_is_the_committed_one():
    page = (ROOT / "results/benchmarks/secagg.md").read_text()
    assert page == secagg.markdown(json.loads((ROOT / "results/benchmarks/secagg.json").read_text()))
    table = page[page.index("| cell |") :].split("\n\n")[0]
    assert table in README, table
    (row,) = [line for line in page.splitlines() if line.startswith("| 1000 × 1M | sparse | 48 | 0 |")]
    assert "| 0.1269 |" in row
    assert "| 1.002 |" in row


def test_the_readme_s_fleets_are_the_committed_ones():
    page = (ROOT / "results/benchmarks/fleets.md").read_text()
    for factor in re.findall(r"(\d\.\d\d \[\d\.\d\d, \d\.\d\d\]) times", README.replace("\n", " ")):
        assert factor in page, factor


MEMBERSHIP = ("LiRA", "LiRA, tuned", "LiRA, offline", "BaVarIA", "RMIA", "RMIA, offline, tuned", "attack R",
              "shadow classifier", "modified entropy threshold, per class", "quantile regression, Gaussian",
              "loss threshold", "gap (label only)", "blind (label only)", "blind (image statistics)",
              "blind (nearest public image)")  # fmt: skip


def test_the_readme_s_lira_is_the_committed_one_and_beats_the_loss_threshold_five_times():
    found = [row for row in rows("lira_cifar") if row["group"] == "ordinary"]
    metrics = {"AUC": "auc", "balanced accuracy": "balanced_accuracy", "TPR at 1%": "tpr_at_0.01", "TPR at 0.1%": "tpr"}
    lines = ["| attack | " + " | ".join(metrics) + " |", "|" + " --- |" * (len(metrics) + 1)]
    for name in MEMBERSHIP:
        cells = [value(found, 4 if "TPR" in head else 3, attack=name, metric=one) for head, one in metrics.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    assert "\n".join(lines) in README, "the README should hold this table:\n" + "\n".join(lines)
    online, loss = (float(value(found, 9, attack=name, metric="tpr").split()[0]) for name in ("LiRA", "loss threshold"))
    assert online >= 5 * loss


@pytest.mark.parametrize("study", ["membership_by_view", "membership_by_view_cifar10"])
def test_no_audit_of_a_view_claims_more_than_the_accountant(study: str):
    bounds = [row for row in rows(study) if row["question"] == "audit"]
    cells = {(row["variant"], row["epsilon"]) for row in bounds}
    assert len(cells) == 12
    assert {row["view"] for row in bounds} == {"released_model", "participant", "secure_server", "server"}
    for row in bounds:
        assert float(row["value"]) <= float(row["accounted_epsilon"]), row
        assert float(row["value"]) <= float(row["ceiling"]), row


def cases(study: str) -> str:
    """The README's table of reconstructions, from a study's data.csv."""
    everything = list(csv.DictReader((ROOT / "results" / study / "data.csv").open()))
    lines = ["| case | PSNR, dB | median | best restart by the truth | nearest public picture | labels found |"]
    lines.append("|" + " --- |" * 6)
    for case in dict.fromkeys(row["case"] for row in everything):
        found = [row for row in everything if row["case"] == case]
        own = [row for row in found if not row["by"].startswith("blind")]
        cells = [
            value(own, 1, metric="psnr"),
            value(own, 1, metric="psnr_median"),
            value(own, 1, metric="psnr_oracle").split()[0],
            value(found, 1, by="blind (nearest public image)", metric="psnr").split()[0],
            value(own, 2, metric="label_recall").split()[0],
        ]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_readme_s_reconstructions_are_the_committed_ones():
    assert cases("reconstruction") in README, f"the README should hold this table:\n{cases('reconstruction')}"


def test_the_readme_s_speed_of_reconstructions_is_the_committed_one():
    record = json.loads((ROOT / "results/benchmarks/reconstruction.json").read_text())
    page = (ROOT / "results/benchmarks/reconstruction.md").read_text()
    assert page == reconstruction.markdown(record)
    for head, line in (("## LeNet, 32×32: cosine", "16 restarts"), ("## CNN of width 8, 8×8: cosine", "32 restarts")):
        row = next(row for row in page[page.index(head) :].splitlines() if f"one picture, {line}" in row)
        for ratio in row.split("|")[-3:-1]:
            assert ratio.strip() in README, row
    assert "at 16 restarts on LeNet: reached" in page


def test_the_readme_s_scoring_and_coverage_are_the_committed_ones():
    page = (ROOT / "results/benchmarks/scoring.md").read_text()
    record = json.loads((ROOT / "results/benchmarks/scoring.json").read_text())
    assert page == scoring.markdown(record)
    words = " ".join(README.split())
    (seconds,) = re.findall(r"All attacks together: (\S+) \[\S+, (\S+)\] s by the clock", page)
    assert f"{seconds[0]} s ({seconds[1]} s at worst" in words
    assert "5.30% [3.80%, 7.15%]" in (ROOT / "results/benchmarks/audit_coverage.md").read_text()


def test_the_readme_s_reproductions_are_the_committed_ones():
    glance = (ROOT / "results/reproduce/README.md").read_text().split("\n\n")[2]
    assert glance.startswith("| reproduction |")
    assert glance in README
    measured = csv.DictReader((ROOT / "results/reproduce/fedmia/data.csv").open())
    areas = {row["metric"]: f"{float(row['value']):.2f}"[1:] for row in measured if row["metric"].endswith("AUC")}
    loss, fedmia = (areas[f"{attack}, nobody's pictures: AUC"] for attack in ("loss", "FedMIA-II"))
    assert f"(AUC {loss}, FedMIA-II {fedmia})" in README
    assert glance.count("\n") == 1 + len([path for path in (ROOT / "results/reproduce").iterdir() if path.is_dir()])


@pytest.mark.parametrize(
    ("study", "field", "told"),
    [
        ("leakage_by_round", "rounds", {"1": ".51", "5": ".75", "20": ".98", "40": "1.00"}),
        ("leakage_by_cohort", "participation.cohort", {"1": ".73", "5": ".90", "20": ".93"}),
        ("leakage_by_heterogeneity", "partition.alpha", {"0.1": ".94", "1": ".97", "100": ".98"}),
    ],
)
def test_the_readme_s_growth_is_the_committed_one(study: str, field: str, told: dict[str, str]):
    areas = {
        row["variant"]: f"{float(row['value']):.2f}".removeprefix("0")
        for row in rows(study)
        if (row["attack"], row["group"], row["metric"]) == ("LiRA", "canary", "auc")
    }
    assert {name: areas[f"{field} = {name}"] for name in told} == told
    *first, last = told.values()
    assert f"{', '.join(first)} and {last}" in " ".join(README.split())
