"""The streaming estimator against the definition, written out plainly in float64."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unfreeze.components.mapping import block_modules
from unfreeze.config import PlasticityConfig
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.errors import ModelError
from unfreeze.plasticity.bounds import SeenTokens, upper_bounds
from unfreeze.plasticity.local import measure_plasticity
from unfreeze.plasticity.sequential import QUANTILES
from unfreeze.records import COMPONENTS, MODES, PlasticityTable

SPEC = InputSpec(32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 4}
NUM_IMAGES = 7

MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: VisionTransformer(**SMALL),
    "layer_scale": lambda: VisionTransformer(**SMALL, init_values=0.3),
    "qk_norm": lambda: VisionTransformer(**SMALL, qk_norm=True),
    "reg_tokens": lambda: VisionTransformer(**SMALL, reg_tokens=3),
    "no_class_token": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="avg"),
    "pre_norm": lambda: VisionTransformer(**SMALL, pre_norm=True),
    "separate_qkv": lambda: Eva(**SMALL, qkv_fused=False),
    "swiglu": lambda: Eva(**SMALL, swiglu_mlp=True, mlp_ratio=8 / 3),
    "eva02": lambda: Eva(
        **SMALL, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True
    ),
    "rope_mixed": lambda: Eva(**SMALL, attn_type="rope", use_rot_pos_emb=True, rope_type="mixed"),
    "beit": lambda: Beit(**SMALL, init_values=0.3, use_abs_pos_emb=False, use_shared_rel_pos_bias=True),
}


@dataclass(frozen=True)
class RecordingPart(Part):
    """Remembers which images were taken, so that a test knows the pairs."""

    taken: list[np.ndarray] = field(default_factory=list)

    def take(self, positions: np.ndarray) -> np.ndarray:
        images = Part.take(self, positions)
        self.taken.append(images)
        return images


def make_part(images: np.ndarray) -> RecordingPart:
    return RecordingPart(make_array(images, np.zeros(len(images))), np.arange(len(images)))


def random_images(seed: int, count: int = NUM_IMAGES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def make_model(name: str) -> nn.Module:
    """With every tensor away from its special start (zero biases, unit gains, zero positions)."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def settings_for(**settings: Any) -> PlasticityConfig:
    return PlasticityConfig(
        **{"modes": list(MODES), "num_pairs": 1000, "batch_size": 64, "stop_early": False, **settings}
    )


def measure(module: nn.Module, source: Part, target: Part, **settings: Any) -> PlasticityTable:
    config = settings_for(**settings)
    return measure_plasticity(
        module, SPEC, source, target, config, device=torch.device("cpu"), model_digest="digest-of-the-model"
    )


# --- the definition, plainly ------------------------------------------------------------------------------------------


