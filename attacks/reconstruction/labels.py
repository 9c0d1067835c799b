"""Labels read off an update, before any picture is rebuilt."""

from __future__ import annotations

import copy
from collections.abc import Container

import torch
from torch import Tensor, nn

from attacks.reconstruction.base import Knowledge, Updates
from fl_core.errors import InputError
from fl_core.optimizers import Tree
from fl_core.seeds import generator


def output_bias(parameters: Tree, classes: int) -> str:
    """The name of the last layer's bias: the last vector with one entry a class. InputError where there is none."""
    names = [name for name, value in parameters.items() if value.shape[1:] == (classes,)]
    if not names:
        raise InputError("the label cannot be inferred: the model has no output bias with one entry a class")
    return names[-1]


def infer_label_from_weights(gradient: Tree, weight: str) -> Tensor:
    """The label [lanes] behind each lane's gradient of one example, where the output bias says nothing of its own.

    Of the output layer's `weight` [lanes, classes, units] each class's row is (softmax − one-hot) times the units'
    values; where no unit is negative, as after a ReLU, the label's row is the only one with a negative sum (Zhao et al.
    2020, iDLG). Noise may tip the verdict; the smallest sum stays the guess.
    """
    return torch.argmin(gradient[weight].sum(2), dim=1)


def infer_single_label(gradient: Tree, classes: int) -> Tensor:
    """The label [lanes] behind each lane's gradient [lanes, ...] of one example's cross-entropy.

    The gradient of the output bias is softmax minus one-hot, so the only negative entry is the label's (Zhao et al.
    2020, iDLG, in the bias form of Geiping et al. 2020). Noise may tip the verdict; the smallest entry stays the guess.
    """
    return torch.argmin(gradient[output_bias(gradient, classes)], dim=1)


def infer_label_counts(gradient: Tree, chances: Tensor, examples: int) -> Tensor:
    """How often each label is behind a mean gradient over `examples` of them: [lanes, classes] whole numbers.

    The output bias's gradient is the mean softmax minus the share of each label, so `examples` times the mean chance
    minus it is the count. `chances` [classes] are the model's mean ones, which an untrained model gives any pictures.
    Rounded so that counts add up, the largest remainders up. Source: the bias form of Wainakh et al. 2022 (LLG).
    """
    shares = chances - gradient[output_bias(gradient, len(chances))]
    return _whole(examples * shares, examples)


# Classes behind a batch


def present_classes(gradient: Tree, classes: int) -> Tensor:
    """The classes [lanes, classes] that some picture of a batch surely has: those of a negative ∂b in the output layer.

    ∂b is the mean softmax less the share of each label, and only a label is ever taken off: no false alarm, but in a
    large batch chances outweigh a rare label (Yin et al. 2021, in the bias form).
    """
    return gradient[output_bias(gradient, classes)] < 0


