from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor, nn

from unfreeze.config import Config, DataConfig, ModelConfig, ProbeConfig
from unfreeze.data.pixels.batches import eval_view
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import ConfigError
from unfreeze.models.build import build_model
from unfreeze.probe.features import Features, collect_features, find_sites
from unfreeze.probe.linear import (
    LOGISTIC_STRENGTHS,
    RIDGE_PENALTIES,
    fit_logistic,
    fit_ridge,
    probe,
    standardise,
)
from unfreeze.report.probe import terminal_probe
from unfreeze.sweep.probe import probe_once

CPU = torch.device("cpu")
SPEC = InputSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# --- which sites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "sites"),
    [
        (["head"], ["head"]),
        (["1.fc2", "embed", "0.ln1", "1.fc2"], ["embed", "0.ln1", "1.fc2"]),
        (["head", "mha"], ["0.mha", "1.mha", "head"]),
        (["all"], ["embed", *(f"{b}.{c}" for b in (0, 1) for c in ("ln1", "mha", "ln2", "fc1", "fc2")), "head"]),
    ],
)
def test_sites_come_in_network_order_each_once(at: list[str], sites: list[str]) -> None:
    assert find_sites(at, num_blocks=2) == sites


@pytest.mark.parametrize("name", ["2.fc2", "fc3", "0.embed", "0.", "", "ALL", "-1.mha"])
def test_an_unknown_site_is_named_with_what_exists(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_sites(["head", name], num_blocks=2)
    for text in (repr([name]), "ln1, mha, ln2, fc1, fc2", "0.ln1 to 1.fc2", "embed, head, all"):
        assert text in str(caught.value)


def test_no_site_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"probe\.at must name outputs"):
        find_sites([], num_blocks=2)


# --- features ---------------------------------------------------------------------------------------------------------


def build(name: str = "unfreeze_tiny", **kwargs: Any) -> nn.Module:
    config = ModelConfig(name=name, weights="random", image_size=32, kwargs=kwargs)
    return build_model(config, num_classes=4, cache_dir=Path("unused")).module


def collect(module: nn.Module, part: Part, at: list[str], *, pool: str = "token", batch_size: int = 5) -> Features:
    sites = find_sites(at, num_blocks=len(module.blocks))  # type: ignore[arg-type]
    return collect_features(module, part, SPEC, sites, pool=pool, batch_size=batch_size, device=CPU)


