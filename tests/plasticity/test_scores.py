"""Rival scores against their definitions, written out plainly in float64."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unfreeze import config
from unfreeze.components.mapping import group_of
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.errors import ModelError
from unfreeze.models.build import init_classifier
from unfreeze.plasticity.scores import SCORES, rival_scores
from unfreeze.records import COMPONENTS

SPEC = InputSpec(16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
GROUPS = [f"{block}.{component}" for block in range(2) for component in COMPONENTS]
CLASSIFIER = ("head.weight", "head.bias")
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: VisionTransformer(**SMALL, init_values=0.3, qk_norm=True, drop_rate=0.5),
    "eva": lambda: Eva(**SMALL),  # multiplies by qkv.weight without calling qkv
    "swiglu": lambda: Eva(**SMALL, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True),
    "beit": lambda: Beit(**SMALL, init_values=0.3, use_abs_pos_emb=False, use_shared_rel_pos_bias=True),
}


def make_model(name: str = "plain") -> nn.Module:
    """With every tensor away from its special start (zero biases, unit gains)."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_part(count: int = 10, *, copies: int = 1) -> Part:
    images = np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return Part(make_array(images, np.arange(count) % 4), np.tile(np.arange(count), copies))


def score(module: nn.Module, *names: str, part: Part | None = None, **settings: int) -> dict[str, dict[str, float]]:
    return rival_scores(
        names or tuple(SCORES),
        module,
        SPEC,
        part or make_part(),
        classifier=CLASSIFIER,
        device=torch.device("cpu"),
        **{"num_images": 1000, "batch_size": 4, "seed": 0, **settings},
    )


# --- the definitions, plainly -----------------------------------------------------------------------------------------


