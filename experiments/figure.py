"""Draw one more figure of a sweep from its record: `python -m experiments.figure KIND results/NAME [options]`.

    leakage  one attack under its view, on one group, over ε, with ceilings, audit, blind guesses and utility
    front    utility against one attack's leakage, a point a cell, with the privacy-utility front
    field    every attack over the one number in which the cells differ
    roc      ROC curves of one attack over all cells

Writes FILE.png, FILE.pdf and FILE.csv. For example:
`python -m experiments.figure leakage results/leakage_vs_epsilon --attack RMIA --group canary --metric tpr --out rmia`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments import record
from experiments.chosen_figure import leakage, resolve
from experiments.collect import CellResult
from experiments.field_figure import by_field
from experiments.figures import save
from experiments.front_figure import front
from experiments.record import Record
from experiments.roc_figure import roc
from experiments.terminal import Parser, one_line_errors
from fl_core.errors import InputError
from fl_core.views import VIEWS

KINDS = ("leakage", "front", "field", "roc")
ENDINGS = (".png", ".pdf", ".csv")
OTHERS = (".svg", ".eps", ".ps", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def draw(
    found: Record, kind: str, attack: str | None = None, view: str | None = None, group: str | None = None,
    metric: str | None = None, variant: str | None = None, field: str | None = None,
) -> Figure:  # fmt: skip
    """The figure of that kind; InputError says what of the options this sweep does not have."""
    if not found.cells:
        raise InputError(f"{found.manifest.get('name')} is a study and no sweep; its figure is figure.png")
    cells, title = _cells(found.cells, variant), str(found.manifest["title"])
    if kind == "field":
        drawn = by_field(cells, title, field)
        if drawn is None:
            raise InputError(
                "these cells do not differ by one number, or have no AUC; sweep one field, or choose another figure"
            )
        return drawn
    name, its = resolve(cells, attack, view)
    if kind == "leakage":
        if len(cells) > 1 and len({cell.epsilon for cell in cells}) == 1:
            raise InputError(f"all cells are at ε = {cells[0].label()}; draw `field`, or choose a cell with --variant")
        groups = list(dict.fromkeys(row.group for cell in cells for row in cell.rows if row.attack == name))
        return leakage(cells, title, attack=name, view=its, group=group or groups[0], metric=metric or "tpr")
    if kind == "roc":
        curves = roc(cells, title, name)
        if curves is None:
            raise InputError(f"this sweep keeps no ROC curve of {name}; name another --attack")
        return curves
    drawn = front(
        cells, title, attack=name, metric=metric or "auc", groups=[group] if group else ("canary", "ordinary")
    )
    if drawn is None:
        raise InputError(f"fewer than three cells have both a test accuracy and {metric or 'auc'} of {name} there")
    return drawn


def _cells(cells: Sequence[CellResult], variant: str | None) -> list[CellResult]:
    names = list(dict.fromkeys(cell.variant for cell in cells))
    if variant is not None and variant not in names:
        raise InputError(f"--variant is {variant!r}; this sweep has {'; '.join(filter(None, names)) or 'no variants'}")
    return [cell for cell in cells if variant in (None, cell.variant)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("experiments.figure", __doc__)
    parser.add_argument("kind", choices=KINDS, help="which figure")
    parser.add_argument("folder", type=Path, help="a folder that a sweep wrote, such as results/leakage_vs_epsilon")
    parser.add_argument("--attack", help="its name as in table.md, or how that begins; the sweep's first by default")
    parser.add_argument("--view", choices=VIEWS, help="whose attacks; that of the attack by default")
    parser.add_argument("--group", help="whose membership: canary, ordinary, 'class 3' or 'client 0', as in table.csv")
    parser.add_argument("--metric", help="auc, tpr, tpr_at_0.1, balanced_accuracy, as in table.csv")
    parser.add_argument("--variant", help="only the cells of this variant, as in table.md")
    parser.add_argument("--field", help="of kind field: the field, such as rounds; by default the one that differs")
    parser.add_argument(
        "--out", type=Path, help="the file, with or without an ending; chosen_KIND in the folder by default"
    )
    options = parser.parse_args(arguments)
    with one_line_errors():
        if options.out is not None and options.out.suffix.lower() in OTHERS:
            raise InputError(
                f"--out is {options.out}; a figure is written as {', '.join(ENDINGS)}: leave the ending out"
            )
        found = record.read(options.folder)
        figure = draw(
            found, options.kind, options.attack, options.view, options.group, options.metric, options.variant,
            options.field,
        )  # fmt: skip
        out = options.out or options.folder / f"chosen_{options.kind}"
        stem = out.with_suffix("") if out.suffix in ENDINGS else out
        stem.parent.mkdir(parents=True, exist_ok=True)
        print("Open:", *(f"  {stem.parent / name}" for name in save(figure, stem.parent, stem.name)), sep="\n")


if __name__ == "__main__":
    main()
