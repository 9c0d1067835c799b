"""What the tutorials and CONTRIBUTING.md show works as it stands there, and their numbers are those of the results."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
import shlex
import shutil
import sys
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from experiments import sweep
from experiments.cell import build
from experiments.studies import base, paper
from experiments.studies.base import build as build_study
from fl_core.defended import Senders
from tests.plans import plan

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ("first_sweep", "own_model", "own_attack", "own_defence", "reading_a_leakage_plot", "auditing_a_dp_claim")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
CLOSE = 0.03
"""What a printed number may be off by: another processor rounds otherwise, and training carries that on."""


def blocks(page: str) -> list[tuple[str, str]]:
    """A page's fenced blocks as (language, text), in order."""
    path = ROOT / page if page.endswith(".md") else DOCS / f"{page}.md"
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def module_of(block: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The block as the module whose file its first line names."""
    name = re.sub(r"# (\S+)\.py\n.*", r"\1", block, flags=re.DOTALL).replace("/", ".")
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    exec(block, module.__dict__)
    return module


def assert_alike(printed: str, shown: str) -> None:
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown), f"the page should show:\n{printed}"
    for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        assert float(ours) == pytest.approx(float(theirs), abs=CLOSE), f"the page should show:\n{printed}"


def test_every_tutorial_is_in_the_table_of_contents():
    assert set(PAGES) == {path.stem for path in DOCS.glob("*.md")} - {"index", "reference"}
    assert re.findall(r"^\w+$", (DOCS / "index.md").read_text(), re.MULTILINE) == [*PAGES, "reference"]


@pytest.mark.heavy
@pytest.mark.parametrize("page", [page for page in PAGES if any(kind == "python" for kind, _ in blocks(page))])
def test_a_page_s_code_prints_what_the_page_shows(page: str, monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    found = blocks(page)
    for number, (kind, block) in enumerate(found):
        if kind != "python":
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(block, module.__dict__)
        following, shown = found[number + 1] if number + 1 < len(found) else ("", "")
        assert_alike(printed.getvalue(), shown if following == "text" else "")


def test_the_defence_rounds_updates_and_promises_nothing(monkeypatch: pytest.MonkeyPatch):
    (block,) = [block for _, block in blocks("own_defence") if block.startswith("# defenses/rounding.py")]
    rounding = module_of(block, monkeypatch).Rounding(step=0.5)
    assert rounding.on_update({"w": torch.tensor([[[0.7, -0.2]]])}, Senders({}, [], 1.0))["w"].tolist() == [
        [[0.5, 0.0]]
    ]
    assert rounding.guarantee("server", "example", plan()).epsilon == np.inf
    assert rounding.example_rule(4.0) is None


def test_the_study_of_contributing_measures_draws_and_prints(monkeypatch: pytest.MonkeyPatch):
    (block,) = [block for kind, block in blocks("CONTRIBUTING.md") if kind == "python"]
    study = module_of(block, monkeypatch).Rounding(steps=[0.5, 2.0])
    data = {"_target_": "fl_core.data.digits", "limit": 50}
    setting = base.Setting(seed=0, device=torch.device("cpu"), config={"data": data})
    records = [point | study.measure(point, setting) for point in study.points()]
    small, large = (row["value"] for row in base.rows(records, metric="shift"))
    assert 0 < small < large
    assert [line[0] for line in study.table(records)[0].lines] == ["0.5", "2"]
    assert study.figure(records, "rounding").axes[0].get_title() == "rounding"
    assert paper.as_csv(records).splitlines()[0] == "step,metric,value,low,high"


# Commands


def commands(page: str) -> Iterator[tuple[str, str]]:
    """The command lines of a page, each with the text block that follows it, or nothing."""
    found = blocks(page)
    for number, (kind, block) in enumerate(found):
        if kind == "":
            following = found[number + 1] if number + 1 < len(found) else ("", "")
            for line in block.replace("\\\n", " ").splitlines():
                yield line, following[1] if line.startswith("$ ") and following[0] == "text" else ""


def contributed(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put what the page says to write where its commands find it: modules, and configurations in `folder`."""
    shutil.copytree(ROOT / "conf", folder)
    for kind, block in blocks(page):
        if kind == "python" and re.match(r"# \S+\.py\n", block):
            module_of(block, monkeypatch)
    text = (ROOT / page if page.endswith(".md") else DOCS / f"{page}.md").read_text()
    for place, block in re.findall(r"`conf/(\S+\.yaml)`:?\n\n```yaml\n(.*?)```", text, re.DOTALL):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(block)
    if page == "own_model":
        module = types.ModuleType("mynets")
        monkeypatch.setitem(sys.modules, "mynets", module)
        exec(blocks(page)[0][1], module.__dict__)


def check_run(arguments: list[str], conf: Path) -> None:
    """Build all that the command would run, up to the first step of training."""
    overrides = [one for one in arguments if one != "--multirun"]
    with initialize_config_dir(str(conf), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        mode = RunMode.MULTIRUN if "--multirun" in arguments else hydra.get_mode("config", overrides) or RunMode.RUN
        config = hydra.compose_config("config", overrides, run_mode=mode, with_log_configuration=False)
        if mode is RunMode.MULTIRUN:
            sweep.Study().on_multirun_start(config)
            return
        plain = sweep.settled(compose("config", overrides=overrides), config.hydra)
        if config.study is None:
            build(plain)
        else:
            build_study(plain, overrides)


@pytest.mark.heavy
@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_a_page_s_commands_can_be_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    contributed(page, tmp_path / "conf", monkeypatch)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page if page.endswith(".md") else DOCS / f"{page}.md").read_text()
    inline = re.findall(r"`(python -m experiments[^`]*)`", " ".join(text.split()))
    for line, answer in [*commands(page), *((line, "") for line in inline)]:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), line
            continue
        assert words[:2] == ["python", "-m"], line
        assert importlib.util.find_spec(words[2]) is not None, line
        if words[2] == "experiments.run" and answer:
            with pytest.raises(ValueError) as refused:  # noqa: PT011  the message is compared below
                check_run(words[3:], tmp_path / "conf")
            assert f"mirage: {refused.value}\n" == answer
        elif words[2] == "experiments.run" and len(words) > 3:
            check_run(words[3:], tmp_path / "conf")


