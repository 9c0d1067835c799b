"""Who holds what: the counts are right, the figure shows them, and a command that cannot work is one line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from matplotlib.collections import PathCollection
from matplotlib.image import AxesImage

from experiments import holdings, paper
from experiments.cell import build
from experiments.holdings import configurations, deal
from experiments.holdings_figure import Deal, arrange, draw
from experiments.population import who_holds_what
from fl_core.errors import InputError
from fl_core.partition import NOBODY
from tests.experiments.conftest import refusal

FILES = ["who_holds_what.csv", "who_holds_what.json", "who_holds_what.pdf", "who_holds_what.png"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Call the command line in this process, as `python -m experiments.holdings ARGUMENTS`."""

    def call(*arguments: str) -> None:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["holdings.py", *arguments])
        holdings.main()

    yield call
    GlobalHydra.instance().clear()


def made(counts: list[list[int]], **fields) -> Deal:
    table = np.array(counts)
    usual = {
        "title": "Made",
        "detail": "",
        "clients": tuple(map(str, range(len(table)))),
        "classes": tuple("abcdefghij"[: table.shape[1]]),
        "counts": table,
        "canaries": np.zeros_like(table),
        "nobody": np.zeros(table.shape[1], dtype=np.int64),
        "rare": None,
    }
    return Deal(**{**usual, **fields})


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "who_holds_what.csv", newline="") as file:
        return list(csv.DictReader(file))


# Counts


def test_counts_are_the_stored_owners_and_classes(here: Path, command):
    owners, labels = np.array(["zoe", "amy", "zoe", "zoe", "amy"] * 6), np.array([0, 1, 0, 1, 1] * 6)
    classes = np.array(["cat", "dog"])
    np.savez("all.npz", images=np.zeros((30, 4, 4), np.uint8), labels=labels, owners=owners, classes=classes)
    command("data=npz", "data.path=all.npz", "data.test_path=all.npz", "partition=natural", "clients=2", "canaries=0")
    assert [list(row.values())[2:6] for row in read(here / "results/single")] == [
        ["0", "amy", "dog", "12"],
        ["1", "zoe", "cat", "12"],
        ["1", "zoe", "dog", "6"],
    ]


def test_every_example_and_canary_is_counted_once_and_the_rarity_alone(here: Path, command):
    command("partition=dirichlet", "rarity={label:7,client:1}", "canaries=0.2", "name=rare")
    rows = read(here / "results/rare")
    nobody = [row for row in rows if row["client"] == str(NOBODY)]
    held = [row for row in rows if row not in nobody]
    assert sum(int(row["examples"]) for row in rows) == 1438
    sevens = [row for row in held if row["class"] == "7"]
    assert [(row["client"], row["examples"], row["canaries"], row["rarity"]) for row in sevens] == [
        ("1", "1", "0", "1")
    ]
    assert sum(int(row["rarity"]) for row in rows) == 1
    found = who_holds_what(configurations(["partition=dirichlet", "rarity={label:7,client:1}", "canaries=0.2"])[0])
    assert sum(int(row["canaries"]) for row in held) == int((found.canary & (found.owners != NOBODY)).sum())
    assert sum(int(row["examples"]) for row in nobody) == int((found.owners == NOBODY).sum())


def test_a_rarity_reaches_the_cell_and_trains_nowhere_else(here: Path):
    cell = build(configurations(["rarity={label:7,client:1}"])[0])
    truth = who_holds_what(configurations(["canaries=0"])[0]).pool.labels
    apart = cell.targets.owners == NOBODY
    assert not cell.targets.members[:, apart].any()
    held = (cell.targets.pool.labels.cpu() == 7) & ~apart
    assert cell.targets.owners[held].tolist() == [1]
    assert truth[held].tolist() == [7]
    assert bool(apart[(truth == 7) & ~held].all()), "no canary shows a 7 under another label"
    assert cell.targets.members[:, ~apart].float().mean() == pytest.approx(0.5, abs=0.02)


def test_client_names_stand_for_the_clients(here: Path):
    assert deal(configurations(["clients=2", "client_names=[Alice,Bob]"])[0], "x").clients == ("Alice", "Bob")
    with pytest.raises(InputError, match="client_names has 2 names for 3 clients"):
        deal(configurations(["clients=3", "client_names=[Alice,Bob]"])[0], "x")


