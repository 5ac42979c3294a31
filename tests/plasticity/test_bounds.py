"""Every rate stays under the valid bound of its own tokens, the worst we can find too; the published bounds do not."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, DiffAttention, RmsNorm, SimpleNorm
from timm.models.beit import Beit
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unfreeze.components.mapping import BlockModules, block_modules
from unfreeze.data.pixels.batches import eval_view
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.plasticity.bounds import SeenTokens, upper_bounds
from unfreeze.records import COMPONENTS, MODES, PlasticityBound

WIDTH = 24
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 3, "num_classes": 4}
SWIGLU = {**SMALL, "swiglu_mlp": True, "mlp_ratio": 8 / 3}
ROPE = {**SMALL, "attn_type": "rope", "use_rot_pos_emb": True}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: VisionTransformer(**SMALL, init_values=0.3),
    "no_qkv_bias": lambda: VisionTransformer(**SMALL, qkv_bias=False),
    "reg_tokens": lambda: VisionTransformer(**SMALL, reg_tokens=3),
    "no_class_token": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="avg"),
    "rms_norm": lambda: VisionTransformer(**SMALL, norm_layer=RmsNorm),
    "separate_qkv": lambda: Eva(**SMALL, qkv_fused=False),
    "swiglu_two_layers": lambda: Eva(**SWIGLU, scale_mlp=True, use_rot_pos_emb=True),
    "swiglu_packed": lambda: Eva(**SWIGLU),
    "rope_half": lambda: Eva(**ROPE, rope_rotate_half=True),
    "rope_mixed": lambda: Eva(**ROPE, rope_type="mixed"),
    "grouped_queries": lambda: Eva(**ROPE, qkv_fused=False, num_kv_heads=1),
    "beit": lambda: Beit(**SMALL, init_values=0.3, use_abs_pos_emb=False, use_shared_rel_pos_bias=True),
}


def make_model(name: str = "plain") -> nn.Module:
    """In float64, every tensor away from its special start (zero biases, unit gains)."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.double().eval()


def attention_kwargs(model: nn.Module) -> dict[str, Any]:
    """What the model gives its first block's attention besides tokens: rotations, position bias."""
    seen: list[dict[str, Any]] = []
    hook = model.blocks[0].attn.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        model.forward_features(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    hook.remove()
    return {key: value for key, value in seen[0].items() if value is not None}


def functions(parts: BlockModules, kwargs: dict[str, Any] | None = None) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "ln1": parts.ln1,
        "mha": lambda tokens: parts.mha(tokens, **(kwargs or {})),
        "ln2": parts.ln2,
        "fc1": lambda tokens: torch.cat([layer(tokens) for layer in parts.fc1], dim=-1),
        "fc2": lambda tokens: parts.fc2(F.pad(tokens, (0, parts.fc2.in_features - tokens.shape[-1]))),
    }


def min_variance(tokens: Tensor, norm: nn.Module) -> float:
    centre = 0 if isinstance(norm, RmsNorm) else tokens.mean(-1, keepdim=True)
    return (tokens - centre).square().mean(-1).min().item()


def bounds_of(parts: BlockModules, mode: str, *tokens: Tensor) -> dict[str, PlasticityBound]:
    """Component → bound for token matrices (images, tokens, width) that enter every component alike."""
    seen = torch.cat(tokens)
    norms, variance = seen.norm(dim=-1), np.array([min_variance(seen, parts.ln1)])
    extremes = SeenTokens(seen.shape[1], norms.mean().item(), variance, np.array([norms.max().item()]), variance)
    return {bound.component: bound for bound in upper_bounds([parts], {mode: extremes})}