def plainly(name: str, part: Part) -> tuple[nn.Module, Tensor, Tensor]:
    """Model under the fresh classifier and normalised images, in float64, and labels."""
    model = make_model(name)
    init_classifier(model, CLASSIFIER, seed=0)
    pixels = torch.from_numpy(part.array.images[part.indices]).double().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    return copy.deepcopy(model).double(), (pixels - mean) / std, torch.from_numpy(part.labels)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Group → (tensor, gradient) of each of its tensors."""
    named = [(group_of(name), tensor) for name, tensor in model.named_parameters() if name.startswith("blocks.")]
    grads = torch.autograd.grad(loss, [tensor for _, tensor in named])
    pairs = [(group, tensor.detach(), grad) for (group, tensor), grad in zip(named, grads, strict=True)]
    return {group: [(tensor, grad) for own, tensor, grad in pairs if own == group] for group in GROUPS}


@pytest.mark.parametrize("name", ["plain", "swiglu"])
def test_gradient_norm(name: str) -> None:
    model, images, labels = plainly(name, make_part())
    losses = [F.cross_entropy(model(i[None]), y[None]) for i, y in zip(images, labels, strict=True)]
    expected = {}
    for group, pairs in gradients(model, sum(losses) / len(losses)).items():
        expected[group] = sum((grad.norm() / tensor.norm()).item() for tensor, grad in pairs) / len(pairs)
    assert score(make_model(name), "gradient_norm")["gradient_norm"] == pytest.approx(expected, rel=1e-4)


def test_gradient_norm_leaves_out_tensors_of_norm_zero() -> None:
    model = make_model()
    before = score(model, "gradient_norm")["gradient_norm"]["1.ln1"]
    nn.init.zeros_(model.blocks[1].norm1.bias)
    after = score(model, "gradient_norm")["gradient_norm"]["1.ln1"]
    assert math.isfinite(after)
    assert after != pytest.approx(before, rel=1e-3)


def test_sensitivity() -> None:
    model, images, labels = plainly("plain", make_part())
    batches = [slice(start, start + 4) for start in range(0, len(images), 4)]
    found = [gradients(model, F.cross_entropy(model(images[part]), labels[part])) for part in batches]
    ranked = []
    for group in GROUPS:
        for tensors in zip(*(batch[group] for batch in found), strict=True):
            ranked += [(value, group) for value in sum(grad**2 for _, grad in tensors).flatten().tolist()]
    top = [group for _, group in sorted(ranked, reverse=True)[: math.ceil(len(ranked) / 100)]]
    values = score(make_model(), "sensitivity")["sensitivity"]
    # Rounding may swap the two parameters on either side of the edge.
    assert values == pytest.approx({group: top.count(group) / len(top) for group in GROUPS}, abs=1.5 / len(top))
    assert sum(values.values()) == pytest.approx(1)
    assert sum(value > 2 / len(top) for value in values.values()) > 3


def test_per_image_the_squares_are_of_single_images() -> None:
    """With one image a batch it is SPT's code, and with the downstream labels FISH's global top share."""
    model, images, labels = plainly("plain", make_part())
    found = [gradients(model, model(i[None]).log_softmax(1)[0, y]) for i, y in zip(images, labels, strict=True)]
    ranked = []
    for group in GROUPS:
        for tensors in zip(*(image[group] for image in found), strict=True):
            ranked += [(value, group) for value in sum(grad**2 for _, grad in tensors).flatten().tolist()]
    top = [group for _, group in sorted(ranked, reverse=True)[: math.ceil(len(ranked) / 100)]]
    expected = pytest.approx({group: top.count(group) / len(top) for group in GROUPS}, abs=1.5 / len(top))
    assert score(make_model(), "sensitivity_per_image")["sensitivity_per_image"] == expected
    assert score(make_model(), "sensitivity", batch_size=1)["sensitivity"] == expected
    assert score(make_model(), "sensitivity", batch_size=64)["sensitivity"] != expected


def test_fishers_top_share_is_by_single_parameters_and_drawn_labels() -> None:
    """Of one image each label's own ranking is known: the share is that of the one that was drawn."""
    model, images, _ = plainly("plain", make_part(1))
    expected = []
    for label in range(4):
        found = gradients(model, model(images[0][None]).log_softmax(1)[0, label])
        ranked = [(value, group) for group in GROUPS for _, g in found[group] for value in (g**2).flatten().tolist()]
        top = [group for _, group in sorted(ranked, reverse=True)[: math.ceil(len(ranked) / 100)]]
        expected.append({group: top.count(group) / len(top) for group in GROUPS})
    scores = score(make_model(), "fisher", "fisher_share", part=make_part(1))
    close = [scores["fisher_share"] == pytest.approx(each, abs=1.5 / len(top)) for each in expected]
    by_label = [squares(model, images[0], label) for label in range(4)]
    drawn = [np.allclose(list(scores["fisher"].values()), each, rtol=1e-3) for each in by_label]
    assert drawn.count(True) == 1
    assert close[drawn.index(True)]
    assert list(scores["fisher_share"].values()) != list(scores["fisher"].values())


def test_sensitivity_counts_each_parameter_in_its_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfreeze.plasticity.scores._TOP_SHARE", 1.0)
    scores = score(make_model(), "sensitivity", "parameters")
    total = sum(scores["parameters"].values())
    assert scores["sensitivity"] == {group: size / total for group, size in scores["parameters"].items()}


@pytest.mark.parametrize("name", MODELS)
def test_forward_only(name: str) -> None:
    model, images, _ = plainly(name, make_part())
    seen: dict[str, Tensor] = {}
    for path, child in model.blocks.named_modules():
        child.register_forward_pre_hook(lambda _, inputs, path=path: seen.update({path: inputs[0].detach()}))
    model(images)
    products: dict[str, list[float]] = {}
    for path, child in model.blocks.named_modules():
        if isinstance(child, nn.Linear):
            inputs, rows = seen[path.removesuffix(".qkv")], child.weight.tolist()
        elif path.endswith((".norm1", ".norm2")):
            centred = seen[path] - seen[path].mean(-1, keepdim=True)
            inputs, rows = (
                centred / (centred.square().mean(-1, keepdim=True) + child.eps).sqrt(),
                [child.weight.tolist()],
            )
        else:
            continue
        sizes = [sum(abs(a) for a in column) / len(column) for column in inputs.flatten(0, -2).T.tolist()]
        own = products.setdefault(group_of(f"blocks.{path}.weight"), [])
        own += [abs(w) * size for row in rows for w, size in zip(row, sizes, strict=True)]
    expected = {group: sum(products[group]) / len(products[group]) for group in GROUPS}
    assert score(make_model(name), "forward_only")["forward_only"] == pytest.approx(expected, rel=1e-5)


