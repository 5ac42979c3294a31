"""Images that stay in their files: the same squares, torchvision's crops, worker processes, bad files."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageOps

from unfreeze.config import DataConfig
from unfreeze.data.pixels.batches import TrainBatches, eval_batches, training_views
from unfreeze.data.pixels.boxes import Crops
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.part import Part
from unfreeze.data.pixels.stream import ImageFiles
from unfreeze.data.sets.catalog import load_source, load_test, load_train_val
from unfreeze.data.sets.remarks import look_over
from unfreeze.errors import DataError

CPU = torch.device("cpu")
SPEC = InputSpec(16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SIZES = [(40, 24), (24, 40), (30, 30), (60, 20), (33, 47)]


def texture(width: int, height: int, seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    root = tmp_path / "images"
    for index in range(24):
        path = root / ("cat", "dog")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        texture(*SIZES[index % len(SIZES)], seed=index).save(path)
    return DataConfig(
        name="folder", path=str(root), source_path=str(root), cache_dir=str(tmp_path / "cache"), loading="stream"
    )


def batches(part: Part, **settings: Any) -> TrainBatches:
    defaults = {"spec": SPEC, "batch_size": 6, "seed": 5, "augment": "crop_flip", "device": CPU}
    return TrainBatches(part=part, **{**defaults, **settings})


def files_of(part: Part) -> ImageFiles:
    assert isinstance(part.array, ImageFiles)
    return part.array


def original(part: Part, position: int) -> Image.Image:
    files = files_of(part)
    return Image.open(files.decoder.root / files.files[part.indices[position]])


@pytest.mark.parametrize("corruption", [None, "gaussian_noise"])
def test_streamed_images_are_those_of_memory(config: DataConfig, corruption: Any) -> None:
    config.corruption = corruption
    streamed, sealed = load_train_val(config, image_size=16), load_test(config, image_size=16)
    config.loading = "memory"
    held, held_test = load_train_val(config, image_size=16), load_test(config, image_size=16)
    for one, other in ((streamed.train, held.train), (streamed.val, held.val), (sealed, held_test)):
        assert one.streams
        assert not other.streams
        assert one.labels.tolist() == other.labels.tolist()
        assert np.array_equal(one.take(np.arange(len(one))), other.take(np.arange(len(other))))
    both = [[images for images, _ in eval_batches(p.val, SPEC, batch_size=2, device=CPU)] for p in (streamed, held)]
    assert all(torch.equal(*pair) for pair in zip(*both, strict=True))


def test_a_crop_is_torchvisions_of_the_whole_image(config: DataConfig) -> None:
    """Pixel for pixel what torchvision makes of the PIL image with the same box; whole images, not squares."""
    part = load_train_val(config, image_size=16).train
    positions, _ = batches(part).positions(2)
    images, labels = batches(part).get(2)
    crops = batches(part)._crops(2)
    assert crops is not None
    beyond = 0
    for position, image, box, flip, label in zip(
        positions, images, crops.boxes.tolist(), crops.flips.tolist(), labels.tolist(), strict=True
    ):
        left, top, width, height = box
        picture = original(part, position)
        beyond += max(box[2:]) > min(picture.size)
        expected = tv.resized_crop(picture, top, left, height, width, [16, 16], antialias=True)
        expected = tv.hflip(expected) if flip else expected
        pixels = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1) / 255
        expected = (pixels - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=1e-6)
        assert label == part.labels[position]


def test_boxes_reach_beyond_the_square(config: DataConfig) -> None:
    part = load_train_val(config, image_size=16).train
    reach = 0
    for step in range(20):
        crops = batches(part)._crops(step)
        assert crops is not None
        sizes = part.sizes(batches(part).positions(step)[0])
        reach += int((crops.boxes[:, 2:].amax(1) > sizes.amin(1)).sum())
    assert reach > 0


@pytest.mark.parametrize(("augment", "num_views"), [("crop_flip", 0), ("crop_flip", 2), ("none", 0)])
def test_worker_processes_give_what_get_gives(config: DataConfig, augment: str, num_views: int) -> None:
    part = load_train_val(config, image_size=16).train
    ranks = [batches(part, augment=augment, num_views=num_views, rank=r, world_size=2) for r in range(2)]
    state = torch.get_rng_state()
    for rank in ranks:
        seen = list(rank.iterate(1, 6))
        assert len(seen) == 5
        for step, (images, labels) in enumerate(seen, 1):
            expected, expected_labels = rank.get(step)
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)
    assert torch.equal(torch.get_rng_state(), state)  # dropout's numbers are not touched


def test_a_consumer_may_stop_early(config: DataConfig) -> None:
    part = load_train_val(config, image_size=16).train
    stream = batches(part).iterate(0, 100)
    assert len(list(islice(stream, 2))) == 2
    stream.close()
    assert list(stream) == []


def test_fixed_views_come_from_whole_images_too(config: DataConfig) -> None:
    part = load_train_val(config, image_size=16).train
    first, again = batches(part, num_views=2, seed=1), batches(part, num_views=2, seed=2)
    pictures: dict[tuple[int, int], torch.Tensor] = {}
    for source in (first, again):
        for step in range(6):
            positions, views = source.positions(step)
            for position, view, image in zip(positions, views, source.get(step)[0], strict=True):
                key = (int(position), int(view))
                assert torch.equal(pictures.setdefault(key, image), image)
    positions, views = (np.array(column) for column in zip(*pictures, strict=True))
    together = training_views(part, positions, views, SPEC, augment="crop_flip", device=CPU)
    assert torch.equal(together, torch.stack(list(pictures.values())))


def test_a_corrupted_set_is_cropped_from_its_corrupted_squares(config: DataConfig) -> None:
    config.corruption = "contrast"
    part = load_train_val(config, image_size=16).train
    assert set(part.sizes(np.arange(len(part))).flatten().tolist()) == {files_of(part).decoder.stored}
    images, _ = batches(part).get(0)
    config.corruption = None
    clear, _ = batches(load_train_val(config, image_size=16).train).get(0)
    assert images.std() < 0.5 * clear.std()


def test_auto_streams_what_is_too_large(config: DataConfig) -> None:
    config.loading = "auto"
    stored, num_images = 18, 24
    need = num_images * stored**2 * 3 / 2**30
    for limit, streams in ((need * 1.01, False), (need * 0.99, True)):
        config.max_decoded_gib = limit
        assert load_train_val(config, image_size=16).train.streams == streams
        assert load_source(config, image_size=16).streams == streams
    # Images of 20 to 33 px: enlarging is left to the device, so they need less than the model's side says.
    config.max_decoded_gib = num_images * 40**2 * 3 / 2**30
    assert not load_train_val(config, image_size=224).train.streams


def test_small_images_are_streamed_small(config: DataConfig) -> None:
    part = load_train_val(config, image_size=224).train
    assert part.take(np.arange(2)).shape == (2, 33, 33, 3)


def test_files_without_a_header_are_left_out_and_named(config: DataConfig) -> None:
    assert config.path is not None
    (Path(config.path) / "cat" / "00.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/00\.png"):
        load_train_val(config, image_size=16)
    config.max_bad_share = 0.1
    streamed = load_train_val(config, image_size=16)
    assert streamed.bad_files == ("cat/00.png",)
    config.loading, config.corruption = "memory", None
    held = load_train_val(config, image_size=16)
    assert np.array_equal(streamed.train.take(np.arange(8)), held.train.take(np.arange(8)))


def cut_short(part: Part, position: int) -> Path:
    """The image's file, whole in its header alone."""
    files = files_of(part)
    path = files.decoder.root / files.files[part.indices[position]]
    buffer = io.BytesIO()
    texture(200, 200, 0).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


