from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from unfreeze.data.pixels.batches import (
    TrainBatches,
    batch_positions,
    eval_batches,
    eval_view,
    training_views,
)
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_part(num_images: int, *, size: int = 8, seed: int = 0) -> Part:
    """Random images with their own index as label; the part is every second of them, backwards."""
    images = np.random.default_rng(seed).integers(0, 256, (2 * num_images, size, size, 3), dtype=np.uint8)
    return Part(make_array(images, np.arange(2 * num_images)), np.arange(2 * num_images)[::-2].copy())


def spec(size: int) -> InputSpec:
    return InputSpec(size, MEAN, STD)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) in 0 to 1 → (3, H, W), in float64."""
    return ((pixels - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)


def batches(part: Part, **settings: object) -> TrainBatches:
    defaults = {"spec": spec(8), "batch_size": 12, "seed": 5, "augment": "none", "device": CPU}
    return TrainBatches(part=part, **{**defaults, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 7, 20, 33, 64])
def test_each_epoch_is_a_permutation_of_its_own(batch_size: int) -> None:
    num_images = 20
    steps = -(-3 * num_images // batch_size)
    stream = np.concatenate([batch_positions(num_images, s, batch_size=batch_size, seed=1) for s in range(steps)])
    epochs = [stream[start : start + num_images].tolist() for start in range(0, 3 * num_images, num_images)]
    assert all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    assert all(one != other for one, other in pairwise(epochs))


def test_a_step_needs_no_history_and_depends_on_the_seed() -> None:
    later = batch_positions(50, 9, batch_size=16, seed=1)
    assert later.tolist() == batch_positions(50, 9, batch_size=16, seed=1).tolist()
    assert later.shape == (16,)
    assert later.tolist() != batch_positions(50, 9, batch_size=16, seed=2).tolist()


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_batches_are_the_same_for_any_number_of_workers(augment: str, world_size: int) -> None:
    part = make_part(20)
    for step in (0, 1, 7):
        images, labels = batches(part, augment=augment).get(step)
        shares = [
            batches(part, augment=augment, rank=rank, world_size=world_size).get(step) for rank in range(world_size)
        ]
        assert torch.equal(torch.cat([share[1] for share in shares]), labels)
        torch.testing.assert_close(torch.cat([share[0] for share in shares]), images)
        assert all(len(share[1]) == 12 // world_size for share in shares)


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_training_batches_are_deterministic(augment: str) -> None:
    part = make_part(20)
    one, other = batches(part, augment=augment).get(3), batches(part, augment=augment).get(3)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    different = batches(part, augment=augment, seed=6).get(3)
    assert not torch.equal(one[0], different[0])


def test_images_keep_their_labels() -> None:
    part = make_part(20)
    images, labels = batches(part).get(1)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    for image, label in zip(images, labels, strict=True):
        expected = normalised(part.array.images[label] / 255)
        np.testing.assert_allclose(image.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_augmentation_is_drawn_anew_each_time_an_image_is_seen() -> None:
    part = make_part(4, size=16)
    first, again = (batches(part, batch_size=4, augment="crop_flip").get(step) for step in (0, 1))
    order = [first[1].tolist().index(label) for label in again[1].tolist()]
    assert all(not torch.equal(image, first[0][position]) for image, position in zip(again[0], order, strict=True))


@pytest.mark.parametrize(("augment", "num_views"), [("none", 0), ("crop_flip", 0), ("crop_flip", 3)])
def test_iterating_gives_what_get_gives(augment: str, num_views: int) -> None:
    source = batches(make_part(20), augment=augment, num_views=num_views)
    seen = list(source.iterate(2, 7))
    assert len(seen) == 5
    for step, (images, labels) in enumerate(seen, 2):
        assert torch.equal(images, source.get(step)[0])
        assert torch.equal(labels, source.get(step)[1])
    assert list(source.iterate(7, 7)) == []


def test_positions_are_those_of_the_images() -> None:
    part = make_part(20)
    for rank in range(3):
        source = batches(part, rank=rank, world_size=3)
        positions, views = source.positions(4)
        assert positions.dtype == views.dtype == np.int64
        assert part.labels[positions].tolist() == source.get(4)[1].tolist()
        assert views.tolist() == [0] * 4


def test_an_epoch_shows_each_image_once_in_its_view() -> None:
    num_images, num_views, batch_size = 10, 3, 4
    source = batches(make_part(num_images), batch_size=batch_size, augment="crop_flip", num_views=num_views)
    shown = [pair for step in range(15) for pair in zip(*source.positions(step), strict=True)]
    for epoch in range(6):
        part = shown[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(position for position, _ in part) == list(range(num_images))
        assert {view for _, view in part} == {epoch % num_views}


def test_fixed_views_are_the_same_for_every_trial_and_number_of_workers() -> None:
    part = make_part(10, size=16)
    pictures: dict[tuple[int, int], torch.Tensor] = {}
    times: Counter[tuple[int, int]] = Counter()
    for seed, world_size in ((0, 1), (1, 1), (2, 2)):
        for rank in range(world_size):
            settings = {"seed": seed, "rank": rank, "world_size": world_size, "batch_size": 4, "num_views": 2}
            source = batches(part, augment="crop_flip", **settings)
            for step in range(10):
                images, _ = source.get(step)
                for position, view, image in zip(*source.positions(step), images, strict=True):
                    key = (int(position), int(view))
                    times[key] += 1
                    torch.testing.assert_close(image, pictures.setdefault(key, image))
    assert set(times) == {(position, view) for position in range(10) for view in range(2)}
    assert all(not torch.equal(pictures[position, 0], pictures[position, 1]) for position in range(10))
    positions, views = (np.array(column) for column in zip(*pictures, strict=True))
    together = training_views(part, positions, views, spec(8), augment="crop_flip", device=CPU)
    torch.testing.assert_close(together, torch.stack(list(pictures.values())))


def test_without_augmentation_there_is_one_view_that_of_evaluation() -> None:
    part = make_part(6, size=10)
    source = batches(part, batch_size=6, num_views=4)
    positions, views = source.positions(9)
    assert views.tolist() == [0] * 6
    expected = eval_view(torch.from_numpy(part.take(positions)), spec(8))
    assert torch.equal(source.get(9)[0], expected)
    assert torch.equal(training_views(part, positions, views, spec(8), augment="none", device=CPU), expected)


def test_augmented_pixels_are_pixels_of_the_image() -> None:
    part = make_part(20, size=16)
    images, labels = batches(part, augment="crop_flip").get(0)
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert images.shape == (12, 3, 8, 8)
    for image, label in zip(pixels, labels, strict=True):
        original = torch.from_numpy(part.array.images[label] / 255).amax(dim=(0, 1))
        assert (image.amax(dim=(1, 2)) <= original + 1e-5).all()
    assert pixels.min() >= -1e-5


@pytest.mark.parametrize(("num_images", "world_size", "batch_size"), [(13, 1, 4), (13, 4, 3), (12, 3, 4), (2, 5, 8)])
def test_evaluation_sees_each_image_exactly_once(num_images: int, world_size: int, batch_size: int) -> None:
    part = make_part(num_images)
    seen: list[int] = []
    for rank in range(world_size):
        ranks = eval_batches(part, spec(8), batch_size=batch_size, device=CPU, rank=rank, world_size=world_size)
        for images, labels in ranks:
            assert len(images) == len(labels) <= batch_size
            for image, label in zip(images, labels.tolist(), strict=True):
                expected = normalised(part.array.images[label] / 255)
                np.testing.assert_allclose(image.numpy(), expected, rtol=1e-5, atol=1e-6)
            seen += labels.tolist()
    assert sorted(seen) == sorted(part.labels.tolist())


@pytest.mark.parametrize(("stored", "size"), [(8, 8), (9, 8), (10, 8), (16, 7), (256, 224)])
def test_eval_view_crops_the_centre(stored: int, size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, stored, stored, 3), dtype=np.uint8)
    start = (stored - size) // 2
    view = eval_view(torch.from_numpy(images), spec(size))
    for image, result in zip(images, view, strict=True):
        expected = normalised(image[start : start + size, start : start + size] / 255)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("stored", "size"), [(8, 9), (8, 32), (32, 224), (1, 8)])
def test_eval_view_enlarges_as_pil_does(stored: int, size: int, interpolation: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, stored, stored, 3), dtype=np.uint8)
    view = eval_view(torch.from_numpy(images), replace(spec(size), interpolation=interpolation))
    for image, result in zip(images, view, strict=True):
        channels = [Image.fromarray((image[..., c] / 255).astype(np.float32)) for c in range(3)]
        enlarged = [
            np.asarray(channel.resize((size, size), Image.Resampling[interpolation.upper()])) for channel in channels
        ]
        expected = normalised(np.stack(enlarged, axis=-1).clip(0, 1).astype(np.float64))
        np.testing.assert_allclose(result.numpy(), expected, atol=2e-5)


def test_crops_lie_inside_the_image_and_vary() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (64, 64, 64, 3)).copy()
    part = Part(make_array(ramp, np.arange(64)), np.arange(64))
    images, _ = batches(part, spec=InputSpec(32, (0.0,) * 3, (1.0,) * 3), batch_size=64, augment="crop_flip").get(0)
    columns = images[:, 0, 0] * 255
    rising = columns[:, -1] > columns[:, 0]
    assert 10 < int(rising.sum()) < 54
    assert columns.min() >= 0
    assert columns.max() <= 63
    widths = (columns[:, -1] - columns[:, 0]).abs() / 64
    assert widths.min() > 0.2
    assert float(widths.max() - widths.min()) > 0.3