def plain_embedding(model: nn.Module, pixels: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Tokens before the first block, and what each block's attention is given besides."""
    tokens, kwargs = model.patch_embed(pixels), [{} for _ in model.blocks]
    if isinstance(model, Beit):
        tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens, [{"shared_rel_pos_bias": model.rel_pos_bias()} for _ in model.blocks]
    if isinstance(model, Eva):
        tokens, rope = model._pos_embed(tokens)
        if rope is not None:
            kwargs = [{"rope": rope[i] if model.rope_mixed else rope} for i in range(len(model.blocks))]
    else:
        tokens = model._pos_embed(tokens)
    return model.norm_pre(tokens), kwargs


def plain_mlp(mlp: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """FC1's output, FC2's input, FC2's output; SwiGLU's two projections are one FC1."""
    if hasattr(mlp, "fc1_g"):
        gate, value = mlp.fc1_g(tokens), mlp.fc1_x(tokens)
        first, hidden = torch.cat([gate, value], dim=-1), mlp.act(gate) * value
    else:
        first = mlp.fc1(tokens)
        if first.shape[-1] == 2 * mlp.fc2.in_features:  # the packed form of the same
            gate, value = first.chunk(2, dim=-1)[:: -1 if mlp.gate_last else 1]
            hidden = mlp.act(gate) * value
        else:
            hidden = mlp.act(first)
    hidden = mlp.norm(hidden)
    return first, hidden, mlp.fc2(hidden)


def scaled(block: nn.Module, number: int, tokens: Tensor) -> Tensor:
    gamma = getattr(block, f"gamma_{number}", None)
    if gamma is not None:
        return gamma * tokens
    return getattr(block, f"ls{number}", nn.Identity())(tokens)


def plain_walk(model: nn.Module, embedded: Tensor, kwargs: list[dict[str, Tensor]]) -> tuple[list, Tensor]:
    """Each block's components as name → (input, output), and the last block's output."""
    seen, z = [], embedded
    for index, block in enumerate(model.blocks):
        normed = block.norm1(z)
        attended = block.attn(normed, **kwargs[index])
        after = z + scaled(block, 1, attended)
        normed_2 = block.norm2(after)
        first, hidden, second = plain_mlp(block.mlp, normed_2)
        z, entered = after + scaled(block, 2, second), z
        seen.append(
            {
                "ln1": (entered, normed),
                "mha": (normed, attended),
                "ln2": (after, normed_2),
                "fc1": (normed_2, first),
                "fc2": (hidden, second),
            }
        )
    return seen, z


def plain_reference(block: nn.Module, e: Tensor, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every component called on the embedding output; FC2 on the zero-padded one."""
    padded = torch.zeros(*e.shape[:-1], block.mlp.fc2.in_features, dtype=torch.float64)
    padded[..., : e.shape[-1]] = e
    return {
        "ln1": block.norm1(e),
        "mha": block.attn(e, **kwargs),
        "ln2": block.norm2(e),
        "fc1": plain_mlp(block.mlp, e)[0],
        "fc2": block.mlp.fc2(padded),
    }


def plain_rates(module: nn.Module, x_image: np.ndarray, y_image: np.ndarray, spec: InputSpec) -> dict[str, np.ndarray]:
    """Mode → (blocks, components) of one pair of images of the model's own size, all in float64, attention unfused."""
    model = copy.deepcopy(module).double().eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    pixels = [torch.from_numpy((image.transpose(2, 0, 1) / 255 - mean) / std)[None] for image in (x_image, y_image)]
    rates = {mode: np.zeros((len(model.blocks), len(COMPONENTS))) for mode in MODES}
    with torch.no_grad():
        (e_x, kwargs), (e_y, _) = (plain_embedding(model, image) for image in pixels)
        (walk_x, end_x), (walk_y, end_y) = (plain_walk(model, e, kwargs) for e in (e_x, e_y))
        _, (derivatives, _) = torch.func.jvp(lambda e: plain_walk(model, e, kwargs), (e_x,), (e_y - e_x,))
        for index, block in enumerate(model.blocks):
            fed_x, fed_y = (plain_reference(block, e, kwargs[index]) for e in (e_x, e_y))
            for column, name in enumerate(COMPONENTS):
                change = torch.linalg.norm(fed_x[name] - fed_y[name])
                rates["reference"][index, column] = change / torch.linalg.norm(e_x - e_y)
                (in_x, out_x), (in_y, out_y) = walk_x[index][name], walk_y[index][name]
                rates["in_situ"][index, column] = torch.linalg.norm(out_x - out_y) / torch.linalg.norm(in_x - in_y)
                d_in, d_out = derivatives[index][name]
                rates["local"][index, column] = torch.linalg.norm(d_out) / torch.linalg.norm(d_in)
        for tokens, image in zip((end_x, end_y), pixels, strict=True):  # the walk is the model's own forward pass
            torch.testing.assert_close(model.norm(tokens), model.forward_features(image), rtol=1e-9, atol=1e-9)
    return rates


def plain_values(module: nn.Module, source: RecordingPart, target: RecordingPart, spec: InputSpec) -> dict:
    """Mode → (pairs, blocks, components) for the pairs the estimator took."""
    pairs = zip(np.concatenate(source.taken), np.concatenate(target.taken), strict=True)
    rates = [plain_rates(module, x, y, spec) for x, y in pairs]
    return {mode: np.stack([rate[mode] for rate in rates]) for mode in MODES}


def cells(table: PlasticityTable, mode: str, quantity: str) -> np.ndarray:
    """(blocks, components) of one quantity of the table."""
    rows = [row for row in table.rows if row.mode == mode and row.block is not None]
    blocks = 1 + max(row.block for row in rows)
    values = np.full((blocks, len(COMPONENTS)), math.nan)
    for row in rows:
        values[row.block, COMPONENTS.index(row.component)] = getattr(row, quantity)
    return values


def assert_table_follows_definition(table: PlasticityTable, expected: dict[str, np.ndarray]) -> None:
    for mode in MODES:
        values = expected[mode]
        np.testing.assert_allclose(cells(table, mode, "mean"), values.mean(0), rtol=1e-5, err_msg=mode)
        np.testing.assert_allclose(cells(table, mode, "sd"), values.std(0, ddof=1), rtol=1e-3, err_msg=mode)
        over_blocks = values.mean(1)  # per pair
        for row in (row for row in table.rows if row.mode == mode and row.block is None):
            column = over_blocks[:, COMPONENTS.index(row.component)]
            assert row.mean == pytest.approx(column.mean(), rel=1e-5)
            assert row.quantiles == pytest.approx(np.quantile(column, QUANTILES), rel=1e-5)
        for row in (row for row in table.rows if row.mode == mode and row.block is not None):
            # In the network the rounding of every block before adds up; a single pair does not average it out.
            largest = values[:, row.block, COMPONENTS.index(row.component)].max()
            assert row.maximum == pytest.approx(largest, rel=1e-5 if mode == "reference" else 5e-5)


# --- every mode -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_mode_follows_the_definition(name: str) -> None:
    model = make_model(name)
    source, target = make_part(random_images(1)), make_part(random_images(2))
    table = measure(model, source, target, batch_size=3)
    assert {row.num_pairs for row in table.rows} == {NUM_IMAGES}
    assert_table_follows_definition(table, plain_values(model, source, target, SPEC))


def test_the_published_r_is_the_mean_over_images_of_their_root_mean_square_norm(plain_table: PlasticityTable) -> None:
    model = make_model("plain")
    images = np.concatenate([random_images(1), random_images(2)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    with torch.no_grad():
        norms = plain_embedding(model, (pixels - mean) / std)[0].norm(dim=-1)
    r, ones = norms.square().mean(1).sqrt().mean().item(), np.ones(len(model.blocks))
    assert r != pytest.approx(norms.mean().item(), rel=1e-3)
    expected = upper_bounds(block_modules(model), {"reference": SeenTokens(norms.shape[1], r, ones, ones, ones)})
    found = {b.block: b.as_published for b in plain_table.bounds if (b.mode, b.component) == ("reference", "mha")}
    for bound in expected:
        if bound.component == "mha":
            assert found[bound.block] == pytest.approx(bound.as_published, rel=1e-5)


@pytest.fixture(scope="module")
def plain_table() -> PlasticityTable:
    return measure(make_model("plain"), make_part(random_images(1)), make_part(random_images(2)))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 7, 50])
def test_the_batch_size_does_not_change_the_numbers(batch_size: int, plain_table: PlasticityTable) -> None:
    source, target = make_part(random_images(1)), make_part(random_images(2))
    table = measure(make_model("plain"), source, target, batch_size=batch_size)
    for mode in MODES:
        for quantity, rtol in (("mean", 1e-6), ("sd", 1e-4)):
            expected = cells(plain_table, mode, quantity)
            np.testing.assert_allclose(cells(table, mode, quantity), expected, rtol=rtol, err_msg=f"{mode} {quantity}")


@pytest.mark.real
def test_every_mode_follows_the_definition_on_deit_tiny(
    deit_tiny: tuple[nn.Module, InputSpec, np.ndarray, np.ndarray],
) -> None:
    model, spec, photographs, flowers = deit_tiny
    source, target = make_part(photographs), make_part(flowers)
    config = settings_for(num_pairs=5, batch_size=3)
    table = measure_plasticity(model, spec, source, target, config, device=torch.device("cpu"), model_digest="")
    assert_table_follows_definition(table, plain_values(model, source, target, spec))


# --- which pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_pairs", "expected"), [(2, 2), (5, 5), (100, 5)])
def test_each_image_is_in_one_pair_at_most(num_pairs: int, expected: int) -> None:
    source, target = make_part(random_images(1, 9)), make_part(random_images(2, 5))
    table = measure(make_model("plain"), source, target, num_pairs=num_pairs, batch_size=2)
    for part in (source, target):
        assert len(np.unique(np.concatenate(part.taken), axis=0)) == expected
    assert {row.num_pairs for row in table.rows} == {expected}


def test_the_seed_decides_the_pairs() -> None:
    def pairs_of(seed: int) -> np.ndarray:
        source, target = make_part(random_images(1)), make_part(random_images(2))
        measure(make_model("plain"), source, target, seed=seed)
        return np.concatenate([np.concatenate(part.taken) for part in (source, target)])

    assert np.array_equal(pairs_of(0), pairs_of(0))
    assert not np.array_equal(pairs_of(0), pairs_of(1))


def test_equal_images_are_skipped_and_counted() -> None:
    """Sources all alike, one of the targets like them: that pair has no rate of change, the others stand."""
    one = random_images(3, 1)
    targets = np.concatenate([random_images(2, 4), one])
    model = make_model("plain")
    for batch_size in (1, 2, 8):
        source, target = make_part(np.repeat(one, 5, axis=0)), make_part(targets)
        table = measure(model, source, target, batch_size=batch_size)
        assert table.skipped_pairs == 1
        assert {row.num_pairs for row in table.rows} == {4}
        assert all(math.isfinite(value) for row in table.rows for value in (row.mean, row.sd, row.maximum or 0.0))
        pairs = zip(np.concatenate(source.taken), np.concatenate(target.taken), strict=True)
        kept = [plain_rates(model, x, y, SPEC) for x, y in pairs if not np.array_equal(x, y)]
        assert_table_follows_definition(table, {mode: np.stack([rate[mode] for rate in kept]) for mode in MODES})


def test_only_equal_images_are_an_error_not_a_table_of_nothing() -> None:
    same = np.repeat(random_images(3, 1), 4, axis=0)
    with pytest.raises(ValueError, match="pair"):
        measure(make_model("plain"), make_part(same), make_part(same))


# --- trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "block", "component"),
    [
        ("blocks.1.norm1.weight", 1, "ln1"),
        ("blocks.2.attn.qkv.weight", 2, "mha"),
        ("blocks.0.norm2.bias", 0, "ln2"),
        ("blocks.1.mlp.fc1.weight", 1, "fc1"),
        ("blocks.2.mlp.fc2.weight", 2, "fc2"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_are_named(parameter: str, block: int, component: str, value: float) -> None:
    model = make_model("plain")
    model.get_parameter(parameter).data.flatten()[0] = value
    with pytest.raises(ModelError, match=f"block {block} {component}"):
        measure(model, make_part(random_images(1)), make_part(random_images(2)))


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "pos_embed"])
def test_a_broken_embedding_is_an_error(name: str) -> None:
    model = make_model("plain")
    model.get_parameter(name).data.flatten()[0] = math.nan
    with pytest.raises(ModelError, match="NaN"):
        measure(model, make_part(random_images(1)), make_part(random_images(2)))


def test_the_model_is_left_as_it_was() -> None:
    model = make_model("plain")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, make_part(random_images(1)), make_part(random_images(2)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_table_says_what_it_was_measured_on(plain_table: PlasticityTable) -> None:
    assert plain_table.model_digest == "digest-of-the-model"
    assert plain_table.settings["modes"] == list(MODES)
    assert plain_table.settings["num_pairs"] == 1000
    assert plain_table.stopped == dict.fromkeys(MODES, "the images are used up")
    assert plain_table.skipped_pairs == 0
    blocks = [*range(SMALL["depth"]), None]
    expected = {(mode, block, name) for mode in MODES for block in blocks for name in COMPONENTS}
    assert {(row.mode, row.block, row.component) for row in plain_table.rows} == expected
    assert len(plain_table.rows) == len(expected)


def test_component_means_are_the_means_over_blocks(plain_table: PlasticityTable) -> None:
    for mode in MODES:
        per_block = cells(plain_table, mode, "mean").mean(0)
        assert list(plain_table.component_means(mode).values()) == pytest.approx(per_block, rel=1e-12)
        assert tuple(plain_table.component_means(mode)) == COMPONENTS
