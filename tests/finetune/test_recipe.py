from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unfreeze.config import FinetuneConfig
from unfreeze.finetune.recipe import MovingAverage, Targets, mix

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
SWAPPED = torch.tensor([1, 0, 3, 2, 1, 0])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_without_mixing_the_batch_is_what_it_was(images: Tensor) -> None:
    mixed, targets = mix(images, LABELS, FinetuneConfig(), seed=1)
    assert mixed is images
    assert targets.partners is None
    logits = torch.randn(6, 4)
    loss = targets.loss_sum(logits, slice(0, 6), smoothing=0.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS, reduction="sum"))


def test_mixup_is_a_convex_combination_of_neighbours(images: Tensor) -> None:
    mixed, targets = mix(images, LABELS, FinetuneConfig(mixup_alpha=0.8), seed=1)
    assert targets.partners is not None
    assert targets.partners.tolist() == SWAPPED.tolist()
    assert 0 < targets.weight < 1
    swapped = images[[1, 0, 3, 2, 5, 4]]
    torch.testing.assert_close(mixed, targets.weight * images + (1 - targets.weight) * swapped)


def test_cutmix_pastes_a_box_and_weighs_labels_by_its_area(images: Tensor) -> None:
    mixed, targets = mix(images, LABELS, FinetuneConfig(cutmix_alpha=1.0), seed=3)
    swapped = images[[1, 0, 3, 2, 5, 4]]
    pasted = (mixed == swapped).all(dim=1) & (mixed != images).any(dim=1)
    kept = (mixed == images).all(dim=1)
    assert bool((pasted | kept).all())
    for mask in pasted:
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert mask.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert float(mask.float().mean()) == pytest.approx(1 - targets.weight)


def test_the_weight_is_drawn_from_the_beta_distribution(images: Tensor) -> None:
    weights = [mix(images, LABELS, FinetuneConfig(mixup_alpha=2.0), seed=s)[1].weight for s in range(400)]
    assert np.mean(weights) == pytest.approx(0.5, abs=4 * 0.2236 / 20)
    assert np.std(weights) == pytest.approx(0.2236, abs=0.03)


def test_with_both_each_is_drawn_about_half_the_time(images: Tensor) -> None:
    config = FinetuneConfig(mixup_alpha=0.8, cutmix_alpha=1.0)
    originals = {round(v, 6) for v in images.flatten().tolist()}
    pasted = sum(
        {round(v, 6) for v in mix(images, LABELS, config, seed=s)[0].flatten().tolist()} <= originals
        for s in range(100)
    )
    assert 30 < pasted < 70


def test_two_workers_mix_the_pairs_that_one_mixes(images: Tensor) -> None:
    images, labels = images[:4], LABELS[:4]
    config = FinetuneConfig(mixup_alpha=0.8, cutmix_alpha=1.0)
    for seed in range(6):
        whole, targets = mix(images, labels, config, seed=seed)
        shares = [mix(images[part], labels[part], config, seed=seed) for part in (slice(0, 2), slice(2, 4))]
        assert torch.equal(whole, torch.cat([share for share, _ in shares]))
        assert [t.weight for _, t in shares] == [targets.weight] * 2


def test_loss_of_mixed_and_smoothed_targets_is_that_of_soft_labels() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    loss = Targets(LABELS, SWAPPED, 0.3).loss_sum(logits[2:5], slice(2, 5), smoothing=0.1)
    soft = 0.3 * F.one_hot(LABELS, 4) + 0.7 * F.one_hot(SWAPPED, 4)
    soft = 0.9 * soft + 0.1 / 4
    torch.testing.assert_close(loss, -(soft * logits.log_softmax(1))[2:5].sum())


def test_the_average_follows_the_weights_and_gives_them_back() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = MovingAverage({"w": weight}, decay=0.9)
    expected = torch.zeros(3)
    for step in range(30):
        with torch.no_grad():
            weight.add_(1.0)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
    torch.testing.assert_close(average.values["w"], expected)
    with average.in_place():
        torch.testing.assert_close(weight.detach(), expected)
    assert weight.tolist() == [30.0] * 3


def test_an_average_goes_on_from_a_checkpoint(make_average: Callable[[], MovingAverage]) -> None:
    first, second = make_average(), make_average()
    first.update(0)
    second.load({"w": first.values["w"].clone()})
    first.update(1)
    second.update(1)
    assert torch.equal(first.values["w"], second.values["w"])


@pytest.fixture
def make_average() -> Callable[[], MovingAverage]:
    weight = torch.nn.Parameter(torch.arange(3.0))
    other = torch.nn.Parameter(torch.ones(3))

    def make() -> MovingAverage:
        average = MovingAverage({"w": weight}, decay=0.5)
        average.values["w"].copy_(other.detach())
        return average

    return make
