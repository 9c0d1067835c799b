"""Pictures out of sums: exact where one picture alone moves a unit, mixtures elsewhere, and label counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from attacks.pictures import match, psnr
from attacks.reconstruction.labels import infer_label_counts
from attacks.reconstruction.sums import InvertingSums, Rows, SumKnowledge
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN, MLP
from fl_core.data import ImageSet, digits
from fl_core.errors import InputError
from fl_core.federation import Federation, run
from fl_core.sampling import Shuffled
from fl_core.seeds import generator
from fl_core.views import Recorder, ReleasedModel, SecureServer

SHAPE, CLASSES, LR = (1, 8, 8), 10, 0.1


def model(hidden: int = 32) -> MLP:
    return MLP(SHAPE, CLASSES, hidden=[hidden])


def knowledge(net: nn.Module) -> SumKnowledge:
    return SumKnowledge(model=net, shape=SHAPE, classes=CLASSES, lr=LR)


def pictures(cohort: int, replicas: int = 1, seed: int = 0) -> ImageSet:
    """`replicas` cohorts of `cohort` clients with a picture each, one cohort after the other."""
    pool, _ = digits()
    return pool.select(torch.randperm(len(pool), generator=generator(seed, "cohort"))[: cohort * replicas])


def observed(net: nn.Module, data: ImageSet, cohort: int) -> SecureServer:
    """The engine's own view of one masked round."""
    replicas = len(data) // cohort
    federation = Federation(
        model=net,
        data=data,
        owners=torch.arange(cohort).repeat(replicas),
        members=torch.eye(replicas, dtype=torch.bool).repeat_interleave(cohort, 1),
        sizes=torch.ones(cohort, dtype=torch.long),
        algorithm=FedAvg(sampler=Shuffled(batch_size=1), lr=LR),
        defense=Defense(),
        rounds=1,
        run=0,
        replica_ids=range(replicas),
        backend="vmap",
    )
    recorder = Recorder(SecureServer)
    run(federation, recorder)
    observation = recorder.observation()
    assert isinstance(observation, SecureServer)
    return observation


def chosen(found: object) -> Tensor:
    return found.images[torch.arange(len(found.images)), found.chosen]  # type: ignore[attr-defined]


def test_a_sum_over_one_client_is_its_picture_exactly():
    net, data = model(), pictures(1, replicas=20)
    found = chosen(Rows().run(observed(net, data, 1), knowledge(net)))
    assert psnr(found, data.images).min() > 100


def test_in_small_cohorts_the_attacker_picks_somebody_s_exact_picture_without_the_truth():
    net, data = model(), pictures(4, replicas=20)
    found = chosen(Rows().run(observed(net, data, 4), knowledge(net)))
    true = data.images.unflatten(0, (20, 4))
    exact = [float(psnr(one.expand_as(own), own).max()) > 80 for one, own in zip(found, true, strict=True)]
    assert sum(exact) >= 15


def test_a_row_is_a_mixture_whose_weights_add_up_to_one():
    net, data = model(4), pictures(12)
    seen = observed(net, data, 12)
    update = seen.sums[0]
    rows = (update["hidden.0.weight"] / update["hidden.0.bias"].unsqueeze(2))[0].double()
    inputs = (2 * data.images - 1).flatten(1).double()
    weights = torch.linalg.lstsq(inputs.T, rows.T).solution
    assert torch.allclose(inputs.T @ weights, rows.T, atol=1e-3)
    assert weights.sum(0).numpy() == pytest.approx(1, abs=1e-3)


def test_large_cohorts_leave_mixtures_in_nearly_all_rows():
    net, data = model(8), pictures(64, replicas=4)
    found = Rows().run(observed(net, data, 64), knowledge(net)).images
    true = data.images.unflatten(0, (4, 64))
    near = [float(psnr(one.expand_as(own), own).max()) for rows, own in zip(found, true, strict=True) for one in rows]
    assert sum(value < 20 for value in near) >= 28


@pytest.mark.parametrize("cohort", [1, 4, 16])
def test_label_counts_of_small_cohorts_are_exact_on_an_untrained_network(cohort: int):
    net, data = model(), pictures(cohort)
    seen = observed(net, data, cohort)
    gradient = {name: -value / LR for name, value in seen.sums[0].items()}
    sent = {name: value[0] for name, value in seen.models[0].items()}
    dummies = torch.rand(256, *SHAPE, generator=generator(0, "dummies"))
    chances = torch.func.functional_call(net, sent, (dummies,)).softmax(1).mean(0).detach()
    counts = infer_label_counts(gradient, chances, cohort)[0]
    assert torch.equal(counts, torch.bincount(data.labels, minlength=CLASSES))


def test_counts_add_up_to_the_cohort_whatever_the_gradient():
    gradient = {"head.bias": torch.randn(50, CLASSES)}
    counts = infer_label_counts(gradient, torch.full((CLASSES,), 0.1), 7)
    assert counts.sum(1).tolist() == [7] * 50
    assert int(counts.min()) >= 0


@pytest.mark.heavy
def test_pictures_of_two_clients_are_fitted_to_their_sum():
    net, data = model(64), pictures(2, replicas=3)
    found = InvertingSums(iterations=300, total_variation=1e-3).run(
        observed(net, data, 2), knowledge(net), backend="vmap"
    )
    true = data.images.unflatten(0, (3, 2))
    values = [psnr(one[match(one, own)], own) for one, own in zip(found.images, true, strict=True)]
    assert min(value.min() for value in values) > 20


def test_what_cannot_be_inverted_is_refused():
    data = pictures(2)
    net = CNN(SHAPE, CLASSES, width=4)
    with pytest.raises(InputError, match="a first layer that is fully connected"):
        Rows().run(observed(net, data, 2), knowledge(net))
    late = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(64, CLASSES))
    with pytest.raises(InputError, match="to be the model's first one"):
        Rows().run(observed(late, data, 2), knowledge(late))
    squared = nn.Sequential(Squared(), nn.Flatten(), nn.Linear(64, CLASSES))
    with pytest.raises(InputError, match="normalises each pixel by itself and linearly"):
        Rows().run(observed(squared, data, 2), knowledge(squared))
    with pytest.raises(InputError, match="needs the view secure_server"):
        Rows().run(ReleasedModel(model={}), knowledge(net))  # type: ignore[arg-type]


class Squared(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels**2


def test_noise_that_keeps_no_row_in_range_leaves_the_largest_bias_gradient():
    net, data = model(), pictures(3)
    seen = observed(net, data, 3)
    noisy = {name: value + torch.randn(value.shape) * (value.dim() > 2) for name, value in seen.sums[0].items()}
    found = Rows().run(dataclasses.replace(seen, sums={0: noisy}), knowledge(net))
    assert found.chosen.tolist() == noisy["hidden.0.bias"].abs().argmax(1).tolist()
