"""`import unfreeze` as in a notebook: a model at hand, images in whatever form."""

import contextlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from processes import Processes
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import unfreeze
from unfreeze.config import PlasticityConfig
from unfreeze.errors import ConfigError, DataError, ModelError, SelectionError
from unfreeze.records import COMPONENTS, MODES, PlasticityTable, to_dict

README = Path(__file__).resolve().parent.parent / "README.md"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
COUNT = 6


def make_model(**kwargs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **kwargs})
    model.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    return model


@pytest.fixture
def model() -> VisionTransformer:
    return make_model()


def random_images(seed: int, count: int = COUNT, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


SOURCE, TARGET = random_images(1), random_images(2)


def comparable(measured: unfreeze.Plasticity) -> dict[str, Any]:
    return to_dict(replace(measured.table, seconds=0.0))


def as_pictures(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images]


class PairSet:
    """As torchvision's and everybody's data sets: items are (picture, label), and slices are not served."""

    def __init__(self, images: np.ndarray) -> None:
        self._pictures = as_pictures(images)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        assert isinstance(index, int)
        return self._pictures[index], index % 2


def save(images: Sequence[Image.Image], folder: Path) -> Path:
    for index, image in enumerate(images):
        path = folder / "any" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


# --- the import -------------------------------------------------------------------------------------------------------


def test_the_import_costs_nothing_heavy(processes: Processes, tmp_path: Path) -> None:
    code = "import sys, unfreeze; print(*{name.split('.')[0] for name in sys.modules})"
    result = processes.run([sys.executable, "-c", code], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    assert "unfreeze" in imported
    assert not imported & {"torch", "ray", "timm", "mlflow", "numpy", "pandas", "matplotlib", "optuna", "boto3"}


def test_measuring_needs_neither_ray_nor_a_tracker(processes: Processes, tmp_path: Path) -> None:
    code = "import sys; from unfreeze import measure; print(*{name.split('.')[0] for name in sys.modules})"
    result = processes.run([sys.executable, "-c", code], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    assert "torch" in imported
    assert not imported & {"ray", "mlflow", "optuna", "boto3", "hydra"}


def test_what_is_offered_is_there_and_a_typo_is_told() -> None:
    assert unfreeze.__all__ == ["Plasticity", "load", "measure", "sweep", "unfreeze"]
    assert all(getattr(unfreeze, name).__doc__ for name in unfreeze.__all__)
    assert set(unfreeze.__all__) <= set(dir(unfreeze))  # a notebook completes them
    with pytest.raises(AttributeError, match="'unfreeze' has no attribute 'mesure'"):
        unfreeze.mesure  # noqa: B018
    with pytest.raises(ImportError, match="mesure"):
        from unfreeze import mesure  # noqa: F401


# --- images in whatever form ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_arrays() -> dict[str, Any]:
    return comparable(unfreeze.measure(make_model(), SOURCE, TARGET, mode=MODES))


FORMS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "pictures": lambda images, _: as_pictures(images),
    "tuple of pictures": lambda images, _: tuple(as_pictures(images)),
    "pairs": lambda images, _: [(image, 3) for image in as_pictures(images)],
    "data set": lambda images, _: PairSet(images),
    "subset": lambda images, _: torch.utils.data.Subset(PairSet(images), range(len(images))),  # type: ignore[arg-type]
    "list of arrays": lambda images, _: list(images),
    "grey and transparent": lambda images, _: [
        image.convert("RGBA") if index % 2 else image for index, image in enumerate(as_pictures(images))
    ],
    "folder": lambda images, folder: save(as_pictures(images), folder),
    "folder as text": lambda images, folder: str(save(as_pictures(images), folder)),
    "read-only array": lambda images, _: np.frombuffer(images.tobytes(), np.uint8).reshape(images.shape),
    "strided array": lambda images, _: np.repeat(images, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_pixels_in_any_form_give_the_same_numbers(
    form: str, model: VisionTransformer, from_arrays: dict[str, Any], tmp_path: Path
) -> None:
    source, target = FORMS[form](SOURCE, tmp_path / "source"), FORMS[form](TARGET, tmp_path / "target")
    measured = unfreeze.measure(model, source, target, mode=MODES)
    found, expected = comparable(measured), dict(from_arrays)
    if form.startswith("folder"):  # labels 0 in both, but the digest of a folder's need not be an array's
        found.pop("data_digest")
        expected.pop("data_digest")
    assert found == expected


def test_a_folder_is_read_below_the_home_folder(
    model: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(as_pictures(SOURCE), tmp_path / "source")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert unfreeze.measure(model, "~/source", TARGET).table.skipped_pairs == 0


@pytest.mark.parametrize("form", ["pictures", "folder"])
def test_no_more_images_are_read_than_can_be_paired(form: str, model: VisionTransformer, tmp_path: Path) -> None:
    source, target = random_images(3, 40), random_images(4, 50)
    images = [FORMS[form](part, tmp_path / name) for part, name in ((source, "s"), (target, "t"))]
    chosen = comparable(unfreeze.measure(model, *images, num_pairs=5))
    assert {row["num_pairs"] for row in chosen["rows"]} == {5}
    again = comparable(unfreeze.measure(model, source, target, num_pairs=5))
    assert chosen["rows"] == again["rows"]
    other = comparable(unfreeze.measure(model, source, target, num_pairs=5, seed=1))
    assert other["rows"] != chosen["rows"]


class Counting(PairSet):
    opened = 0

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.opened += 1
        return super().__getitem__(index)


def test_a_large_data_set_is_not_read_through(model: VisionTransformer) -> None:
    images = Counting(random_images(3, 40))
    unfreeze.measure(model, images, TARGET, num_pairs=5)  # type: ignore[arg-type]
    assert images.opened == 5


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source_side", "target_side"), [(32, 64), (20, 32), (9, 100), (37, 36), (500, 33)])
def test_sizes_may_differ_between_source_and_target(
    source_side: int, target_side: int, model: VisionTransformer
) -> None:
    source, target = random_images(1, COUNT, source_side), random_images(2, COUNT, target_side)
    measured = unfreeze.measure(model, source, target, mode=MODES)
    assert {row.num_pairs for row in measured.table.rows} == {COUNT}


def test_sizes_may_differ_within_a_set(model: VisionTransformer, tmp_path: Path) -> None:
    sizes = [(32, 40), (64, 30), (8, 200), (37, 37), (1, 50), (90, 91)]
    pictures = [Image.fromarray(random_images(i, 1, 200)[0]).resize(size) for i, size in enumerate(sizes)]
    by_list = unfreeze.measure(model, pictures, TARGET)
    by_folder = unfreeze.measure(model, save(pictures, tmp_path / "pictures"), TARGET)
    assert comparable(by_list)["rows"] == comparable(by_folder)["rows"]


def test_large_images_are_shrunk_then_cropped(model: VisionTransformer) -> None:
    """As in evaluation: the short side to 256/224 of the input's, then the centre. What lies beyond plays no part."""
    large = random_images(5, COUNT, 128)
    by_hand = []
    for picture in as_pictures(large):
        shrunk = picture.resize((37, 37), Image.Resampling.BICUBIC)
        by_hand.append(np.asarray(shrunk)[2:34, 2:34])
    expected = unfreeze.measure(model, np.stack(by_hand), TARGET)
    framed = [Image.new("RGB", (300, 128), "red") for _ in large]
    for frame, picture in zip(framed, as_pictures(large), strict=True):
        frame.paste(picture, (86, 0))
    for images in (large, framed):
        assert comparable(unfreeze.measure(model, images, TARGET))["rows"] == comparable(expected)["rows"]


def test_the_model_s_own_size_is_taken() -> None:
    measured = unfreeze.measure(make_model(img_size=48), SOURCE, TARGET, mode="in_situ")
    assert measured.table.modes == ("in_situ",)


# --- the model is left as it was --------------------------------------------------------------------------------------


def snapshot(model: nn.Module) -> Any:
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: (p.requires_grad, p.device, p.dtype, p.grad, id(p)) for name, p in model.named_parameters()},
        {name: [*module._forward_hooks, *module._forward_pre_hooks] for name, module in model.named_modules()},
        {name: sorted(vars(module)) for name, module in model.named_modules()},
    )


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(broken: bool, model: VisionTransformer) -> None:
    model.train()
    model.blocks[1].attn.eval()
    for parameter in model.blocks[0].parameters():
        parameter.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    if broken:
        model.blocks[1].mlp.fc2.weight.data[0, 0] = math.nan
    before, weights = snapshot(model), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError) if broken else contextlib.nullcontext():
        unfreeze.measure(model, SOURCE, TARGET, mode=MODES, layer_norm_eps=1e-3)
    assert snapshot(model) == before
    assert all(torch.equal(value.nan_to_num(), weights[n].nan_to_num()) for n, value in model.state_dict().items())
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {1e-6}
    loss = model(torch.zeros(2, 3, 32, 32)).sum()
    loss.backward()  # and gradients can be taken


def test_random_numbers_go_on_as_if_nothing_had_been_measured(model: VisionTransformer) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    unfreeze.measure(model, SOURCE, TARGET)
    assert (torch.rand(1), np.random.rand()) == expected


def test_dropout_plays_no_part() -> None:
    model = make_model(proj_drop_rate=0.5, drop_path_rate=0.5).train()
    first, second = (comparable(unfreeze.measure(model, SOURCE, TARGET, mode=MODES)) for _ in range(2))
    assert first == second


def test_gradients_switched_off_outside_change_nothing(model: VisionTransformer, from_arrays: dict[str, Any]) -> None:
    with torch.no_grad():
        assert comparable(unfreeze.measure(model, SOURCE, TARGET, mode=MODES)) == from_arrays
    with torch.inference_mode():
        assert comparable(unfreeze.measure(model, SOURCE, TARGET, mode=["reference", "in_situ"]))["rows"]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_a_model_of_timm_s_own_is_measured(name: str) -> None:
    model = timm.create_model(name, pretrained=False, img_size=32, depth=2)
    measured = unfreeze.measure(model, SOURCE, TARGET, mode=["reference", "in_situ"])
    assert measured.table.modes == ("reference", "in_situ")


def test_a_model_wrapped_for_another_number_type_is_told_or_measured() -> None:
    """Half precision on disk is common."""
    with contextlib.suppress(ModelError, ConfigError):
        measured = unfreeze.measure(make_model().to(torch.bfloat16), SOURCE, TARGET)
        assert all(math.isfinite(row.mean) for row in measured.table.rows)


# --- what cannot be measured ------------------------------------------------------------------------------------------


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "floats": (SOURCE.astype(np.float32) / 255, r"uint8 \(N, H, W, 3\), but got float32 \(6, 32, 32, 3\)"),
    "channels first": (SOURCE.transpose(0, 3, 1, 2), r"uint8 \(N, H, W, 3\), but got uint8 \(6, 3, 32, 32\)"),
    "one image": (SOURCE[0], r"uint8 \(N, H, W, 3\), but got uint8 \(32, 32, 3\)"),
    "grey": (SOURCE[..., 0], r"uint8 \(N, H, W, 3\), but got uint8 \(6, 32, 32\)"),
    "no images": (SOURCE[:0], "holds no images"),
    "empty list": ([], "holds no images"),
    "one of them": (SOURCE[:1], "two groups of 1 source and 1 target images at least"),
    "tensor": (torch.zeros(6, 3, 32, 32), "must hold PIL images.* but got Tensor"),
    "tensors": ([torch.zeros(3, 32, 32)] * 6, "must hold PIL images.* but got Tensor"),
    "names": (["a.png", "b.png"], "must hold PIL images.* but got str"),
    "missing folder": ("/nowhere/at/all", "must be a folder of images.* but got '/nowhere/at/all'"),
    "a file": (__file__, "must be a folder of images"),
    "floats in a list": (list(SOURCE.astype(np.float32)), "float32"),
    "channels first in a list": (list(SOURCE.transpose(0, 3, 1, 2)), r"3, 32, 32"),
    "a generator": ((image for image in as_pictures(SOURCE)), "generator"),
    "nothing": (None, "None"),
}


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_one_clear_error(case: str, role: str, model: VisionTransformer) -> None:
    images, message = BAD_IMAGES[case]
    given = {"source": SOURCE, "target": TARGET, role: images}
    with pytest.raises(DataError, match=message) as caught:
        unfreeze.measure(model, **given)
    assert role in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_images_is_one_clear_error(model: VisionTransformer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image files below"):
        unfreeze.measure(model, tmp_path, TARGET)
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(DataError, match=r"none of the 1 files.*notes\.png"):
        unfreeze.measure(model, tmp_path, TARGET)


def test_unreadable_files_are_left_out_and_said(
    model: VisionTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(as_pictures(SOURCE), tmp_path)
    (folder / "notes.png").write_text("no image")
    measured = unfreeze.measure(model, folder, TARGET)
    assert {row.num_pairs for row in measured.table.rows} == {COUNT}
    assert "notes.png" in caplog.text


@pytest.mark.parametrize("colour", [0, 255])
def test_images_all_alike_are_one_clear_error(colour: int, model: VisionTransformer) -> None:
    constant = np.full_like(SOURCE, colour)
    with pytest.raises(DataError, match="6 pairs hold equal images"):
        unfreeze.measure(model, constant, constant)


def test_a_single_pair_that_differs_is_no_measurement(model: VisionTransformer) -> None:
    with pytest.raises(DataError, match="of 3 pairs all but one hold equal images"):
        unfreeze.measure(model, SOURCE[[0, 0, 1]], SOURCE[[0, 0, 0]])


def test_two_pairs_are_a_table_that_can_be_shown(model: VisionTransformer, tmp_path: Path) -> None:
    """Too few for an interval: it is infinite, and nothing breaks on it."""
    measured = unfreeze.measure(model, SOURCE[:2], TARGET[:2])
    assert {row.high for row in measured.table.rows} == {math.inf}
    assert str(measured)
    assert measured.to_pandas()["low"].eq(-math.inf).all()
    measured.plot().savefig(tmp_path / "plasticity.png")


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"num_pair": 3}, r"plasticity\.num_pair: unknown option; did you mean plasticity\.num_pairs\?"),
    "out of range": ({"num_pairs": 1}, r"plasticity\.num_pairs"),
    "text for a number": ({"num_pairs": "5"}, r"plasticity\.num_pairs"),
    "unknown mode": ({"mode": "referenc"}, r"plasticity\.modes.*'referenc'"),
    "no mode": ({"mode": []}, r"plasticity\.modes"),
    "half groups": ({"batch_size": 6, "cross": 4}, r"plasticity\.batch_size must be a multiple of plasticity\.cross"),
    "modes for mode": ({"modes": ["local"]}, "mode"),
    "scores nobody computes": ({"scores": ["fisher"]}, "scores"),
    "actors nobody starts": ({"num_actors": 4}, "num_actors"),
    "no JSON": ({"layer_norm_eps": np.array([1e-6])}, "layer_norm_eps"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_setting_that_cannot_be_is_one_clear_error(case: str, model: VisionTransformer) -> None:
    settings, message = BAD_SETTINGS[case]
    with pytest.raises(ConfigError, match=message):
        unfreeze.measure(model, SOURCE, TARGET, **settings)


def test_a_number_of_numpy_is_a_number(model: VisionTransformer) -> None:
    """``num_pairs=len(frame) // 2`` and the like in a notebook."""
    measured = unfreeze.measure(model, SOURCE, TARGET, num_pairs=np.int64(4))
    assert {row.num_pairs for row in measured.table.rows} == {4}


def test_settings_are_those_of_the_configuration(model: VisionTransformer) -> None:
    settings = unfreeze.measure(model, SOURCE, TARGET).table.settings
    expected = {name: getattr(PlasticityConfig(), name) for name in settings}
    assert settings == {**expected, "modes": ["reference"]}
    crossed = unfreeze.measure(model, SOURCE, TARGET, cross=2, batch_size=2, bounds=False)
    assert {row.num_pairs for row in crossed.table.rows} == {COUNT // 2 * 4}
    assert crossed.table.bounds == ()


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_an_unsupported_model_is_one_clear_error(name: str) -> None:
    with pytest.raises(ModelError, match=r"no single stack of transformer blocks.*supported are"):
        unfreeze.measure(timm.create_model(name, pretrained=False), SOURCE, TARGET)


def test_a_model_that_does_not_say_how_it_wants_its_input_is_told() -> None:
    with pytest.raises(ModelError, match=r"VisionTransformer does not say.*pretrained_cfg"):
        unfreeze.measure(VisionTransformer(**SMALL), SOURCE, TARGET)
    with pytest.raises(ModelError, match="square"):
        unfreeze.measure(make_model(img_size=(32, 64)), SOURCE, TARGET)
    model = make_model()
    model.pretrained_cfg = {"url": "somewhere"}
    with pytest.raises(ModelError, match="mean and std"):
        unfreeze.measure(model, SOURCE, TARGET)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("blocks.1.attn.proj.bias", "block 1 mha"),
        ("blocks.0.norm2.weight", "block 0 ln2"),
        ("blocks.1.mlp.fc1.weight", "block 1 fc1"),
        ("pos_embed", "embed"),
    ],
)
def test_a_broken_weight_is_named_with_its_component(
    name: str, where: str, mode: str, model: VisionTransformer
) -> None:
    model.get_parameter(name).data.view(-1)[0] = math.nan
    with pytest.raises(ModelError, match=f"the weights of {where} hold NaN") as caught:
        unfreeze.measure(model, SOURCE, TARGET, mode=mode)
    assert name in str(caught.value)


def test_a_broken_classifier_does_not_matter(model: VisionTransformer) -> None:
    model.head.weight.data.fill_(math.nan)
    assert all(math.isfinite(row.mean) for row in unfreeze.measure(model, SOURCE, TARGET, mode=MODES).table.rows)


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> unfreeze.Plasticity:
    return unfreeze.measure(make_model(), SOURCE, TARGET, mode=MODES)


def test_it_prints_as_a_table_with_the_ranking(measured: unfreeze.Plasticity) -> None:
    text = str(measured)
    assert repr(measured) == text
    for mode in MODES:
        assert mode in text
        ranking = measured.table.ranking(mode)
        assert ranking is not None
        assert str(ranking) in text
    for component, mean in measured.table.component_means("reference").items():
        assert component in text
        assert f"{mean:.3g}"[:4] in text
    assert max(map(len, text.splitlines())) <= 120


def test_to_pandas_has_a_row_per_mode_component_and_block(measured: unfreeze.Plasticity) -> None:
    frame = measured.to_pandas()
    columns = ["mode", "block", "component", "mean", "sd", "num_pairs", "low", "high", "maximum"]
    assert list(frame.columns) == columns
    assert len(frame) == len(MODES) * len(COMPONENTS) * (SMALL["depth"] + 1)
    assert str(frame["block"].dtype) == "Int64"
    assert {str(frame[name].dtype) for name in ("mean", "sd", "low", "high", "maximum")} == {"float64"}
    assert pd.api.types.is_integer_dtype(frame["num_pairs"])
    assert frame.index.is_unique
    overall = frame[frame["block"].isna() & (frame["mode"] == "local")].set_index("component")["mean"]
    assert overall.to_dict() == measured.table.component_means("local")
    assert frame.groupby(["mode", "block", "component"], dropna=False).size().eq(1).all()
    single = measured.table.rows[0]
    assert frame.loc[0].drop("maximum").to_dict() == {n: getattr(single, n) for n in columns if n != "maximum"}


@pytest.mark.parametrize("mode", ["local", MODES])
def test_plot_has_a_panel_per_mode(mode: str | Sequence[str], model: VisionTransformer, tmp_path: Path) -> None:
    measured = unfreeze.measure(model, SOURCE, TARGET, mode=mode)
    figure = measured.plot()
    assert isinstance(figure, Figure)
    assert len(figure.axes) == len(measured.table.modes)
    for axes, name in zip(figure.axes, measured.table.modes, strict=True):
        assert name in axes.get_title() or name in axes.get_title(loc="left")
        drawn = {line.get_label() for line in axes.get_lines()}
        assert set(COMPONENTS) <= drawn
    for kind in ("png", "svg", "pdf"):
        figure.savefig(tmp_path / f"plasticity.{kind}")
        assert (tmp_path / f"plasticity.{kind}").stat().st_size > 1000


def test_the_table_is_the_answer_s_own(measured: unfreeze.Plasticity) -> None:
    assert isinstance(measured.table, PlasticityTable)
    assert measured.table.modes == MODES
    with pytest.raises(AttributeError):
        measured.table = None  # type: ignore[misc, assignment]


# --- unfreezing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_head", [True, False])
def test_unfreeze_trains_exactly_the_selection(train_head: bool) -> None:
    model = make_model(depth=3)
    names = unfreeze.unfreeze(model, "mha@0-1+fc1", train_head=train_head)
    expected = [
        name
        for name, _ in model.named_parameters()
        if re.match(r"blocks\.[01]\.attn\.|blocks\.\d\.mlp\.fc1\.", name)
        or (train_head and name.startswith(("norm.", "head.")))
    ]
    assert names == expected
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(expected)


@pytest.mark.parametrize(("selection", "message"), [("mha@0-2", "blocks 0-2"), ("mhsa", "'mhsa'"), ("", "cannot read")])
def test_a_selection_that_is_none_changes_nothing(selection: str, message: str, model: VisionTransformer) -> None:
    before = snapshot(model)
    with pytest.raises(SelectionError, match=message):
        unfreeze.unfreeze(model, selection)
    assert snapshot(model) == before


def test_unfreeze_refuses_what_measure_refuses() -> None:
    with pytest.raises(ModelError, match="no single stack"):
        unfreeze.unfreeze(timm.create_model("resnet18", pretrained=False), "mha")


# --- the README's words -----------------------------------------------------------------------------------------------


def block_after(heading: str) -> str:
    """The first Python block below a heading of the README."""
    _, found, below = README.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    section = below.split("\n## ")[0]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found, f"README.md has no heading {heading!r}"
    assert block is not None, f"README.md has no ```python block below {heading!r}"
    return block[1]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`timm.create_model` with random weights instead of a download; what it was asked for."""
    create, asked = timm.create_model, []

    def create_offline(name: str, **kwargs: Any) -> nn.Module:
        asked.append({"name": name, **kwargs})
        return create(name, **{**kwargs, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", create_offline)
    return asked


def test_the_readme_s_lines_run(
    offline: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = block_after("## From Python")
    for number, path in enumerate(("/data/imagenet-val", "/data/birds/train")):
        assert path in code, f"README.md does not name {path}"
        folder = save(as_pictures(random_images(number, 3, 64)), tmp_path / f"images-{number}")
        code = code.replace(path, str(folder))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"finetune": lambda trained, rate: 0.5 + rate * len(trained)}  # the reader's own
    exec(compile(code, str(README), "exec"), names)
    assert offline[0]["name"] == "deit_tiny_patch16_224"
    assert offline[0]["pretrained"]
    output = capsys.readouterr().out
    assert "reference" in output
    assert names["scores"].keys() == names["sizes"].keys() == set(COMPONENTS)
    model = next(value for value in names.values() if isinstance(value, nn.Module))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "blocks.6.attn.qkv.weight" in trained
    assert "blocks.5.attn.qkv.weight" not in trained
    assert "blocks.0.mlp.fc1.weight" in trained


def test_inference_mode_and_tf32_are_the_callers(model: VisionTransformer) -> None:
    """`local` takes derivatives, which inference mode forbids; float32 is float32 whatever the process allows."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    own = [backend.fp32_precision for backend in backends]
    expected = unfreeze.measure(model, SOURCE, TARGET, mode=MODES)
    with torch.inference_mode():
        inside = unfreeze.measure(model, SOURCE, TARGET, mode=MODES)
        assert torch.is_inference_mode_enabled()
    assert comparable(inside)["rows"] == comparable(expected)["rows"]
    assert [backend.fp32_precision for backend in backends] == own


def test_low_precision_is_for_a_gpu(model: VisionTransformer) -> None:
    with pytest.raises(ConfigError, match=r"plasticity\.precision=bfloat16 needs a GPU"):
        unfreeze.measure(model, SOURCE, TARGET, precision="bfloat16")