# Label skew


def test_label_skew_is_0_for_equal_mixes_and_1_less_1_over_the_clients_for_a_class_each():
    assert made([[10, 20], [100, 200], [1, 2]]).label_skew == pytest.approx(0)
    for clients in (2, 5, 10):
        assert made((7 * np.eye(clients, dtype=int)).tolist()).label_skew == pytest.approx(1 - 1 / clients)
    assert made([[3, 1], [1, 3]]).label_skew == pytest.approx(0.25)


def test_chance_skew_is_the_mean_label_skew_of_random_deals():
    # 2000 deals of 60 examples: the mean within 5 of its standard errors (false alarm 6e-7; the seed is fixed).
    sizes, kinds = [5, 15, 40], np.repeat([0, 1, 2], [10, 20, 30])
    rng = np.random.default_rng(0)
    skews = []
    for _ in range(2000):
        parts = np.split(rng.permutation(kinds), np.cumsum(sizes)[:-1])
        skews.append(made([np.bincount(part, minlength=3).tolist() for part in parts]).label_skew)
    uneven = made([[5, 0, 0], [5, 5, 5], [0, 15, 25]])
    assert abs(np.mean(skews) - uneven.chance_skew) < 5 * np.std(skews) / 2000**0.5
    assert uneven.label_skew > 2 * uneven.chance_skew
    assert made([[4, 6]]).chance_skew == 0, "one client holds everything, whatever the deal"


# The figure


def test_clients_keep_their_order_and_many_are_grouped_with_their_like():
    counts = np.zeros((1000, 4), dtype=np.int64)
    counts[np.arange(1000), np.arange(1000) % 4] = 1 + np.arange(1000)
    one = made(counts.tolist(), rare=(998, 2))
    columns = arrange(one, ranked=True)
    assert columns.counts.shape == (100, 4)
    assert columns.largest == 10
    assert columns.counts.sum() * 10 == counts.sum()
    assert ((columns.counts > 0).sum(1) == 1).all(), "each column is of one class: 25 columns a class"
    assert columns.counts.argmax(1).tolist() == [number // 25 for number in range(100)]
    assert columns.high.tolist()[:25] == sorted(columns.high.tolist()[:25], reverse=True)
    assert columns.rare == (50, 2), "the largest client of class 2 stands in its first column"
    few = made(counts[:7].tolist(), rare=(5, 1))
    assert np.array_equal(arrange(few, ranked=False).counts, counts[:7])
    assert arrange(few, ranked=False).rare == (5, 1)


def test_a_bubble_s_area_is_the_number_of_examples_and_of_canaries_in_it():
    counts, canaries = [[40, 10, 0], [20, 5, 80]], np.array([[10, 0, 0], [0, 5, 20]])
    figure = draw([made(counts, canaries=canaries)])
    both, planted = [one for one in figure.axes[0].collections if isinstance(one, PathCollection)]
    for drawn, table in ((both, np.array(counts)), (planted, canaries)):
        shown = {tuple(map(int, at)): area for at, area in zip(drawn.get_offsets(), drawn.get_sizes(), strict=True)}
        assert set(shown) == set(zip(*map(np.ndarray.tolist, np.nonzero(table)), strict=True))
        for at, area in shown.items():
            assert area == pytest.approx(both.get_sizes().max() * table[at] / 80)


def test_where_bubbles_would_be_too_small_a_map_shows_the_means():
    rng = np.random.default_rng(0)
    for clients, classes, ranked in ((300, 10, True), (5, 100, False)):
        one = made(rng.integers(1, 9, (clients, classes)).tolist(), classes=tuple(map(str, range(classes))))
        main = draw([one]).axes[0]
        (image,) = [child for child in main.get_children() if isinstance(child, AxesImage)]
        assert np.array_equal(image.get_array(), arrange(one, ranked=ranked).counts.T)
        assert main.get_xlabel() == ("300 clients by largest class\n(3 a column)" if ranked else "client")


def test_panels_share_one_scale_and_need_the_same_classes():
    small, large = made([[1, 1], [1, 1]]), made([[9, 1], [1, 25]])
    figure = draw([small, large])
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "client"]
    areas = [max(axes.collections[0].get_sizes()) for axes in panels]
    assert areas[1] / areas[0] == pytest.approx(25)
    heights = [axes.get_ylim()[1] for axes in figure.axes if axes.patches]
    assert heights[0] == heights[1] > 26
    for wrong in ([small, made([[1, 1, 1], [1, 1, 1]])], [small] * 13):
        with pytest.raises(InputError, match="same classes and be at most 12"):
            draw(wrong)