def test_a_file_that_fails_later_is_named(config: DataConfig) -> None:
    part = load_train_val(config, image_size=16).train
    path = cut_short(part, 0)
    with pytest.raises(DataError, match=f"{path} cannot be read as an image: .*; .* bring it back as it was"):
        part.take(np.arange(4))
    with pytest.raises(DataError, match=f"^{path} cannot be read as an image") as caught:
        list(batches(part).iterate(0, 6))
    assert "Traceback" not in str(caught.value)


def test_the_digest_is_of_content(config: DataConfig, tmp_path: Path) -> None:
    """Of two nodes the same, whenever and wherever each copied the files to."""
    before = load_train_val(config, image_size=16)
    assert load_train_val(config, image_size=16).digest == before.digest
    config.interpolation = "bilinear"
    assert load_train_val(config, image_size=16).digest != before.digest
    config.interpolation = "bicubic"
    shutil.copytree(str(config.path), tmp_path / "elsewhere")  # without the times
    moved = replace(config, path=str(tmp_path / "elsewhere"), cache_dir=str(tmp_path / "another"))
    assert load_train_val(moved, image_size=16).digest == before.digest
    texture(40, 24, seed=99).save(tmp_path / "elsewhere/cat/00.png")
    assert load_train_val(moved, image_size=16).digest != before.digest


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[: len(whole) * 2 // 3], lambda whole: whole[:200], lambda _: b"", lambda _: b"<html>" * 99],
)
def test_a_damaged_file_is_judged_alike(
    config: DataConfig, loading: Any, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    buffer = io.BytesIO()
    texture(300, 200, 0).save(buffer, "JPEG")
    (Path(str(config.path)) / "cat/50.jpg").write_bytes(damage(buffer.getvalue()))
    config.loading, config.max_bad_share = loading, 0.05
    assert load_train_val(config, image_size=16).bad_files == ("cat/50.jpg",)
    assert "left out 1 of 25 files" in caplog.text
    config.max_bad_share = 0.0
    with pytest.raises(DataError, match=r"1 of 25 files below .* cannot be read as images.*cat/50\.jpg"):
        load_train_val(config, image_size=16)


def test_files_are_read_once_a_node(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    load_train_val(config, image_size=16)
    monkeypatch.delattr("unfreeze.data.sets.raw.survey_files")
    load_train_val(config, image_size=16)


@pytest.mark.parametrize(("exif", "side"), [("ignore", (60, 20)), ("apply", (20, 60))])
def test_an_orientation_is_applied_or_not(config: DataConfig, exif: Any, side: tuple[int, int]) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    path = Path(str(config.path)) / "cat" / "00.jpg"
    texture(60, 20, 0).save(path, exif=rotated)
    config.exif = exif
    data = load_train_val(config, image_size=16)
    expected = np.asarray(Image.open(path) if exif == "ignore" else ImageOps.exif_transpose(Image.open(path)))
    files = files_of(data.train)
    index = files.files.index("cat/00.jpg")
    assert files.sizes[index].tolist() == list(side)
    whole = Crops(torch.tensor([[0, 0, *side]]), torch.tensor([False]))
    crop = files.crops(np.array([index]), whole, side=20)[0]
    assert np.array_equal(crop, np.asarray(Image.fromarray(expected).resize((20, 20), Image.Resampling.BILINEAR)))
    streamed = files.take(np.array([index]))
    config.loading = "memory"
    held = load_train_val(config, image_size=16)
    assert np.array_equal(held.train.array.take(np.array([index])), streamed)
    (line,) = look_over(config, held)[-1:]
    assert ("data.exif=apply turns them" in line) == (exif == "ignore")
    assert line.startswith("1 images")


def test_a_tree_without_images_is_refused(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    config.source_path = str(tmp_path / "texts")
    with pytest.raises(DataError, match="no image files below"):
        load_source(config, image_size=16)
    (tmp_path / "texts" / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"none of the 1 files .*: a\.png"):
        load_source(config, image_size=16)
