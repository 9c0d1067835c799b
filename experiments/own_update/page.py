"""The page of pictures that an attack on one's own update comes to: one file, for a phone too, by day and by night."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from attacks.pictures import EXACT_DB
from attacks.reconstruction.base import Reconstruction
from experiments.figures import STYLE, encoded, picture
from experiments.html.pictures import BASE, data_address, png
from experiments.own_update.case import Case
from experiments.own_update.options import Options
from experiments.own_update.trust import SAME_DB, Scores, Trust

STYLES = """
body { padding: 1.5rem 1rem 4rem; max-width: 46rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
.verdict { font-size: 1.1rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; padding: 0; }
.pairs { grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
figure img { border: 1px solid var(--line); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
th, td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.bar { margin-top: .45rem; }
pre { white-space: pre-wrap; border: 1px solid var(--line); padding: .7rem; font-size: .8rem; }
"""


def threat_model(options: Options, case: Case) -> str:
    """Who the attacker is and what was told, in words."""
    knowledge = case.knowledge
    steps = options.steps * options.epochs
    whole = "one step" if steps == 1 else f"{options.epochs} x {options.steps} local steps (epochs x steps)"
    kind = {
        "difference": "the client's difference to it",
        "model": "the client's new model",
        "gradient": "the client's gradient",
    }
    knows = [
        "the model that was sent",
        kind[options.update_is],
        f"that {whole} on {_count(knowledge.examples, 'picture')} of {'x'.join(map(str, options.shape))} made it",
        "the labels" if options.labels is not None else "",
        f"the learning rate {options.lr:g}" if options.lr is not None else "",
        "how the client clips and adds noise" if knowledge.clip_norm is not None or knowledge.noise else "",
        "" if knowledge.public is None else f"{_count(len(knowledge.public), 'public picture')}, for comparison only",
    ]
    unknown = [
        "the labels" if options.labels is None else "",
        "the learning rate" if options.lr is None and options.update_is != "gradient" else "",
    ]
    text = (
        "An honest-but-curious server that sees one client's update by itself (no secure aggregation). "
        f"It knows {_and(knows)}."
    )
    text += f" It does not know {_and(unknown, 'or')}." if any(unknown) else ""
    return f"{text} It takes the client's steps for plain SGD."


def figure_of(answer: Reconstruction, scored: Scores | None) -> bytes:
    """pictures.png: the answer, and above it the truth where that is known."""
    found, labels = answer.selected()[0], answer.selected_labels()[0]
    order = list(range(len(found))) if scored is None else scored.order
    wide = min(8, len(order))
    rows = -(-len(order) // wide) * (1 if scored is None else 2)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            rows, wide, figsize=(1.1 * wide + 0.7, 1.3 * rows + 0.2), layout="constrained", squeeze=False
        )
        for axis in axes.flat:
            axis.set_axis_off()
        for place, index in enumerate(order):
            block, column = divmod(place, wide)
            row = block * (1 if scored is None else 2)
            words = f"label {int(labels[index])}"
            if scored is not None:
                _shown(axes[row, column], scored.truth[place], "true")
                row, words = row + 1, f"{_decibels(scored.psnr[place])}, {words}"
            _shown(axes[row, column], torch.nan_to_num(found[index], nan=0.5), words)
    drawn = encoded(figure, "png")
    plt.close(figure)
    return drawn


def _shown(axis: Any, pixels: Tensor, words: str) -> None:
    axis.set_axis_on()
    picture(axis, pixels.numpy(), words)


def verdict(answer: Reconstruction, trusted: Trust) -> str:
    """How far the answer can be trusted, in a sentence."""
    return "It explains the update to rounding." if bool(answer.exact[0]) else trusted.in_words()


def page(
    options: Options,
    case: Case,
    answer: Reconstruction,
    answers: Mapping[str, Mapping[str, Any]],
    trusted: Trust,
    scored: Scores | None,
    command: str,
) -> str:
    """page.html."""
    method = answer.method[0]
    count = _count(case.knowledge.examples, "picture")
    spent = sum(int(one["evaluations"]) for one in answers.values())
    parts = [
        f"<h1>What one update gives away: {count}</h1>",
        f'<p class="verdict">{escape(verdict(answer, trusted))}</p>',
        f'<div class="pictures{"" if scored is None else " pairs"}">{"".join(_figures(answer, scored))}</div>',
        f'<p class="note">{escape(_about_pictures(scored))}</p>',
        f"<h2>How far to trust it</h2><p>{escape(_about_trust(trusted))}</p>{_misfits(trusted)}",
        f"<h2>Who attacked, and with what</h2><p>{escape(threat_model(options, case))}</p>",
        f"<p>Answered by: {escape(method)}. In all, {spent:,} gradients of the batch were computed.</p>",
        _attacks(answers, method),
        f"<h2>The same again</h2><pre>{escape(command)}</pre>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(options.folder.name)}: what one update gives away</title>"
        f"<style>{BASE.read_text(encoding='utf-8')}{STYLES}</style></head>\n"
        "<body>" + "\n".join(parts) + "</body></html>\n"
    )


def _figures(answer: Reconstruction, scored: Scores | None) -> list[str]:
    found, labels = answer.selected()[0], answer.selected_labels()[0]
    made = []
    for place, index in enumerate(range(len(found)) if scored is None else scored.order):
        words = f"label {int(labels[index])}" if int(labels[index]) >= 0 else "no label"
        shown = _image(found[index], f"recovered picture {place + 1}, {words}")
        if not bool(torch.isfinite(found[index]).all()):
            words = "no answer"
        if scored is not None:
            true = _image(scored.truth[place], f"true picture {place + 1}")
            shown = f'<div class="pair">{shown}{true}</div>'
            words += f", {_decibels(scored.psnr[place])}"
        made.append(f"<figure>{shown}<figcaption>{escape(words)}</figcaption></figure>")
    return made


def _image(pixels: Tensor, words: str) -> str:
    return f'<img src="{data_address(png(pixels))}" alt="{escape(words)}">'


def _about_pictures(scored: Scores | None) -> str:
    text = "Each picture as the attacker has it, enlarged"
    if scored is None:
        return f"{text}. No truth was given, so nothing here says how alike they are."
    text += "; beside it the true one, assigned by the least squared error. "
    text += f"Mean PSNR {_mean(scored.psnr)}"
    text += "" if scored.ssim is None else f", mean SSIM {np.mean(scored.ssim):.2f}"
    text += f"; a blind guess that never saw the update has {_mean(scored.blind)}. "
    if np.mean(scored.hindsight) > np.mean(scored.psnr):
        text += f"In hindsight the best restart had {_mean(scored.hindsight)}. "
    if scored.label_recall is not None:
        text += f"{round(scored.label_recall * len(scored.psnr))} of {len(scored.psnr)} labels are right."
    return text


def _about_trust(trusted: Trust) -> str:
    text = (
        "The attacker has no truth to look at. What can be seen is the misfit: 1 minus the cosine of the update that "
        "the pictures would have caused and the observed one; 0 explains it. "
        f"The answer has {trusted.misfit:.3g}, the best blind guess with the same labels {trusted.nothing:.3g}"
    )
    text += f", {trusted.nothing / trusted.misfit:.3g} times as much. " if trusted.misfit > 0 else ". "
    if trusted.restarts > 1:
        text += (
            f"{trusted.agree} of {trusted.restarts} restarts came to these pictures (a PSNR of at least "
            f"{SAME_DB:.0f} dB to them). "
        )
    return text + "A small misfit is no proof: other pictures may cause the same update."


def _misfits(trusted: Trust) -> str:
    rows = {"the answer": trusted.misfit}
    for name, values in trusted.blind.items():
        rows[name if len(values) == 1 else f"{name}, the best of {len(values)}"] = min(values)
    finite = [value for value in rows.values() if np.isfinite(value)]
    most = max([*finite, 1e-12])
    cells = "".join(
        f'<tr><td>{escape(name)}<span class="bar" style="width:{100 * min(value, most) / most:.1f}%"></span></td>'
        f'<td class="number">{value:.3g}</td></tr>'
        for name, value in rows.items()
    )
    return f'<table><tr><th>pictures</th><th class="number">misfit</th></tr>{cells}</table>'


def _attacks(answers: Mapping[str, Mapping[str, Any]], method: str) -> str:
    if len(answers) < 2:
        return ""
    cells = "".join(
        f"<tr><td>{escape(name)}{' (answered)' if name == method else ''}</td>"
        f'<td class="number">{"–" if one["misfit"] is None else format(one["misfit"], ".3g")}</td>'
        f'<td class="number">{one["evaluations"]:,}</td></tr>'
        for name, one in answers.items()
    )
    head = '<tr><th>attack</th><th class="number">misfit</th><th class="number">gradients</th></tr>'
    reasons = [reason for one in answers.values() for reason in one.get("reasons", [])]
    why = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f"<table>{head}{cells}</table>" + (f"<p>No exact answer:</p><ul>{why}</ul>" if why else "")


def _decibels(value: float) -> str:
    return "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def _mean(values: list[float]) -> str:
    """Of those that are not exact, which are counted."""
    rest = [value for value in values if value < EXACT_DB]
    exact = len(values) - len(rest)
    parts = [f"{np.mean(rest):.1f} dB"] if rest else []
    return " and ".join([*parts, *([f"{exact} exact"] if exact else [])])


def _count(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"{number} {what}s"


def _and(parts: list[str], word: str = "and") -> str:
    there = [part for part in parts if part]
    return there[0] if len(there) == 1 else f"{', '.join(there[:-1])} {word} {there[-1]}"
