"""Rows about reconstructions whose every number is known beforehand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attacks.metrics import clopper_pearson, mean_interval
from attacks.pictures import psnr
from attacks.reconstruction.base import Reconstruction
from experiments import reconstruction_scores
from experiments.reconstruction_scores import PRIOR, Public, Truth, probe_rows, score
from fl_core.checkpoint import save_tensors
from fl_core.errors import InputError

SIZE = (1, 8, 8)
PUBLIC = Public(images=torch.rand(30, *SIZE, generator=torch.Generator().manual_seed(99)))


def truth_of(victims, examples=1, seed=0, **more):
    """Pixels in [.25, .75], so that an error of a quarter stays inside [0, 1]."""
    draw = torch.Generator().manual_seed(seed)
    images = 0.25 + 0.5 * torch.rand(victims, examples, *SIZE, dtype=torch.float64, generator=draw)
    return Truth(images=images, labels=torch.zeros(victims, examples, dtype=torch.long), **more)


def found_of(images, objective=None, labels=None, **more):
    """`images` [victims, restarts, examples, ...], by an attack that found no labels unless told."""
    victims, restarts, examples = images.shape[:3]
    made = {
        "images": images,
        "labels": torch.full((victims, restarts, examples), -1) if labels is None else labels,
        "objective": torch.zeros(victims, restarts) if objective is None else objective,
        "evaluations": torch.zeros(victims),
        "method": ("made",) * victims,
        "exact": torch.zeros(victims, dtype=torch.bool),
    }
    return Reconstruction(**(made | more))


def scored(found, truth, public=PUBLIC, **more):
    return score(found, truth, public, attack="made", view="server", knowledge="B: all", **more)


def rows_by_metric(rows, attack="made"):
    return {row["metric"]: row for row in rows if row["attack"] == attack}


def values(rows, attack="made"):
    return {metric: row["value"] for metric, row in rows_by_metric(rows, attack).items()}


def test_a_constant_error_scores_its_closed_form_in_every_metric_of_pixels():
    truth = truth_of(5)
    got = values(scored(found_of(truth.images[:, None] + 0.1), truth))
    assert got["mse"] == pytest.approx(0.01, abs=1e-9)
    assert got["psnr"] == got["psnr_median"] == got["psnr_oracle"] == pytest.approx(20, abs=1e-6)
    assert got["registered_psnr"] == pytest.approx(20, abs=1e-6)
    assert got["psnr_gap"] == got["failed"] == got["exact"] == 0


def test_exact_recoveries_are_counted_and_enter_the_mean_as_a_hundred():
    truth = truth_of(3)
    images = truth.images + torch.tensor([0.0, 0.05, 0.2]).reshape(3, 1, 1, 1, 1)
    rows = rows_by_metric(scored(found_of(images[:, None]), truth))
    others = -20 * np.log10([0.05, 0.2])
    assert rows["psnr"]["value"] == pytest.approx((100 + others.sum()) / 3, abs=1e-5)
    assert rows["psnr_median"]["value"] == pytest.approx(others[0], abs=1e-5)
    assert rows["psnr"]["note"] == "1 exact"
    exact = clopper_pearson(1, 3)
    assert [rows["exact"][end] for end in ("value", "low", "high")] == [exact.value, exact.low, exact.high]
    assert rows["recognised"]["value"] == pytest.approx(2 / 3)


def test_a_batch_in_a_three_cycle_is_put_in_its_own_order_for_each_restart():
    truth = truth_of(4, examples=4)
    cycles = truth.images[:, [1, 2, 0, 3]], truth.images[:, [3, 0, 1, 2]]
    images = torch.stack(cycles, 1) + torch.tensor([0.1, 0.01]).reshape(1, 2, 1, 1, 1, 1)
    got = values(scored(found_of(images), truth))
    assert got["psnr"] == pytest.approx(20, abs=1e-6)
    assert got["psnr_oracle"] == pytest.approx(40, abs=1e-6)
    assert got["psnr_gap"] == pytest.approx(20, abs=1e-6)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_failure_is_counted_matched_last_and_scored_as_constant_grey(broken):
    truth = truth_of(2, examples=2)
    images = truth.images[:, None] + 0.1
    images[0, 0, 0, 0, 3, 3] = broken  # a picture of which one pixel is no number is none
    rows = rows_by_metric(scored(found_of(images), truth))
    grey = psnr(np.full((1, *SIZE), 0.5), truth.images[0, :1].numpy())[0]
    assert rows["failed"]["value"] == pytest.approx(1 / 4)
    assert rows["psnr"]["value"] == pytest.approx((3 * 20 + grey) / 4, abs=1e-6)
    assert rows["psnr"]["note"] == "1 failed"
    assert rows["identified"]["value"] == pytest.approx(3 / 4)


def test_an_attack_that_answers_nothing_scores_as_grey_and_is_never_recognised_even_where_the_truth_is_grey():
    truth = replace(truth_of(6), images=torch.full((6, 1, *SIZE), 0.5))
    got = values(scored(found_of(torch.full((6, 3, 1, *SIZE), torch.nan), torch.full((6, 3), torch.inf)), truth))
    assert got["failed"] == 1
    assert got["psnr"] == 100
    assert got["recognised"] == got["exact"] == got["identified"] == 0


def test_the_attackers_restart_is_by_its_objective_and_the_oracles_never_below_it():
    truth = truth_of(12, examples=3)
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(12, 5, 3, *SIZE, dtype=torch.float64, generator=draw)
    images[torch.rand(12, 5, 3, generator=draw) < 0.2] = torch.nan
    objective = torch.rand(12, 5, generator=draw)
    rows = scored(found_of(images, objective), truth)
    got = values(rows)
    assert got["psnr_gap"] > 0
    assert got["psnr_oracle"] == pytest.approx(got["psnr"] + got["psnr_gap"], abs=1e-9)
    for victim in range(3):
        one = Truth(images=truth.images[victim, None], labels=truth.labels[victim, None])
        alone = values(scored(found_of(images[victim, None], objective[victim, None]), one))
        assert alone["psnr_oracle"] >= alone["psnr"]
        picked = images[victim, objective[victim].argmin()][None, None]
        assert alone["psnr"] == values(scored(found_of(picked), one))["psnr"]


def test_the_oracles_restart_is_the_best_for_the_whole_batch_and_not_for_its_best_picture():
    truth = truth_of(3, examples=2)
    uneven = truth.images + torch.tensor([0.01, 0.2]).reshape(1, 2, 1, 1, 1)
    found = found_of(torch.stack([uneven, truth.images + 0.03], 1))
    assert values(scored(found, truth))["psnr_oracle"] == pytest.approx(-20 * np.log10(0.03), abs=1e-5)


def test_the_victim_is_the_unit_so_more_pictures_of_the_same_quality_narrow_no_interval():
    alone = truth_of(8)
    errors = torch.linspace(0.01, 0.2, 8, dtype=torch.float64).reshape(8, 1, 1, 1, 1)
    each = mean_interval(-20 * np.log10(errors.flatten().numpy()))
    for examples in (1, 6):
        truth = truth_of(8, examples)
        row = rows_by_metric(scored(found_of((truth.images + errors)[:, None]), truth))["psnr"]
        np.testing.assert_allclose(
            [row["value"], row["low"], row["high"]], [each.value, each.low, each.high], atol=1e-6
        )
    assert row["samples"] == "8 victims, 6 pictures each"
    assert scored(found_of(alone.images[:, None]), alone)[0]["samples"] == "8 victims"


def test_a_picture_of_another_member_is_not_identified_and_the_gallery_and_its_chance_are_stated():
    others = truth_of(1, examples=14, seed=5).images[0]
    truth = truth_of(6, others=others)
    own = rows_by_metric(scored(found_of(truth.images[:, None] + 0.02), truth))["identified"]
    assert own["value"] == 1
    assert own["low"] == clopper_pearson(6, 6).low
    assert own["note"] == "among 20 pictures; by chance 0.05"
    swapped = truth.images[[1, 2, 0, 3, 4, 5]]
    assert values(scored(found_of(swapped[:, None] + 0.02), truth))["identified"] == pytest.approx(1 / 2)
    assert values(scored(found_of(others[:6][:, None, None]), truth))["identified"] == 0
    batches = truth_of(5, examples=4, others=others)
    row = rows_by_metric(scored(found_of(batches.images[:, None]), batches))["identified"]
    assert row["note"] == "among 34 pictures; by chance at most 0.12", "any of the batch will do"


def test_blind_guesses_are_the_public_mean_the_class_means_of_the_attackers_labels_and_the_nearest_picture():
    truth = truth_of(3, examples=2)  # whose true labels are all 0
    images = torch.stack([torch.full(SIZE, grey) for grey in (0.1, 0.3, 0.9, 0.7)])
    public = Public(images=images, labels=torch.tensor([0, 0, 1, 1]))
    guessed = torch.tensor([[1, 1], [1, 0], [5, -1]])  # no public picture is of a 5
    rows = scored(found_of(truth.images[:, None], labels=guessed[:, None]), truth, public)

    def likeness(greys):
        return np.mean([psnr(np.full((1, *SIZE), g), t[None].numpy())[0] for g, t in zip(greys, pictures, strict=True)])

    pictures = truth.images.flatten(0, 1)
    assert values(rows, "blind (mean image)")["psnr"] == pytest.approx(likeness([0.5] * 6), abs=1e-5)
    nearest = [min((0.1, 0.3, 0.9, 0.7), key=lambda grey: float((one - grey).square().sum())) for one in pictures]
    assert values(rows, "blind (nearest public image)")["psnr"] == pytest.approx(likeness(nearest), abs=1e-5)
    pair = truth.images[1]
    best = max(
        np.mean([psnr(np.full((1, *SIZE), g), t[None].numpy())[0] for g, t in zip(greys, pair, strict=True)])
        for greys in ((0.8, 0.2), (0.2, 0.8))
    )
    pictures = truth.images[[0, 2]].flatten(0, 1)
    expected = (4 * likeness([0.8, 0.8, 0.5, 0.5]) + 2 * best) / 6
    assert values(rows, "blind (class mean)")["psnr"] == pytest.approx(expected, abs=1e-5)


def test_a_baseline_that_cannot_be_made_has_a_row_that_says_why():
    truth = truth_of(2)
    rows = scored(found_of(truth.images[:, None]), truth)
    (classes,) = [row for row in rows if row["attack"] == "blind (class mean)"]
    assert (classes["value"], classes["note"]) == (None, "the public pictures have no labels")
    (prior,) = [row for row in rows if row["attack"] == PRIOR]
    assert (prior["value"], prior["note"]) == (None, "not run")


def test_the_prior_without_the_gradient_is_scored_by_its_own_choice():
    truth = truth_of(4)
    images = torch.stack([truth.images + 0.2, truth.images + 0.1], 1)
    prior = found_of(images, torch.tensor([[0.0, 1.0]] * 4))
    got = values(scored(found_of(truth.images[:, None]), truth, prior=prior), PRIOR)
    assert got["psnr"] == pytest.approx(-20 * np.log10(0.2), abs=1e-6)
    assert "psnr_oracle" not in got


def test_labels_are_recalled_as_multisets_by_either_choice_of_a_restart():
    truth = replace(truth_of(2, examples=3), labels=torch.tensor([[4, 4, 1], [2, 3, 4]]))
    labels = torch.tensor([[[1, 4, 0], [4, 1, 4]], [[0, 0, 0], [4, 3, 2]]])
    worse = truth.images + 0.2
    found = found_of(torch.stack([worse, truth.images], 1), torch.tensor([[0.0, 1.0]] * 2), labels)
    got = values(scored(found, truth))
    assert got["label_recall"] == pytest.approx((2 / 3 + 0) / 2)
    assert got["label_recall_oracle"] == 1


def test_pixels_outside_of_pictures_are_cut_before_they_are_scored():
    truth = replace(truth_of(2), images=torch.ones(2, 1, *SIZE))
    assert values(scored(found_of(torch.full((2, 1, 1, *SIZE), 7.0)), truth))["exact"] == 1


def test_what_was_spent_which_attack_answered_and_what_it_verified_are_in_the_rows():
    truth = truth_of(4)
    found = found_of(
        truth.images[:, None],
        evaluations=torch.tensor([0, 0, 600, 600]),
        method=("rank", "made", "made", "made"),
        exact=torch.tensor([True, False, False, False]),
    )
    rows = rows_by_metric(scored(found, truth))
    assert rows["evaluations"]["value"] == 300
    assert rows["psnr"]["note"] == "4 exact; answered by made (3), rank (1)"
    assert rows["verified"]["value"] == 1 / 4


def test_what_does_not_apply_has_no_number_and_says_why(monkeypatch):
    monkeypatch.setattr(reconstruction_scores.perceptual, "missing", lambda: "LPIPS is absent: no weights")
    tiny = torch.rand(1, 1, 1, 2, 2)
    truth = Truth(images=tiny, labels=torch.zeros(1, 1, dtype=torch.long))
    rows = rows_by_metric(scored(found_of(tiny[:, None]), truth, Public(images=tiny[0])))
    assert (rows["lpips"]["value"], rows["lpips"]["note"]) == (None, "LPIPS is absent: no weights")
    assert "lpips_oracle" not in rows
    assert "no structure" in rows["ssim"]["note"]
    assert "gallery of one" in rows["identified"]["note"]
    assert (
        "window of 7x7 pixels"
        in rows_by_metric(scored(found_of(truth_of(2).images[:, None]), truth_of(2)))["ssim"]["note"]
    )


def test_lpips_stands_in_every_part_of_the_table_where_it_is_at_hand(monkeypatch):
    monkeypatch.setattr(reconstruction_scores.perceptual, "missing", lambda: "")
    monkeypatch.setattr(
        reconstruction_scores.perceptual, "lpips", lambda one, other: np.abs(one - other).max((1, 2, 3))
    )
    truth = truth_of(2, examples=2)
    rows = scored(found_of(truth.images[:, None, [1, 0]] + 0.1), truth)
    got = values(rows)
    assert got["lpips"] == got["lpips_oracle"] == pytest.approx(0.1, abs=1e-6)
    assert values(rows, "blind (mean image)")["lpips"] > 0


def test_spare_candidates_are_left_out_and_what_does_not_fit_is_refused():
    truth = truth_of(2, examples=2)
    spare = torch.cat([torch.rand(2, 3, *SIZE), truth.images], 1)[:, None]
    assert values(scored(found_of(spare), truth))["exact"] == 1
    for images in (truth.images[:, None, :1], truth.images[:1, None], truth.images[:, None, ..., :7]):
        with pytest.raises(InputError, match="do not fit the true ones"):
            scored(found_of(images), truth)
    with pytest.raises(InputError, match="public pictures"):
        scored(found_of(truth.images[:, None]), truth, Public(images=torch.rand(3, 1, 9, 9)))
    with pytest.raises(InputError, match="do not fit"):
        Truth(images=truth.images, labels=truth.labels[:, :1])


def test_the_probe_of_a_sweep_has_five_rows_by_the_same_rules(tmp_path, monkeypatch):
    draw = torch.Generator().manual_seed(3)
    public = torch.rand(20, *SIZE, generator=draw)
    recovered, truth = torch.rand(6, 4, *SIZE, generator=draw), torch.rand(6, *SIZE, generator=draw)
    objective = torch.rand(6, 4, generator=draw)
    stored = {
        "recovered": recovered, "objective": objective, "chosen": objective.argmin(1), "true_images": truth,
        "labels": torch.tensor([1, 2, 3, 4, 5, 6]), "true_labels": torch.tensor([1, 2, 3, 0, 0, 0]),
    }  # fmt: skip
    for part in range(2):
        mine = {name: value[3 * part : 3 * part + 3] for name, value in stored.items()}
        save_tensors(tmp_path / f"probe-{part}.safetensors", mine | {"update.head": torch.zeros(3, 2)})
    attack = SimpleNamespace(name="made", letter="B")
    targets = SimpleNamespace(pool=SimpleNamespace(shape=SIZE), test=SimpleNamespace(images=public))
    monkeypatch.setattr(reconstruction_scores, "probe_parts", lambda _: 2)
    rows = probe_rows(SimpleNamespace(targets=targets, reconstruction=attack), tmp_path)
    each = np.stack([psnr(recovered[:, restart], truth) for restart in range(4)], 1)
    nearest = [psnr(public, one.expand_as(public)).max() for one in truth]
    assert [(row["attack"], row["metric"], row["note"]) for row in rows] == [
        ("made", "psnr", ""),
        ("made", "psnr_oracle", "best restart by the truth"),
        ("blind (mean image)", "psnr", ""),
        ("blind (nearest public image)", "psnr", "picked by the truth"),
        ("made", "label_recall", ""),
    ]
    assert rows[0]["samples"] == "6 victims in as many replicas"
    assert rows[0]["view"] == "server"
    expected = [
        mean_interval(each[np.arange(6), stored["chosen"].numpy()]), mean_interval(each.max(1)),
        mean_interval(psnr(public.mean(0).expand_as(truth), truth)), mean_interval(np.array(nearest)),
        clopper_pearson(3, 6),
    ]  # fmt: skip
    for row, one in zip(rows, expected, strict=True):
        np.testing.assert_allclose([row["value"], row["low"], row["high"]], [one.value, one.low, one.high], atol=1e-5)
    monkeypatch.setattr(reconstruction_scores, "probe_parts", lambda _: 0)
    assert probe_rows(SimpleNamespace(targets=targets, reconstruction=attack), tmp_path) == []
