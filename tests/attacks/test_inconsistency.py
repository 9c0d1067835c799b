"""A sum over a cohort of which all but one were sent a dead model is that one's own update."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from attacks.reconstruction.imprint import BIAS, Imprint, projection, ruler
from attacks.reconstruction.inconsistency import InconsistencyKnowledge, ModelInconsistency
from fl_core.architectures import CNN, MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import ExampleFeed
from fl_core.views import MaliciousServer, SecureServer
from tests.observations import observation

SHAPE, CLASSES, CLIENTS, SEAT = (1, 8, 8), 10, 6, 2
MODELS = {
    "mlp": (lambda: MLP(SHAPE, CLASSES, hidden=(24, 16)), "hidden.1.bias"),
    "cnn": (lambda: CNN(SHAPE, CLASSES, width=8), "conv2.bias"),
    "cnn with a norm": (lambda: CNN(SHAPE, CLASSES, width=8, norm="group"), "norm2.bias"),
}


def round_of(model: nn.Module, sent: Tree, steps: int = 3) -> tuple[Tree, Tensor]:
    """The cohort's updates [clients, ...] after some local steps on five pictures each, and their labels."""
    data, _ = digits(limit=5 * CLIENTS)
    plan = [[torch.arange(5 * client, 5 * client + 5)] * steps for client in range(CLIENTS)]
    start = {name: value[0].clone() for name, value in sent.items()}
    feed = ExampleFeed(data.images, data.labels, plan)
    moved = descend(start, ClassificationLosses(model), feed, SGD(lr=0.1, momentum=0.5), backend="loop")
    return {name: moved[name] - start[name] for name in start}, data.labels.view(CLIENTS, 5)


def observed(sent: Tree, updates: Tree) -> MaliciousServer:
    total = {name: value.sum(0, keepdim=True) for name, value in updates.items()}
    everyone = torch.arange(CLIENTS)[None]
    return observation(MaliciousServer, sums={0: total}, cohorts={0: everyone}, sent={0: sent})


@pytest.mark.parametrize("kind", MODELS)
def test_the_sum_is_the_victim_s_own_update_bit_for_bit(kind: str):
    make, bias = MODELS[kind]
    model, attack = make(), ModelInconsistency(biases=[bias])
    honest = {name: value[None] for name, value in initial_parameters(model, 0).items()}
    sent = attack.broadcast(honest, CLIENTS, SEAT)
    updates, _ = round_of(model, sent)
    found = attack.run(observed(sent, updates), InconsistencyKnowledge(seat=SEAT))
    assert found.shared == ("head.bias",)
    for name, value in found.update.items():
        mine = updates[name][SEAT]
        assert mine.abs().max() > 0
        assert torch.equal(value[0], mine) == (name != "head.bias")


def test_what_the_others_add_above_the_dead_layer_counts_their_labels():
    # One step from equal logits: the update of the output bias is rate/size · (one-hot − 1/10), summed up.
    model, attack = MLP(SHAPE, CLASSES, hidden=(16,)), ModelInconsistency(biases=["hidden.0.bias"])
    honest = {name: value[None] for name, value in initial_parameters(model, 0).items()}
    honest["head.bias"] = torch.zeros_like(honest["head.bias"])
    updates, labels = round_of(model, attack.broadcast(honest, CLIENTS, SEAT), steps=1)
    others = torch.arange(CLIENTS) != SEAT
    total = updates["head.bias"][others].sum(0)
    counts = total * 5 / 0.1 + 5 * (CLIENTS - 1) / CLASSES
    assert torch.equal(counts.round().long(), torch.bincount(labels[others].flatten(), minlength=CLASSES))


def test_a_crafted_model_goes_to_the_victim_alone():
    model, attack = MLP(SHAPE, CLASSES, hidden=(16,)), ModelInconsistency(biases=["hidden.0.bias"])
    honest = {name: value[None] for name, value in initial_parameters(model, 0).items()}
    crafted = {name: value + 1 for name, value in honest.items()}
    sent = attack.broadcast(honest, CLIENTS, SEAT, crafted)
    for name, value in sent.items():
        assert torch.equal(value[:, SEAT], crafted[name])
        for seat in set(range(CLIENTS)) - {SEAT}:
            dead = honest[name] - 1e4 * (name == "hidden.0.bias")
            assert torch.equal(value[:, seat], dead)


def test_a_layer_that_goes_round_the_dead_one_is_killed_with_it():
    imprint = Imprint(bins=32, kind="sparse", gain=4.0)
    model = imprint.model(MLP(SHAPE, CLASSES, hidden=(16,)), SHAPE, CLASSES)
    attack = ModelInconsistency(biases=["inner.hidden.0.bias", BIAS], above=["inner.head.bias"])
    start = initial_parameters(model, 0)
    rule = ruler(projection(SHAPE, 0), 32, Normal(0.0, 0.5).icdf)
    honest, crafted = ({n: v[None] for n, v in one.items()} for one in (start, imprint.plant(start, rule)))
    updates, _ = round_of(model, attack.broadcast(honest, CLIENTS, SEAT, crafted))
    for name, value in updates.items():
        others = value[torch.arange(CLIENTS) != SEAT]
        assert value[SEAT].any()
        assert others.any() == (name == "inner.head.bias")


def test_the_victim_s_weight_in_the_sum_is_taken_out():
    attack = ModelInconsistency(biases=["b"], above=())
    sent = attack.broadcast({"b": torch.ones(1, 3)}, 2, 0)
    seen = observation(
        MaliciousServer, sums={0: {"b": torch.tensor([[0.5, 1.0, 2.0]])}}, cohorts={0: torch.arange(2)[None]},
        sent={0: sent},
    )  # fmt: skip
    found = attack.run(seen, InconsistencyKnowledge(seat=0, weight=0.5))
    assert torch.equal(found.update["b"], torch.tensor([[1.0, 2.0, 4.0]]))


def test_a_sum_to_which_a_living_model_contributed_is_refused():
    attack = ModelInconsistency(biases=["b"])
    sent = attack.broadcast({"b": torch.ones(1, 3)}, 3, 0)
    sent["b"][:, 1] = 1.0
    seen = observation(
        MaliciousServer, sums={0: {"b": torch.ones(1, 3)}}, cohorts={0: torch.arange(3)[None]}, sent={0: sent}
    )
    with pytest.raises(InputError, match="some client besides the victim"):
        attack.run(seen, InconsistencyKnowledge(seat=0))


def test_refusals_say_what_to_change():
    attack = ModelInconsistency(biases=["hidden.7.bias"])
    with pytest.raises(InputError, match=r"no hidden\.7\.bias; name its last hidden layer's bias"):
        attack.broadcast({"b": torch.ones(1, 3)}, 2, 0)
    with pytest.raises(InputError, match="needs the view malicious_server; it was given secure_server"):
        attack.run(observation(SecureServer), InconsistencyKnowledge(seat=0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"attack\.margin"):
        ModelInconsistency(biases=["b"], margin=0.0)