def by_hand(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Every component's output, the blocks written out: tokens, LN1, softmax(QKᵀ/√d)V, LN2, FC1, GELU, FC2."""
    tokens = module.patch_embed(images)
    tokens = torch.cat([module.cls_token.expand(len(tokens), -1, -1), tokens], 1) + module.pos_embed
    outputs = {"embed": tokens}
    for index, block in enumerate(module.blocks):
        ln1 = block.norm1(tokens)
        heads, (count, length, width) = block.attn.num_heads, ln1.shape
        qkv = F.linear(ln1, block.attn.qkv.weight, block.attn.qkv.bias)
        q, k, v = qkv.view(count, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.mT / (width // heads) ** 0.5, -1) @ v
        mha = block.attn.proj(mixed.transpose(1, 2).reshape(count, length, width))
        middle = tokens + mha
        ln2 = block.norm2(middle)
        fc1 = block.mlp.fc1(ln2)
        fc2 = block.mlp.fc2(F.gelu(fc1))
        tokens = middle + fc2
        names = ("ln1", "mha", "ln2", "fc1", "fc2")
        outputs |= {f"{index}.{name}": value for name, value in zip(names, (ln1, mha, ln2, fc1, fc2), strict=True)}
    return outputs | {"head": module.norm(tokens)}


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_features_are_those_of_a_forward_pass_written_out(pool: str, data: Dataset) -> None:
    module = build(embed_dim=16, depth=2, num_heads=2, patch_size=16)
    module.train()
    features = collect(module, data.train, ["all"], pool=pool)
    images = eval_view(torch.from_numpy(data.train.take(np.arange(len(data.train)))), SPEC)
    with torch.no_grad():
        outputs = by_hand(module.eval(), images)
    assert list(features.columns) == list(outputs)
    for site, tokens in outputs.items():
        wanted = tokens[:, 0] if pool == "token" or site == "head" else tokens.mean(1)
        np.testing.assert_allclose(features.at(site), wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert features.values.dtype == np.float32
    assert features.values.shape == (45, 16 + 2 * (4 * 16 + 64) + 16)
    assert features.labels.tolist() == data.train.labels.tolist()
    assert not module.training
    assert not any(parameter.grad_fn for parameter in module.parameters())


def test_only_the_sites_asked_for_are_kept_and_no_hook_is_left(data: Dataset) -> None:
    module = build(embed_dim=16, depth=2, num_heads=2, patch_size=16)
    everything = collect(module, data.val, ["all"])
    features = collect(module, data.val, ["1.fc1", "head"], batch_size=7)
    assert list(features.columns) == ["1.fc1", "head"]
    assert features.values.shape == (19, 64 + 16)
    np.testing.assert_allclose(features.at("1.fc1"), everything.at("1.fc1"), atol=1e-6)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_a_model_without_a_class_token_is_averaged_and_swiglu_has_both_halves(data: Dataset) -> None:
    plain = build("vit_tiny_patch16_224", depth=1, class_token=False, global_pool="avg")
    token, mean = (collect(plain, data.val, ["all"], pool=pool) for pool in ("token", "mean"))
    np.testing.assert_array_equal(token.values, mean.values)
    kwargs = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 16}
    swiglu = build("eva02_base_patch14_224", **kwargs)
    halves: list[Tensor] = []
    features = collect(swiglu, data.val, ["fc1"], batch_size=19)
    mlp: Any = swiglu.blocks[0].mlp  # type: ignore[index]
    for layer in (mlp.fc1_g, mlp.fc1_x):
        layer.register_forward_hook(lambda _, args, output: halves.append(output[:, 0]))
    with torch.no_grad():
        swiglu(eval_view(torch.from_numpy(data.val.take(np.arange(19))), SPEC))
    np.testing.assert_allclose(features.at("0.fc1"), torch.cat(halves, 1).numpy(), rtol=1e-5, atol=1e-6)


# --- the classifiers --------------------------------------------------------------------------------------------------


def clouds(count: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Five overlapping classes of unequal size on features of unequal scale."""
    centres = np.random.default_rng(7).normal(size=(5, width))
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, count, p=[0.4, 0.25, 0.15, 0.1, 0.1])
    values = (0.35 * centres[labels] + rng.normal(size=(count, width))) * np.linspace(0.1, 30, width) + 5
    return values.astype(np.float32), labels


def test_standardising_is_scikit_learns() -> None:
    (x, _), (z, _) = clouds(80, 12, 1), clouds(40, 12, 2)
    pipeline = make_pipeline(Normalizer(), StandardScaler()).fit(x.astype(np.float64))
    ours, ours_val, num_varying = standardise(x, z)
    np.testing.assert_allclose(ours, pipeline.transform(x.astype(np.float64)), atol=1e-9)
    np.testing.assert_allclose(ours_val, pipeline.transform(z.astype(np.float64)), atol=1e-9)
    assert num_varying == 12


def test_features_that_differ_by_rounding_alone_are_constant() -> None:
    x = np.full((50, 6), 0.7, np.float32)
    x[::3] = np.nextafter(np.float32(0.7), np.float32(1))
    x[:10] *= np.float32(1.37)  # the same direction
    ours, ours_val, num_varying = standardise(x, np.zeros((3, 6), np.float32))
    assert num_varying == 0
    assert not ours.any()
    assert not ours_val.any()


@pytest.mark.parametrize(("count", "width"), [(200, 30), (40, 60), (40, 40)])
def test_ridge_is_scikit_learns_at_the_penalty_that_leaving_one_out_chooses(count: int, width: int) -> None:
    (x, labels), (z, _) = clouds(count, width, 1), clouds(90, width, 2)
    x, z, _ = standardise(x, z)
    penalty, guesses, val_guesses = fit_ridge(x, labels, z, num_classes=5, device=CPU)
    theirs = RidgeClassifierCV(alphas=[candidate * count for candidate in RIDGE_PENALTIES]).fit(x, labels)
    assert penalty == theirs.alpha_
    assert min(RIDGE_PENALTIES) * count < penalty < max(RIDGE_PENALTIES) * count
    np.testing.assert_array_equal(val_guesses, theirs.predict(z))
    np.testing.assert_array_equal(guesses, theirs.predict(x))


def test_leaving_one_out_is_what_fits_without_each_image_give() -> None:
    (x, labels), (z, _) = clouds(30, 12, 1), clouds(5, 12, 2)
    x, z, _ = standardise(x, z)
    targets, errors = np.eye(5)[labels], {}
    for candidate in RIDGE_PENALTIES:
        model, rows = Ridge(alpha=candidate * 30), range(30)
        others = [[other for other in rows if other != row] for row in rows]
        missed = [
            targets[row] - model.fit(x[rest], targets[rest]).predict(x[[row]])[0] for row, rest in enumerate(others)
        ]
        errors[candidate * 30] = (np.array(missed) ** 2).sum()
    penalty, *_ = fit_ridge(x, labels, z, num_classes=5, device=CPU)
    assert penalty == min(errors, key=lambda candidate: errors[candidate])


def test_logistic_is_scikit_learns_at_the_strength_best_on_validation() -> None:
    (x, labels), (z, val_labels) = clouds(200, 20, 1), clouds(150, 20, 2)
    x, z, _ = standardise(x, z)
    strength, guesses, val_guesses = fit_logistic(x, labels, z, val_labels)
    models = {c: LogisticRegression(C=c, max_iter=5000).fit(x, labels) for c in LOGISTIC_STRENGTHS}
    correct = {c: int((model.predict(z) == val_labels).sum()) for c, model in models.items()}
    assert len(set(correct.values())) > 3
    assert strength == min(c for c, number in correct.items() if number == max(correct.values()))
    np.testing.assert_array_equal(val_guesses, models[strength].predict(z))
    np.testing.assert_array_equal(guesses, models[strength].predict(x))
    assert 1.0 in LOGISTIC_STRENGTHS  # the paper's


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_constant_features_leave_the_commonest_class(method: str) -> None:
    (_, labels), (_, val_labels) = clouds(100, 2, 1), clouds(60, 2, 2)
    features = [
        Features(np.ones((len(own), 3), np.float32), own, {"embed": slice(0, 3)}) for own in (labels, val_labels)
    ]
    (result,) = probe(*features, method=method, num_classes=5, device=CPU)
    assert result.num_varying == 0
    assert result.val_correct == (val_labels == np.bincount(labels).argmax()).sum()


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_each_site_has_counts_and_a_wilson_interval(method: str) -> None:
    (x, labels), (z, val_labels) = clouds(120, 12, 1), clouds(80, 12, 2)
    columns = {"0.mha": slice(0, 2), "head": slice(2, 12)}
    results = list(
        probe(Features(x, labels, columns), Features(z, val_labels, columns), method=method, num_classes=5, device=CPU)
    )
    assert [(result.site, result.width, result.num_varying) for result in results] == [
        ("0.mha", 2, 2),
        ("head", 10, 10),
    ]
    for result in results:
        share, n, quantile = result.val_accuracy, result.num_val, 1.959963985
        middle = (share + quantile**2 / (2 * n)) / (1 + quantile**2 / n)
        half = quantile / (1 + quantile**2 / n) * (share * (1 - share) / n + quantile**2 / (4 * n * n)) ** 0.5
        assert (result.val_low, result.val_high) == pytest.approx((middle - half, middle + half))
        assert n == 80
        assert 0 < result.train_accuracy <= 1
        assert result.seconds > 0


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = DataConfig(max_train_images=60, max_val_images=30, cache_dir=str(tmp_path))
    return Config(data=data, probe=ProbeConfig(at=["all"]))


def test_the_embedded_model_knows_digits_and_the_test_stays_sealed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any, **__: Any) -> Part:
        raise AssertionError("the test images are finalize's")

    monkeypatch.setattr("unfreeze.data.sets.catalog.load_test", opened)
    table = probe_once(config)
    accuracy = {result.site: result.val_accuracy for result in table.results}
    assert len(accuracy) == 32
    assert accuracy["embed"] == pytest.approx(0.1)  # the class token has seen nothing yet
    assert accuracy["head"] > 0.5
    assert table.feature_bytes == 90 * 4 * (64 + 6 * (4 * 64 + 256) + 64)
    text = terminal_probe(table)
    for block in range(6):
        assert f"│ {block}  " in text
    assert "validation accuracy, % [95 % Wilson, n = 30]" in text
    assert "same in every image at embed, 0.ln1" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_table_of_one_site_is_the_details_alone(config: Config) -> None:
    config.probe = ProbeConfig(at=["head"], method="logistic", pool="mean")
    text = terminal_probe(probe_once(config))
    assert "block" not in text
    assert "the best sites" not in text
    assert "logistic, mean over tokens, 60 training images of 10 classes" in text


def test_a_wrong_site_stops_before_any_image_is_looked_at(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfreeze.sweep.probe.collect_features", lambda *_, **__: pytest.fail("too late"))
    config.probe = ProbeConfig(at=["6.fc2"])
    with pytest.raises(ConfigError, match=r"\['6\.fc2'\].*0\.ln1 to 5\.fc2"):
        probe_once(config)


def test_equal_labels_in_other_order_give_equal_probes(make_part: Callable[[int, int], Part]) -> None:
    """Batches of any size: the numbers are the images', not the pass's."""
    part = make_part(30, 3)
    module = build(embed_dim=16, depth=2, num_heads=2, patch_size=16)
    shuffled = Part(make_array(part.array.images, part.array.labels), np.random.default_rng(0).permutation(30))
    straight, other = collect(module, part, ["1.mha"]), collect(module, shuffled, ["1.mha"], batch_size=4)
    np.testing.assert_allclose(straight.values[shuffled.indices], other.values, atol=1e-6)
    np.testing.assert_array_equal(straight.labels[shuffled.indices], other.labels)