@torch.no_grad()
def rate(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    return ((function(x) - function(y)).norm() / (x - y).norm()).item()


def assert_under(bound: PlasticityBound, *rates: float) -> None:
    assert bound.valid is not None
    assert max(rates) <= bound.valid * (1 + 1e-9), (bound, rates)


# --- the valid bound --------------------------------------------------------------------------------------------------


def pairs(num_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token matrices (1, tokens, width) far apart and close, large and small, nearly constant, nearly all alike."""
    generator = torch.Generator().manual_seed(1)

    def normal() -> Tensor:
        return torch.randn(1, num_tokens, WIDTH, dtype=torch.float64, generator=generator)

    for scale in (0.01, 0.3, 1.0, 5.0, 50.0):
        x = scale * normal()
        yield x, scale * normal()
        yield x, x + 1e-4 * scale * normal()
        yield x, 3 * x
        yield x, torch.cat([x[:, :1] + scale * normal()[:, :1], x[:, 1:]], dim=1)  # one token moved
        yield x, x + normal()[:, :1]  # all tokens moved alike
        yield scale + 1e-3 * normal(), scale + 1e-3 * normal()
        yield x[:, :1] + 1e-3 * normal(), normal()[:, :1] + 1e-3 * normal()


@pytest.mark.parametrize("name", MODELS)
def test_no_pair_exceeds_the_valid_bound(name: str) -> None:
    model = make_model(name)
    kwargs = attention_kwargs(model)
    for parts in block_modules(model):
        hidden = torch.randn(WIDTH, parts.fc2.in_features, dtype=torch.float64)
        for x, y in pairs(16 + model.num_prefix_tokens):
            for mode in ("reference", "in_situ"):
                bounds = bounds_of(parts, mode, x, y)
                for component, function in functions(parts, kwargs).items():
                    fed = (x @ hidden, y @ hidden) if (mode, component) == ("in_situ", "fc2") else (x, y)
                    assert_under(bounds[component], rate(function, *fed))


def worst_pair(function: Callable[[Tensor], Tensor], num_tokens: int, radius: float) -> tuple[Tensor, Tensor]:
    """Gradient ascent of the rate over two token matrices whose tokens have the given norm."""
    free = torch.randn(2, num_tokens, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    free[1] = free[0] + 0.1 * free[1]
    free.requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=0.05)
    for _ in range(40):
        x, y = radius * F.normalize(free, dim=-1).unsqueeze(1)
        optimiser.zero_grad()
        (-torch.log((function(x) - function(y)).norm() / (x - y).norm())).backward()
        optimiser.step()
    x, y = radius * F.normalize(free.detach(), dim=-1).unsqueeze(1)
    return x, y


@pytest.mark.parametrize("name", ["plain", "separate_qkv", "rope_mixed", "grouped_queries", "beit"])
def test_neither_ascent_nor_the_jacobian_finds_a_steeper_attention(name: str) -> None:
    model = make_model(name)
    parts = next(block_modules(model))
    attend = functions(parts, attention_kwargs(model))["mha"]
    for radius in (0.3, 3.0):
        x, y = worst_pair(attend, 16 + model.num_prefix_tokens, radius)
        assert rate(attend, x, y) > 1.5 * rate(attend, *next(pairs(x.shape[1])))  # or the ascent does nothing
        assert_under(bounds_of(parts, "in_situ", x, y)["mha"], rate(attend, x, y))
        jacobian = torch.autograd.functional.jacobian(attend, x, vectorize=True).reshape(x.numel(), x.numel())
        assert_under(bounds_of(parts, "local", x)["mha"], torch.linalg.matrix_norm(jacobian, ord=2).item())


def test_the_linear_bound_is_the_rate_along_the_top_singular_vector() -> None:
    parts = next(block_modules(make_model("swiglu_two_layers")))
    weights = {
        ("in_situ", "fc1"): torch.cat([layer.weight for layer in parts.fc1]),
        ("in_situ", "fc2"): parts.fc2.weight,
        ("reference", "fc2"): parts.fc2.weight[:, :WIDTH],
    }
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    for (mode, component), weight in weights.items():
        top = torch.linalg.svd(weight).Vh[0]
        start = F.pad(x, (0, len(top) - WIDTH))
        found = rate(functions(parts)[component], start, start + top)
        assert bounds_of(parts, mode, x)[component].valid == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("name", ["plain", "rms_norm"])
@pytest.mark.parametrize("scale", [1e-4, 0.1, 10.0])
def test_the_norm_bound_is_nearly_reached(name: str, scale: float) -> None:
    """A token moved along the coordinate of the largest gain: above max|γ|, the published bound, where σ is small."""
    parts = next(block_modules(make_model(name)))
    largest = parts.ln1.weight.abs().argmax()
    x = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(1, 3, WIDTH // 2) * scale
    x[0, :, largest] = 0
    y = x.clone()
    y[0, 0, largest] += 1e-6 * scale
    bound, found = bounds_of(parts, "in_situ", x, y)["ln1"], rate(parts.ln1, x, y)
    assert_under(bound, found)
    assert found > 0.9 * bound.valid
    assert (found > bound.as_published) == (scale < 1)


@torch.no_grad()
def bias_driven(attention: nn.Module, bias: int, value: float) -> BlockModules:
    """A block whose attention copies the second half of a token into its first; the only bias is one of q's or k's."""
    for tensor in attention.parameters():
        tensor.zero_()
    half = WIDTH // 2
    attention.qkv.weight.view(3, WIDTH, WIDTH)[2, :half, half:] = torch.eye(half)
    attention.qkv.weight.view(3, WIDTH, WIDTH)[0 if bias >= WIDTH else 1].copy_(torch.eye(WIDTH))
    attention.proj.weight[:, :half] = torch.eye(WIDTH)[:, :half]
    attention.qkv.bias[bias] = value
    return replace(next(block_modules(make_model())), mha=attention.double())


def test_heads_cut_along_the_input_give_no_bound() -> None:
    """The published formula pairs the value's columns with the head that reads its rows: 0 for an attention that moves.

    With no scores at all, tokens moved alike move the output by as much.
    """
    parts = bias_driven(Attention(WIDTH, num_heads=2, qkv_bias=True), bias=0, value=0)
    x = torch.randn(1, 2, WIDTH, dtype=torch.float64)
    y = x + torch.eye(WIDTH, dtype=torch.float64)[-1]
    bound = bounds_of(parts, "in_situ", x, y)["mha"]
    assert rate(parts.mha, x, y) == pytest.approx(1, rel=1e-9)
    assert bound.as_published == pytest.approx(0, abs=1e-9)
    assert bound.valid == pytest.approx(math.sqrt(2), rel=1e-9)  # √n


@pytest.mark.parametrize("rotated", [False, True])
def test_a_bound_without_the_bias_would_fail(rotated: bool) -> None:
    """Two tokens far apart where the value sees them, moved where only the scores do, and the scores are the bias's.

    The key's bias drops out of plain scores, but not out of rotated ones: there it meets the query that moves.
    """
    attention = AttentionRope(WIDTH, 2, num_prefix_tokens=0) if rotated else Attention(WIDTH, 2, qkv_bias=True)
    parts = bias_driven(attention, bias=WIDTH if rotated else 0, value=10.0)
    angles = torch.tensor([[0.0], [math.pi / 2]], dtype=torch.float64).expand(2, WIDTH // 2)  # a quarter turn between
    kwargs = {"rope": torch.cat([angles.sin(), angles.cos()], dim=-1)} if rotated else {}
    x = torch.zeros(1, 2, WIDTH, dtype=torch.float64)
    x[0, :, WIDTH // 2] = torch.tensor([2.0, -2.0])
    y = x.clone()
    y[0, :, 0] += torch.tensor([1e-5, -1e-5])
    found = rate(functions(parts, kwargs)["mha"], x, y)
    assert_under(bounds_of(parts, "in_situ", x, y)["mha"], found)
    attention.qkv.bias.data.zero_()
    assert found > bounds_of(parts, "in_situ", x, y)["mha"].valid


# --- as published -----------------------------------------------------------------------------------------------------


def plain_attention_formula(attention: Any, num_tokens: int, mean_norm: float) -> float:
    query, key, value = attention.qkv.weight.detach().chunk(3)
    out, size, total = attention.proj.weight.detach(), WIDTH // attention.num_heads, 0.0
    for head in range(attention.num_heads):
        cut = slice(head * size, (head + 1) * size)
        scores = torch.linalg.svdvals(query[:, cut] @ key[:, cut].T / math.sqrt(size))[0].item()
        root = math.sqrt(3 * num_tokens + (12 * num_tokens + 3) * mean_norm**4 * scores**2)
        total += torch.linalg.svdvals(out[:, cut])[0].item() * torch.linalg.svdvals(value[:, cut])[0].item() * root
    return total


@pytest.mark.parametrize("mode", MODES)
def test_as_published_is_the_papers_formula_in_every_mode(mode: str) -> None:
    model = make_model()
    seen = SeenTokens(17, 2.5, np.array([0.1, 0.2]), np.array([7.0, 8.0]), np.array([0.3, 0.4]))
    bounds = upper_bounds(list(block_modules(model)), {mode: seen})
    assert [(b.mode, b.block, b.component) for b in bounds] == [(mode, i, name) for i in (0, 1) for name in COMPONENTS]
    expected = [
        (
            block.norm1.weight.abs().max().item(),
            plain_attention_formula(block.attn, 17, 2.5),
            block.norm2.weight.abs().max().item(),
            torch.linalg.svdvals(block.mlp.fc1.weight)[0].item(),
            torch.linalg.svdvals(block.mlp.fc2.weight)[0].item(),
        )
        for block in model.blocks
    ]
    assert [bound.as_published for bound in bounds] == pytest.approx(np.ravel(expected).tolist(), rel=1e-9)


@pytest.mark.real
def test_as_published_is_what_the_papers_code_gives_for_deit_tiny(
    deit_tiny: tuple[nn.Module, InputSpec, np.ndarray, np.ndarray],
) -> None:
    """What ambroiseodt/vit-plasticity gives for its first six blocks, 197 tokens and r = 19.4."""
    blocks = list(block_modules(deit_tiny[0]))[:6]
    ones = np.ones(6)
    bounds = upper_bounds(blocks, {"reference": SeenTokens(197, 19.4, ones, ones, ones)})
    found = [bound.as_published for bound in bounds if bound.component == "mha"]
    assert found == pytest.approx([103_704.0, 41_711.0, 27_319.1, 17_477.2, 15_585.1, 20_878.2], abs=0.06)


@pytest.mark.parametrize(
    ("component", "module", "valid_known"),
    [
        ("mha", Attention(WIDTH, 3, qk_norm=True, norm_layer=nn.LayerNorm), False),
        ("mha", Attention(WIDTH, 3, scale_norm=True, norm_layer=nn.LayerNorm), False),
        ("mha", Attention(WIDTH, 3, gated=True), False),
        ("mha", EvaAttention(WIDTH, 3, norm_layer=nn.LayerNorm), False),
        ("mha", DiffAttention(WIDTH, 3), False),
        ("mha", AttentionRope(WIDTH, 3, qkv_fused=False, num_kv_heads=1), True),
        ("mha", Attention(WIDTH, 3, attn_head_dim=4), True),
        ("ln1", SimpleNorm(WIDTH), False),
    ],
)
def test_none_where_no_bound_is_known(component: str, module: nn.Module, valid_known: bool) -> None:
    parts = replace(next(block_modules(make_model())), **{component: module.double().eval()})
    x, y = next(pairs(5))
    bounds = bounds_of(parts, "in_situ", x, y)
    without = bounds.pop(component)
    assert without.as_published is None
    assert (without.valid is not None) == valid_known
    if valid_known:
        assert_under(without, rate(module, x, y))
    assert all(bound.as_published and bound.valid for bound in bounds.values())


# --- real weights and images ------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_pairs_of_deit_tiny_stay_under_the_valid_bound_and_pass_the_published_one(
    deit_tiny: tuple[nn.Module, InputSpec, np.ndarray, np.ndarray],
) -> None:
    module, spec, *images = deit_tiny
    views = [eval_view(torch.from_numpy(some[:3]), spec).double() for some in images]
    model = copy.deepcopy(module).double().eval()
    parts = list(block_modules(model))[:9:4]
    fed: dict[tuple[int, str], Tensor] = {}
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for index, block in enumerate(parts):
            for name, layer in zip(COMPONENTS, (block.ln1, block.mha, block.ln2, *block.fc1, block.fc2), strict=True):

                def record(_: nn.Module, args: tuple[Tensor], key: tuple[int, str] = (index, name)) -> None:
                    fed[key] = args[0]

                hooks.callback(layer.register_forward_pre_hook(record).remove)
        model.forward_features(torch.cat(views))
    exceeded = []
    for mode in ("reference", "in_situ"):
        inputs = {key: fed[0, "ln1"] if mode == "reference" else tokens for key, tokens in fed.items()}
        norms = fed[0, "ln1"].norm(dim=-1)
        ln1, ln2 = (np.array([min_variance(inputs[i, n], parts[i].ln1) for i in range(3)]) for n in ("ln1", "ln2"))
        mha = np.array([inputs[i, "mha"].norm(dim=-1).max().item() for i in range(3)])
        for bound in upper_bounds(parts, {mode: SeenTokens(norms.shape[1], norms.mean().item(), ln1, mha, ln2)}):
            function = functions(parts[bound.block])[bound.component]
            sources, targets = inputs[bound.block, bound.component].split(3)
            rates = [rate(function, x, y) for x, y in zip(sources.split(1), targets.split(1), strict=True)]
            assert_under(bound, *rates)
            if max(rates) > bound.as_published:
                exceeded.append((mode, bound.component))
    assert {("in_situ", "ln1"), ("in_situ", "ln2")} <= set(exceeded)  # some tokens vary little
