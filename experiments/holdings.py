"""A picture of who holds what: `python -m experiments.holdings [field=value ...]`, with the fields of experiments.run.

Nothing is trained. A sweep over what decides the holdings is drawn side by side:
`python -m experiments.holdings partition=iid,dirichlet,shards,quantity_skew clients=10 name=partitions`.
Writes results/<name>/who_holds_what.png, .pdf and .csv, and the counts that they are drawn from, who_holds_what.json:
`python -m experiments.paper` draws them again from those.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from numpy.typing import NDArray
from omegaconf import OmegaConf

from experiments.configuration import flat
from experiments.figures import save
from experiments.holdings_figure import Deal, draw
from experiments.population import who_holds_what
from experiments.store import RESULTS, check_place
from experiments.sweep import expand, resolved
from experiments.terminal import command, one_line_errors
from fl_core.checkpoint import read_json, write_json
from fl_core.data import class_number
from fl_core.errors import InputError, check_list
from fl_core.partition import NOBODY

NAME = "who_holds_what"
RECORD = f"{NAME}.json"

DECIDING = ("data", "partition", "clients", "canaries", "rarity", "seed")
"""The fields of the configuration that say who holds what."""


def deal(config: Mapping[str, Any], title: str, detail: str = "") -> Deal:
    """Who holds what under a resolved configuration, as counts; a canary counts under the label it is trained with."""
    held = who_holds_what(config)
    clients, classes, labels = config["clients"], held.pool.classes, held.pool.labels
    owned, rarity = held.owners != NOBODY, config["rarity"]

    def table(mask: torch.Tensor) -> NDArray[np.int64]:
        cells = held.owners[mask] * len(classes) + labels[mask]
        return torch.bincount(cells, minlength=clients * len(classes)).view(clients, -1).numpy()

    if config["client_names"] is not None:
        check_list("client_names", config["client_names"], "of names, one a client, or null")
    names: Sequence[Any] = config["client_names"] or range(clients)
    if not config["client_names"] and config["partition"]["_target_"].endswith(".Natural"):
        names = held.pool.owner_names
    if len(names) != clients:
        raise InputError(f"client_names has {len(names)} names for {clients} clients; name each of them, or set null")
    return Deal(
        title=title,
        detail=detail,
        clients=tuple(map(str, names)),
        classes=classes,
        counts=table(owned),
        canaries=table(owned & held.canary),
        nobody=torch.bincount(labels[~owned], minlength=len(classes)).numpy(),
        rare=None if rarity is None else (rarity["client"], class_number(classes, rarity["label"], "rarity.label")),
    )


def configurations(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The resolved configurations that differ in who holds what, of a command line and its experiment's own sweep."""
    if not GlobalHydra.instance().is_initialized():
        initialize_config_module("conf", version_base="1.3")
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    plain = [given for given, one in zip(overrides, parsed, strict=True) if not one.is_sweep_override()]
    sweeper = compose("config", overrides=plain, return_hydra_config=True).hydra.sweeper
    asked = OmegaConf.create(
        {"hydra": {"sweeper": {"params": sweeper.get("params")}, "overrides": {"task": list(overrides)}}}
    )
    assert OmegaConf.is_dict(asked)
    different: dict[str, dict[str, Any]] = {}
    for cell in expand(asked):
        config = resolved(compose("config", overrides=cell))
        different.setdefault(json.dumps([config[field] for field in DECIDING], sort_keys=True), config)
    return list(different.values())


def deals(configs: Sequence[Mapping[str, Any]]) -> list[Deal]:
    """A deal a configuration, named after its partition and what else tells it from the others."""
    fields = [flat({field: config[field] for field in DECIDING}) for config in configs]
    names = {name: None for one in fields for name in one}
    telling = [name for name in names if len({repr(one.get(name)) for one in fields}) > 1]
    made = []
    for config, values in zip(configs, fields, strict=True):
        target = config["partition"]["_target_"].rsplit(".", 1)[-1]
        title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", target).capitalize() if target != "IID" else target
        shown = [name for name in values if name.startswith("partition.") and name != "partition._target_"]
        shown += [name for name in telling if name in values and not name.startswith("partition.")]
        words = [f"{_word(name)} = {values[name]}" for name in shown]
        made.append(deal(config, title, ", ".join(words)))
    return made


def _word(field: str) -> str:
    name = field.split(".", 1)[-1] if field.startswith("partition.") else field
    return "α" if name == "alpha" else name.replace("_", " ")


def as_csv(deals: Sequence[Deal]) -> str:
    """A line a client and class that has examples; what nobody holds has the client -1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["partition", "options", "client", "name", "class", "examples", "canaries", "rarity"])
    for one in deals:
        about = [one.title, one.detail]
        for client, number in zip(*np.nonzero(one.counts), strict=True):
            at = client, number
            rare = int(one.rare == (client, number))
            found = [client, one.clients[client], one.classes[number], one.counts[at], one.canaries[at], rare]
            writer.writerow([*about, *found])
        for number in np.flatnonzero(one.nobody):
            writer.writerow([*about, NOBODY, "nobody", one.classes[number], one.nobody[number], "", 0])
    return text.getvalue()


def write(configs: Sequence[Mapping[str, Any]], folder: Path, command: str = "") -> list[Deal]:
    """Draw the configurations' holdings into `folder`, beside the counts that are drawn and the `command`."""
    made = deals(configs)
    figure = draw(made)
    write_json(folder / RECORD, {"command": command, "deals": [_plain(one) for one in made]})
    save(figure, folder, NAME, as_csv(made))
    return made


def draw_again(folder: Path, out: Path) -> list[str]:
    """The files of `folder` from its counts alone, into `out`; returns their names. InputError for damaged counts."""
    try:
        made = [deal_of(one) for one in read_json(folder / RECORD)["deals"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder / RECORD} is damaged; delete it and run experiments.holdings again") from None
    return save(draw(made), out, NAME, as_csv(made))


def _plain(one: Deal) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(one).items()}


def deal_of(kept: Mapping[str, Any]) -> Deal:
    """A deal as `write` put it down."""
    arrays = {name: np.array(kept[name], dtype=np.int64) for name in ("counts", "canaries", "nobody")}
    lists = {name: tuple(kept[name]) for name in ("clients", "classes")}
    rare = None if kept["rare"] is None else tuple(kept["rare"])
    return Deal(**{"title": kept["title"], "detail": kept["detail"], "rare": rare, **lists, **arrays})


def main() -> None:
    overrides = sys.argv[1:]
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        return
    with one_line_errors(debug="debug=true" in overrides):
        configs = configurations(overrides)
        check_place(configs[0]["name"])
        folder = RESULTS / str(configs[0]["name"])
        for one in write(configs, folder, command()):
            print(f"{one.named()}: {one.sizes_in_words()}; {one.skew_in_words()}")
        print("Open:", *(f"  {folder}/who_holds_what.{kind}" for kind in ("png", "pdf", "csv")), sep="\n")


if __name__ == "__main__":
    main()