# The command line


def test_a_sweep_stands_side_by_side_and_the_same_command_writes_the_same_bytes(here: Path, command, capsys):
    arguments = ["partition=iid,dirichlet,shards,quantity_skew", "clients=10", "name=partitions"]
    command(*arguments)
    folder = here / "results/partitions"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    first = {name: (folder / name).read_bytes() for name in FILES}
    command(*arguments)
    assert {name: (folder / name).read_bytes() for name in FILES} == first
    totals: dict[str, int] = {}
    for row in read(folder):
        totals[row["partition"]] = totals.get(row["partition"], 0) + int(row["examples"])
    assert totals == dict.fromkeys(["IID", "Dirichlet", "Shards", "Quantity skew"], 1438)
    assert "Shards, shards per client = 2: 142 to 144 examples a client" in capsys.readouterr().out


def test_what_does_not_decide_the_holdings_is_not_drawn_twice():
    assert len(configurations(["experiment=leakage_vs_epsilon"])) == 1
    assert len(configurations(["clients=3,4", "rounds=1,2"])) == 2
    alphas = configurations(["partition=dirichlet", "partition.alpha=1,10", "seed=0,1"])
    assert [one.detail for one in holdings.deals(alphas)] == [
        "α = 1, seed = 0",
        "α = 1, seed = 1",
        "α = 10, seed = 0",
        "α = 10, seed = 1",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["clients=5000"], "only 1438 examples"),
        (["clients=0"], "clients is 0"),
        (["partition=shard"], "did you mean shards?"),
        (["partition=iid,shard"], "partition has no option 'shard'"),
        (["partition.alpha=1"], "choose partition= one of dirichlet, iid, natural, quantity_skew, shards"),
        (["partition=dirichlet", "partition.alpha=1,-1"], "partition.alpha is -1"),
        (["partition=natural"], "partition=natural needs data that name their owners"),
        (["partition=shards", "clients=100", "partition.shards_per_client=50"], "5000 shards for 100 clients"),
        (["rarity=7"], "rarity is 7; write 'rarity={label:7,client:0}' with the quotes"),
        (["rarity={label:7}"], "write 'rarity={label:7,client:0}'"),
        (["rarity={label:cat,client:0}"], "rarity.label names 'cat'"),
        (["rarity={label:7,client:9}"], "rarity.client is 9"),
        (["canaries=2"], "canaries is 2"),
        (["seed=x"], "seed is 'x'"),
        (["data=npz"], "data.path has no value"),
        (["data=npz", "data.path=missing.npz"], "missing.npz is not a file"),
        (["data=emnist", "data.split=letter"], "did you mean 'letters'?"),
        (["data=emnist"], "emnist (train) cannot be read"),
        (["data.classes=[3,5]", "data.seed=0,1", "clients=1,2,3,4,5,6,7"], "at most 12"),
        (["cleints=3"], "did you mean clients?"),
        (["nonsense"], "not of the form field=value"),
    ],
)
def test_a_bad_input_is_one_line_with_exit_code_2_and_nothing_written(arguments, says, here: Path, command, capsys):
    assert says in refusal(capsys, command, *arguments)
    assert not list(here.iterdir())


def test_the_kept_counts_draw_the_same_files_again_without_any_data(tmp_path, monkeypatch):
    monkeypatch.setattr(holdings, "deals", lambda _: [made([[3, 1], [0, 2]], rare=(1, 1), nobody=np.array([0, 4]))])
    holdings.write([], tmp_path, "python -m experiments.holdings")
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    assert paper.all_folders(tmp_path) == [tmp_path]
    assert not paper.stale(tmp_path)
    (tmp_path / "who_holds_what.csv").write_text("edited")
    assert paper.stale(tmp_path) == ["who_holds_what.csv"]
    assert sorted(paper.draw(tmp_path)) == sorted(set(FILES) - {holdings.RECORD})
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    (tmp_path / holdings.RECORD).write_text('{"deals": [{}]}')
    with pytest.raises(InputError, match=r"who_holds_what\.json is damaged"):
        paper.draw(tmp_path)