def squares(model: nn.Module, image: Tensor, label: int) -> np.ndarray:
    """Mean over each group's parameters of the squared gradient of log p(label): (groups,)."""
    found = gradients(model, model(image[None]).log_softmax(1)[0, label])
    return np.array([torch.cat([grad.flatten() for _, grad in found[group]]).square().mean() for group in GROUPS])


def test_fisher_draws_one_label_per_image() -> None:
    model, images, _ = plainly("plain", make_part(3))
    by_label = [[squares(model, image, label) for label in range(4)] for image in images]
    found = np.array(list(score(make_model(), "fisher", part=make_part(3))["fisher"].values()))
    errors = sorted(np.abs(np.mean(drawn, axis=0) / found - 1).max() for drawn in itertools.product(*by_label))
    assert errors[0] < 1e-4
    assert errors[1] > 1e-3  # so that the labels can be told apart


def test_fisher_draws_labels_as_the_model_predicts() -> None:
    """Of one image 200 times over, the score is a mixture of the labels' squared gradients, in 200ths."""
    model, images, _ = plainly("plain", make_part(1))
    by_label = np.stack([squares(model, images[0], label) for label in range(4)], axis=1)
    found = np.array(list(score(make_model(), "fisher", part=make_part(1, copies=200))["fisher"].values()))
    scale = by_label.mean(1)
    shares, *_ = np.linalg.lstsq(by_label / scale[:, None], found / scale, rcond=None)
    assert shares * 200 == pytest.approx(np.round(shares * 200), abs=0.1)
    assert shares == pytest.approx(model(images).softmax(1)[0].tolist(), abs=4 * math.sqrt(0.25 / 200))


# --- the interface ----------------------------------------------------------------------------------------------------


def test_the_table_has_the_scores_of_the_configuration() -> None:
    assert set(SCORES) == set(get_args(config.RivalScore))


@pytest.mark.parametrize("name", MODELS)
def test_every_component_of_every_block_has_every_score(name: str) -> None:
    model = make_model(name)
    scores = score(model)
    assert all(list(values) == GROUPS and min(values.values()) >= 0 for values in scores.values())
    sizes = {g: sum(t.numel() for n, t in model.named_parameters() if group_of(n) == g) for g in GROUPS}
    assert scores["parameters"] == sizes


def test_what_the_scores_depend_on() -> None:
    model = make_model()
    first = score(model, num_images=6)
    assert score(model, num_images=6) == first
    assert score(make_model().train(), num_images=6) == first  # no dropout
    other_seed, other_batches = score(model, num_images=6, seed=1), score(model, num_images=6, batch_size=64)
    for name in set(SCORES) - {"parameters"}:
        assert other_seed[name] != first[name]
    for name in set(SCORES) - {"sensitivity"}:
        assert other_batches[name] == pytest.approx(first[name], rel=1e-4)
    assert score(model, num_images=3) == score(model, num_images=4)  # one image of each of the four classes


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(name: str, fails: bool) -> None:
    def state() -> list[object]:
        tensors = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
        return tensors + [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]

    model = make_model().train()
    model.blocks[1].eval()
    model.get_parameter("blocks.0.attn.qkv.weight").requires_grad_(False)
    if fails:
        model.norm.register_forward_pre_hook(lambda *_: {}["no such key"])
    before, values = state(), copy.deepcopy(model.state_dict())
    if fails and name != "parameters":
        with pytest.raises(KeyError):
            score(model, name)
    else:
        score(model, name)
    assert state() == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"parameters"}))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_an_error(name: str, value: float) -> None:
    model = make_model()
    model.blocks[1].norm2.weight.data[0] = value
    with pytest.raises(
        ModelError, match=r"1\.ln2 \(" if name == "forward_only" else r"is not finite in 0\.ln1 \(nan\)"
    ):
        score(model, name)