def llg_counts(signal: Tensor, examples: int, impact: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """Label counts [lanes, classes] by impact and offset (Wainakh et al. 2022, LLG).

    `signal` [lanes, classes] is the output layer's weight gradient summed over its units, or the bias gradient. Each
    picture of a class moves that class's by `impact` [lanes], which is negative, on top of an `offset` [lanes, classes]
    that comes of the other pictures. With auxiliary pictures both are measured (`llg_impacts`); without, the impact is
    that of the negative entries, (1 + 1/classes)·Σ/examples, and no offset is known. Classes of a negative signal are
    taken once, then greedily the lowest after each impact is taken off. The signal's scale cancels without auxiliaries.
    """
    lanes, classes = signal.shape
    left = signal.double().clone()
    if impact is None:
        impact = left.clamp(max=0).sum(1) * (1 + 1 / classes) / examples
    impact = impact.double().clamp(max=-1e-300)
    counts = torch.zeros(lanes, classes, dtype=torch.long)
    for lane in range(lanes):
        sure = (left[lane] < 0).nonzero().flatten()
        sure = sure[left[lane, sure].argsort()][:examples]
        counts[lane, sure] += 1
        left[lane, sure] -= impact[lane]
        if offset is not None:
            left[lane] -= offset[lane]
        for _ in range(examples - len(sure)):
            lowest = int(left[lane].argmin())
            counts[lane, lowest] += 1
            left[lane, lowest] -= impact[lane]
    return counts


def llg_impacts(model: nn.Module, sent: Tree, weight: str, pictures: Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """The impact [lanes] and offset [lanes, classes] of LLG, measured on auxiliary `pictures` [pictures, ...].

    Every picture is given every label in turn. The impact is the mean change of a class's signal by one picture of
    `examples` with that label; the offset is the mean signal of a class none of whose pictures is in the batch.
    """
    impacts, offsets = [], []
    for lane in range(len(sent[weight])):
        inputs, chances = _outputs(model, {name: value[lane] for name, value in sent.items()}, weight, pictures)
        sums = inputs.sum(1)  # the weight gradient's row sum is (chance − one-hot)·Σ units, a picture
        impacts.append(-sums.mean() / examples)
        offsets.append((chances * sums[:, None]).mean(0))
    return torch.stack(impacts), torch.stack(offsets)


def ilrg_counts(sent: Tree, gradient: Tree, layer: str, examples: int, chances: Tensor) -> Tensor:
    """Label counts [lanes, classes] from chances that are recovered class by class (Ma et al. 2022, iLRG).

    ∂W_r/∂b_r of the output `layer` is about the mean feature of class r's pictures, as (chance − 1) is far larger than
    a chance; the layer itself turns it into the chances of class r's pictures, p_r. The counts n then solve
    Σ_r n_r·p_r − n = examples·∂b and Σ n = examples, by least squares. Rounded as `infer_label_counts` does. A class
    whose ∂b is not negative has too few pictures for that quotient to be theirs; `chances` [lanes, classes], the mean
    ones of any pictures, stand in for it.
    """
    weight, bias = (sent[f"{layer}.{part}"].double() for part in ("weight", "bias"))
    weight_moved, bias_moved = (gradient[f"{layer}.{part}"].double() for part in ("weight", "bias"))
    safe = torch.where(bias_moved == 0, torch.inf, bias_moved)
    features = weight_moved / safe.unsqueeze(2)  # [lanes, classes, units]
    own = (features @ weight.transpose(1, 2) + bias.unsqueeze(1)).softmax(2)
    own = torch.where(bias_moved.unsqueeze(2) < 0, own, chances.double().unsqueeze(1))
    lanes, classes = bias_moved.shape
    system = torch.cat([own.transpose(1, 2) - torch.eye(classes), torch.ones(lanes, 1, classes)], 1)
    known = torch.cat([examples * bias_moved, torch.full((lanes, 1), float(examples))], 1)
    shares: Tensor = torch.linalg.pinv(system.double()) @ known.unsqueeze(2)
    return _whole(shares.squeeze(2), examples)


def _whole(real: Tensor, examples: int) -> Tensor:
    """Whole numbers [lanes, classes] near `real` that add up to `examples`, the largest remainders up."""
    real = real.clamp(min=0)
    real = real * (examples / real.sum(1, keepdim=True).clamp(min=1e-12))
    whole = real.floor()
    missing = (examples - whole.sum(1)).round().long()
    rank = (real - whole).argsort(1, descending=True).argsort(1)
    return (whole + (rank < missing[:, None])).long()


# From an update


def output_layer(model: nn.Module, names: Container[str], classes: int) -> str:
    """The name of the last linear layer with one output a class whose weight is in `names`; InputError for none."""
    found = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == classes and f"{name}.weight" in names
    ]
    if not found:
        raise InputError(
            f"labels cannot be inferred: the update has no linear output layer of {classes} classes; tell the labels"
        )
    last: str = found[-1]
    return last


def infer_labels(updates: Updates, knowledge: Knowledge) -> Tensor:
    """The labels [victims, examples] behind each update, in rising order; those told, where the attacker was told.

    The order of choice. One picture: the sign of ∂b (iDLG), or without a bias the longest row of ∂W, which is the
    label's as its entry of (softmax − one-hot) is as large as all others together; two classes without a bias by the
    row sums. A batch with a bias and a learning rate: the sum of chances (`infer_label_counts`) where public pictures
    all get about the same, as an untrained model gives them, and iLRG otherwise. Without a bias: LLG with auxiliary
    pictures, public ones or noise. Where no learning rate tells the gradient's length: LLG without auxiliaries. Of
    several local steps the mean gradient is taken as if one model had made it, and the answer is approximate. Raises
    InputError for a model without a linear output layer.
    """
    if knowledge.labels is not None:
        return knowledge.labels
    layer = output_layer(knowledge.model, updates.moved.keys(), knowledge.classes)
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    has_bias = bias in updates.moved
    taken = knowledge.steps * knowledge.epochs
    gradient = updates.gradient(None if knowledge.lr is None else knowledge.lr * taken)
    if knowledge.examples == 1:
        if has_bias:
            return infer_single_label({bias: gradient[bias]}, knowledge.classes)[:, None]
        if knowledge.classes > 2:
            longest: Tensor = gradient[weight].norm(dim=2).argmax(1, keepdim=True)
            return longest
        return infer_label_from_weights(gradient, weight)[:, None]
    pictures = knowledge.public
    if pictures is None:
        pictures = torch.rand(256, *knowledge.shape, generator=generator(0, "pictures for label counts"))
    if knowledge.lr is None:
        counts = llg_counts(gradient[bias] if has_bias else gradient[weight].sum(2), knowledge.examples)
    elif has_bias:
        lanes = ({name: value[lane] for name, value in updates.sent.items()} for lane in range(len(updates)))
        every = torch.stack([_outputs(knowledge.model, lane, weight, pictures)[1] for lane in lanes])
        chances = every.mean(1)
        counts = ilrg_counts(updates.sent, gradient, layer, knowledge.examples, chances)
        if knowledge.public is not None:  # an untrained model gives all pictures the same chances, known closely then
            alike = every.std(1).amax(1) < 0.05
            summed = torch.stack(
                [
                    infer_label_counts({bias: gradient[bias][[lane]].double()}, chances[lane], knowledge.examples)[0]
                    for lane in range(len(updates))
                ]
            )
            counts = torch.where(alike[:, None], summed, counts)
    else:
        impact, offset = llg_impacts(knowledge.model, updates.sent, weight, pictures, knowledge.examples)
        counts = llg_counts(gradient[weight].sum(2), knowledge.examples, impact, offset)
    every = torch.arange(knowledge.classes)
    return torch.stack([every.repeat_interleave(count.cpu()) for count in counts])


def labels_of_pictures(updates: Updates, knowledge: Knowledge, images: Tensor) -> Tensor:
    """Whose label is which: the labels [victims, examples] of recovered pictures [victims, examples, ...].

    With the pictures' features H and one-hot labels Y, the output layer's ∂W is (softmax − Y)ᵀ·H/examples, in which
    only Y is unknown; where H has full rank each picture's row of softmax − Y comes out, and its lowest entry is the
    label's. Its length does not matter. A picture of NaN gets −1.
    """
    layer = output_layer(knowledge.model, updates.moved.keys(), knowledge.classes)
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    found = torch.full(images.shape[:2], -1)
    for victim in range(len(updates)):
        there = torch.isfinite(images[victim]).flatten(1).all(1)
        if not there.any():
            continue
        sent = {name: value[victim] for name, value in updates.sent.items()}
        features, _ = _outputs(knowledge.model, sent, weight, images[victim, there])
        moved = -updates.moved[weight][victim].double()
        if bias in updates.moved:
            features = torch.cat([features, features.new_ones(len(features), 1)], 1)
            moved = torch.cat([moved, -updates.moved[bias][victim].double()[:, None]], 1)
        found[victim, there] = (moved @ torch.linalg.pinv(features)).argmin(0)
    return found


def _outputs(model: nn.Module, sent: Tree, weight: str, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the layer of `weight`, and the model's chances: [pictures, units] and [pictures, classes]."""
    trial = copy.deepcopy(model).double().eval()
    trial.load_state_dict({name: value.double() for name, value in sent.items()}, strict=False)
    layer = trial.get_submodule(weight.removesuffix(".weight"))
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        with torch.no_grad():
            chances = trial(pictures.double()).softmax(1)
    finally:
        handle.remove()
    return seen[-1], chances
