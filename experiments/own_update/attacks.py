"""Who attacks an update, and which answer stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks.reconstruction import presets
from attacks.reconstruction.base import Reconstruction
from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.labels import output_bias
from attacks.reconstruction.pipeline import Explained, Pipeline
from attacks.reconstruction.simulation import observed_moments, parameters_among
from experiments.own_update.case import Case
from experiments.own_update.options import Options
from experiments.own_update.trust import misfit
from fl_core.errors import InputError, check_choice

EXACT = "exact attacks"
"""What the answers call the exact attacks together, where none of them had the answer."""

PRESETS: dict[str, Callable[..., GradientMatching]] = {
    made.__name__: made
    for made in (
        presets.inverting_gradients,
        presets.layer_weighted,
        presets.adaptive,
        presets.grad_inversion,
        presets.local_steps,
        presets.deep_image_prior,
        presets.idlg,
        presets.dlg,
    )
}


def attacks_for(case: Case, asked: str | Sequence[str], changes: Mapping[str, Any]) -> list[GradientMatching]:
    """The attacks that search, in the order in which they are tried; the first that is exact ends it.

    `auto` is one, `all` are those that suit the update. InputError for a name or a field that there is not, and for
    attacks that were not told enough.
    """
    if asked == "auto":
        names = [name for name in ("local_steps", "adaptive", "grad_inversion") if _suits(name, case)]
        names = [*names, "inverting_gradients"][:1]
    elif asked == "all":
        names = [name for name in PRESETS if _suits(name, case)]
    else:
        names = [asked] if isinstance(asked, str) else list(asked)
        for name in names:
            check_choice("attack", name, ("auto", "all", *PRESETS) if isinstance(asked, str) else PRESETS)
        if not names or len(set(names)) < len(names):
            raise InputError(f"attack is {names}; name each attack once, of {', '.join(PRESETS)}")
    made = {name: _changed(name, changes) for name in names}
    lacking = {name: what for name, one in made.items() if (what := _lacks(one, case))}
    left = [one for name, one in made.items() if name not in lacking]
    if lacking and (asked != "all" or not left):
        name, what = next(iter(lacking.items()))
        raise InputError(f"attack={name} {what}")
    return left


def _lacks(one: GradientMatching, case: Case) -> str:
    """What the attack would have to be told besides; empty where it has enough."""
    knowledge = case.knowledge
    if knowledge.lr is None and one.distance is not None and one.distance.measure == "squared":
        return "compares the lengths of updates; give lr=, or set attack.distance.measure=cosine"
    if one.labels == "inferred" and knowledge.labels is None:
        gradient = case.updates.gradient(knowledge.lr)
        trained = parameters_among(knowledge.model, gradient)
        try:
            output_bias({name: gradient[name] for name in trained}, knowledge.classes)
        except InputError:
            return (
                "infers labels from the gradient of an output bias with one entry a class, which the update lacks; "
                "give labels=, or set attack.labels=soft"
            )
    return ""


def _suits(name: str, case: Case) -> bool:
    knowledge, updates = case.knowledge, case.updates
    if name in ("dlg", "idlg"):
        return knowledge.lr is not None
    if name == "local_steps":
        return knowledge.epochs > 1
    if name == "adaptive":
        return knowledge.clip_norm is not None or knowledge.noise > 0
    if name == "grad_inversion":
        return bool(observed_moments(knowledge.model, updates.sent, updates.moved))
    return name != "deep_image_prior" or min(knowledge.shape[1:]) >= 4


def _changed(name: str, changes: Mapping[str, Any]) -> GradientMatching:
    """A preset with `changes`, by dotted name; InputError for those that it does not take."""
    made = PRESETS[name]()
    whole: dict[str, Any] = {}
    try:
        for field, value in changes.items():
            outer, _, inner = field.partition(".")
            allowed = [one.name for one in dataclasses.fields(made) if one.name not in ("name", "letter")]
            check_choice("an option of attack", outer, allowed)
            part = whole.get(outer, getattr(made, outer))
            if dataclasses.is_dataclass(part) != bool(inner):
                how = f"attack.{outer} itself" if inner else f"a field of it, as in attack.{outer}.NAME=..."
                raise InputError(f"attack.{field} cannot be set; set {how}")
            if inner:
                check_choice(f"an option of attack.{outer}", inner, [one.name for one in dataclasses.fields(part)])
            whole[outer] = dataclasses.replace(part, **{inner: value}) if inner else value
        return dataclasses.replace(made, **whole)
    except InputError as error:
        raise InputError(str(error).replace("attack.reconstruction.", "attack.")) from error
    except TypeError as error:
        raise InputError(f"attack={name} with {dict(changes)} cannot be made: {error}") from error


def solved(case: Case, asked: str | Sequence[str], seed: int) -> Explained | None:
    """What the exact attacks come to, which `auto` and `all` try before any that searches; None where they are not.

    InputError where the update shows that the batch size is wrong.
    """
    if asked not in ("auto", "all"):
        return None
    return Pipeline().run(case.updates, case.knowledge, victims=[seed])


def attack(
    case: Case, attacks: Sequence[GradientMatching], options: Options, partial: Path, told: Callable[[int], object]
) -> tuple[Reconstruction, dict[str, dict[str, Any]]]:
    """The answer that explains the update best, by the attacker's own eyes, and what each attack came to.

    An exact answer is tried for first, see `solved`. What an interrupted run left in `partial` is gone on with. `told`
    hears of all iterations that are done.
    """
    answers: dict[str, dict[str, Any]] = {}
    best: Reconstruction | None = None
    before = 0
    exact = solved(case, options.attack, options.seed)
    if exact is not None and bool(exact.exact[0]):
        return exact, {exact.method[0]: _told(case, exact, "B")}
    if exact is not None:
        answers[EXACT] = {"misfit": None, "evaluations": int(exact.evaluations[0]), "reasons": list(exact.reasons)}
    for place, one in enumerate(attacks):

        def hear(done: int, before: int = before) -> None:
            told(before + done)

        found = one.run(
            case.updates,
            case.knowledge,
            run=options.seed,
            device=case.device,
            backend=options.backend,  # type: ignore[arg-type]
            checkpoint=partial / f"{place}.safetensors",
            on_part=hear,
        )
        before += one.iterations
        answers[one.name] = _told(case, found, one.letter)
        if best is None or answers[one.name]["misfit"] < answers[best.method[0]]["misfit"]:
            best = found
        if bool(found.exact[0]):
            best = found
            break
    assert best is not None
    return best, answers


def _told(case: Case, found: Reconstruction, letter: str) -> dict[str, Any]:
    """What one attack came to."""
    return {
        "misfit": float(misfit(case, found.selected(), found.selected_labels())[0]),
        "objective": [float(value) for value in found.objective[0]],
        "evaluations": int(found.evaluations[0]),
        "letter": letter,
    }