# Links and numbers


@pytest.mark.parametrize("page", [*PAGES, "index"])
def test_every_file_that_a_page_links_to_exists(page: str):
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / f"{page}.md").read_text()):
        assert (DOCS / target).exists(), target


def numbers(**wanted: str) -> dict[str, str]:
    """A row of the default sweep's table.csv: `value` and `interval`, to 3 digits, and what it says beside."""
    found = csv.DictReader((ROOT / "results/leakage_vs_epsilon/table.csv").open())
    at = float(wanted.pop("epsilon"))
    same = [row for row in found if float(row["epsilon"]) == at]
    (row,) = [row for row in same if all(row[name] == one for name, one in wanted.items())]
    digits = 1 if row["metric"] == "psnr" else 3
    short = {name: f"{float(row[name]):.{digits}f}" for name in ("value", "low", "high") if row[name]}
    interval = f"{short['value']} [{short['low']}, {short['high']}]" if "low" in short else short["value"]
    return row | short | {"interval": interval}


def lira(epsilon: str, metric: str, group: str = "canary") -> dict[str, str]:
    return numbers(epsilon=epsilon, attack="LiRA", group=group, metric=metric)


def picture(epsilon: str, attack: str = "inverting gradients") -> dict[str, str]:
    return numbers(epsilon=epsilon, attack=attack, metric="psnr")


def accuracy(epsilon: str) -> dict[str, str]:
    return numbers(epsilon=epsilon, metric="accuracy")


def said() -> Iterator[tuple[str, str]]:
    """(page, what it says) for every number that a page takes from the default sweep."""
    seconds = yaml.safe_load((ROOT / "results/leakage_vs_epsilon/manifest.json").read_text())["seconds"]
    yield "first_sweep", f"the sweep itself took {seconds:.0f} s on two cores"
    yield "first_sweep", f"at an AUC of {lira('inf', 'auc')['interval']}"
    yield "first_sweep", f"names {lira('inf', 'tpr')['interval']} of them at 1% false alarms"
    yield "first_sweep", f"picture has {picture('inf')['interval']} dB"
    yield "first_sweep", f"The AUC is {lira('8', 'auc')['interval']}, the picture {picture('8')['interval']} dB"
    yield "first_sweep", f"from {accuracy('inf')['value']} to {accuracy('8')['value']}"
    yield "first_sweep", f"next to nothing: {accuracy('0.5')['interval']}"
    reading = "reading_a_leakage_plot"
    yield reading, f"AUC of {lira('500', 'auc')['value']} at ε = 500 with {lira('inf', 'auc')['value']} at ∞"
    row = lira("8", "auc")
    yield reading, f"At ε = 8 LiRA has {row['value']}, and the ceiling is {float(row['ceiling']):.3f}"
    ordinary = lira("inf", "auc", "ordinary")["value"]
    yield reading, f"examples' AUC is {ordinary}, the canaries' {lira('inf', 'auc')['value']}"
    row = lira("inf", "tpr")
    yield reading, f"LiRA names {100 * float(row['value']):.1f}% of the canaries"
    (outside,) = re.findall(r"(\d+) non-members", row["samples"])
    yield reading, f"with {outside} non-members, so the table says `needs ≥ 1,000, has {outside}`"
    yield reading, f"LiRA at ε = 0.5 with {lira('0.5', 'auc')['value']}"
    row = numbers(epsilon="inf", metric="epsilon_lower_bound")
    shown, most = f"{float(row['value']):.2f}", f"{float(row['ceiling']):.2f}"
    yield reading, f"the audit shows {shown} of at most {most}"
    yield reading, f"readable, and {picture('8')['value']} is below a blind guess"
    yield reading, f"{picture('8', 'blind (nearest public image)')['value']} dB here for the nearest"
    row = numbers(epsilon="500", metric="label_recall")
    yield reading, f"{float(row['value']):.2f} of them are found at ε = 500, where no picture is"
    yield reading, f"({accuracy('2')['value']})"


def test_the_pages_numbers_are_those_of_the_default_sweep():
    for page, sentence in said():
        assert sentence in " ".join((DOCS / f"{page}.md").read_text().split()), f"{page} should say: {sentence}"


def test_what_the_pages_conclude_from_the_default_sweep_holds():
    finite = ("0.5", "2", "8", "32", "128", "500")
    value: Any = lambda row, name="value": float(row[name])  # noqa: E731
    assert value(lira("0.5", "auc"), "low") < 0.5 < value(lira("0.5", "auc"), "high")
    assert all(value(lira(epsilon, "auc"), "ceiling") > 0.99 for epsilon in finite[3:])
    blind = [picture("8", f"blind ({guess})") for guess in ("mean image", "nearest public image")]
    assert all(value(picture(epsilon)) < min(map(value, blind)) for epsilon in finite)
    for epsilon in finite[2:]:
        assert value(numbers(epsilon=epsilon, metric="epsilon_lower_bound"), "ceiling") < float(epsilon)
    loss = numbers(epsilon="0.5", attack="loss threshold", group="canary", metric="auc")
    assert value(loss) >= value(lira("0.5", "auc"))
    assert value(accuracy("2")) < 0.4 * value(accuracy("inf"))
