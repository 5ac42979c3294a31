"""Upper bounds of the components' rates of change: the paper's formulas, and bounds that hold for every measured pair.

σ is a matrix's largest singular value, |·| the norm of a token, ‖·‖ the Frobenius norm of a token matrix. Everything is
computed in float64 on the CPU. A bound holds for exact arithmetic; a rate measured in float32 may pass a tight one by
its rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import Attention, AttentionRope, RmsNorm, RmsNormFp32
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from unfreeze.components.mapping import BlockModules
from unfreeze.records import COMPONENTS, MODES, PlasticityBound

_NORMS = (nn.LayerNorm, RmsNorm, RmsNormFp32)
# By exact class: a subclass may do more to its scores than is proved here.
_PLAIN_ATTENTIONS = (Attention, BeitAttention)
_ROTARY_ATTENTIONS = (EvaAttention, AttentionRope)  # whether they rotate is decided by the caller, at each call

_Bounds = tuple[float | None, float | None]  # as published, valid


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """Extremes of the tokens that entered the components in one mode. Arrays are float64 (blocks,)."""

    num_tokens: int  # per image
    mean_norm: float  # published r, in every mode: root mean square norm of an image's embedded tokens, over images
    ln1_min_variance: np.ndarray  # epsilon left out; the mean square for an RMS norm
    mha_max_norm: np.ndarray
    ln2_min_variance: np.ndarray


@torch.no_grad()
def upper_bounds(modules: Sequence[BlockModules], seen: Mapping[str, SeenTokens]) -> tuple[PlasticityBound, ...]:
    """Bounds of ‖f(x) − f(y)‖ / ‖x − y‖ of every block and component, for the tokens `seen` in each mode.

    As published (arXiv 2602.06883, its code) takes nothing of the tokens but their number and the mean norm of the
    embedded ones, so it is the same in every mode; it may be exceeded. Valid bounds the differences and, being a
    Lipschitz constant, the directional derivatives too. None where no bound is known.
    """
    assert set(seen) <= set(MODES), seen.keys()
    bounds = []
    for block, parts in enumerate(modules):
        fc1 = torch.cat([_weight(layer) for layer in parts.fc1])  # SwiGLU: two layers, one output
        fc2 = _weight(parts.fc2)
        whole = _largest_singular_value(fc2).item()
        fc1_bounds = (_largest_singular_value(fc1).item(),) * 2
        attention = _attention_bounds(parts.mha, seen, block)
        for mode, tokens in seen.items():
            acting = fc2[:, : fc1.shape[1]]  # the embedding is zero-padded to FC2's width
            of_component = {
                "ln1": _norm_bounds(parts.ln1, tokens.ln1_min_variance[block]),
                "mha": attention[mode],
                "ln2": _norm_bounds(parts.ln2, tokens.ln2_min_variance[block]),
                "fc1": fc1_bounds,
                "fc2": (whole, _largest_singular_value(acting).item() if mode == "reference" else whole),
            }
            for name in COMPONENTS:
                published, valid = of_component[name]
                bounds.append(
                    PlasticityBound(mode=mode, block=block, component=name, as_published=published, valid=valid)
                )
    return tuple(bounds)


def _norm_bounds(norm: Any, min_variance: float) -> _Bounds:
    """Published: max|γ|. Valid: max|γ| / √(min variance + ε).

    Centring is a projection, so let u, v be centred tokens of width d, φ(u) = u / √(|u|²/d + ε) and ũ = (u, √(dε)):
    φ(u) is √d ũ/|ũ| less its last entry, and |ũ| = √d √(variance + ε). With θ the angle between ũ and ṽ,
    |ũ − ṽ|² ≥ 2|ũ||ṽ|(1 − cos θ) = |ũ||ṽ| |ũ/|ũ| − ṽ/|ṽ||², so |φ(u) − φ(v)| ≤ √d |u − v| / √(|ũ||ṽ|). Only the two
    tokens' own variances enter, not those between them. An RMS norm is the same without the centring.
    """
    if not isinstance(norm, _NORMS):
        return None, None
    gain = 1.0 if norm.weight is None else _float64(norm.weight).abs().max().item()
    return gain, gain / float(np.sqrt(min_variance + norm.eps))


@dataclass(frozen=True, slots=True)
class _Projections:
    """Of one attention, float64; rows of query, key and value are head-major."""

    query: Tensor  # (heads × head width, width)
    key: Tensor  # (key heads × head width, width)
    value: Tensor  # as key
    out: Tensor  # (out width, heads × head width)
    query_bias: Tensor  # (heads × head width,)
    key_bias: Tensor
    num_heads: int
    scale: float
    rotary: bool


def _attention_bounds(attention: Any, seen: Mapping[str, SeenTokens], block: int) -> dict[str, _Bounds]:
    """By mode. None for queries, keys or outputs that are normalised, for gates and for unknown classes."""
    projections = _projections(attention)
    if projections is None:
        return dict.fromkeys(seen, (None, None))
    any_mode = next(iter(seen.values()))
    published = _published_attention(projections, any_mode.num_tokens, any_mode.mean_norm)
    radii = torch.tensor([[tokens.mha_max_norm[block]] for tokens in seen.values()], dtype=torch.float64)
    valid = _valid_attention(projections, any_mode.num_tokens, radii).tolist()
    return {mode: (published, bound) for mode, bound in zip(seen, valid, strict=True)}


def _projections(attention: Any) -> _Projections | None:
    additions = (getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
    if type(attention) not in _PLAIN_ATTENTIONS + _ROTARY_ATTENTIONS or not all(
        isinstance(addition, nn.Identity | None) for addition in additions
    ):
        return None
    if attention.qkv is None:
        query, key, value = (layer.weight for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        biases = [attention.q_proj.bias, attention.k_proj.bias]
    else:
        query, key, value = attention.qkv.weight.chunk(3)
        if attention.qkv.bias is None:  # EVA's and BEiT's are beside the layer
            biases = [getattr(attention, name, None) for name in ("q_bias", "k_bias")]
        else:
            biases = list(attention.qkv.bias.chunk(3)[:2])
    query_bias, key_bias = (
        weight.new_zeros(len(weight)) if bias is None else bias
        for weight, bias in zip((query, key), biases, strict=True)
    )
    return _Projections(
        query=_float64(query),
        key=_float64(key),
        value=_float64(value),
        out=_float64(attention.proj.weight),
        query_bias=_float64(query_bias),
        key_bias=_float64(key_bias),
        num_heads=attention.num_heads,
        scale=attention.scale,
        rotary=type(attention) in _ROTARY_ATTENTIONS,
    )


def _published_attention(of: _Projections, num_tokens: int, mean_norm: float) -> float | None:
    """Σ_h σ(O_h) σ(V_h) √(3n + (12n + 3) r⁴ σ(A_h)²), after Castin et al. 2024 (arXiv 2312.14820).

    As in the paper's code (ambroiseodt/vit-plasticity), head h is columns h·d_h to (h+1)·d_h of every weight, although
    q, k and v have their heads in the rows, A_h = Q_h K_hᵀ / √d_h is width × width, and r the mean over images of the
    root mean square of their tokens' norms. Biases and rotations are ignored. None unless weights are width × width.
    """
    width = of.query.shape[1]
    weights = (of.query, of.key, of.value, of.out)
    if any(weight.shape != (width, width) for weight in weights):
        return None
    query, key, value, out = (weight.unflatten(1, (of.num_heads, -1)).transpose(0, 1) for weight in weights)
    scores = _product_singular_value(query, key.mT) / query.shape[-1] ** 0.5
    root = (3 * num_tokens + (12 * num_tokens + 3) * mean_norm**4 * scores**2).sqrt()
    return (_largest_singular_value(out) * _largest_singular_value(value) * root).sum().item()


def _valid_attention(of: _Projections, num_tokens: int, radius: Tensor) -> Tensor:
    """A Lipschitz constant on the token matrices of n rows no longer than r. They form a convex set, so it is one for
    differences. ``radius`` (modes, 1) → (modes,).

    One head: f_i = Σ_j p_ij V x_j + bias, p_i the softmax of s_i. With x perturbed by h, m_i = Σ_j p_ij x_j and
    ds_ij = a_ij·h_i + b_ij·h_j + (terms without j, which drop out of the softmax),
        df_i = V [ Σ_j p_ij (x_j − m_i)(a_ij·h_i) + Σ_j p_ij (I + (x_j − m_i) b_ijᵀ) h_j ].
    Let |a_ij| ≤ α and |b_ij| ≤ β. For a unit vector u, c_j = u·(x_j − m_i) has Σ_j p_ij c_j = 0 and Σ_j p_ij c_j² ≤ r².
    By Cauchy–Schwarz the first sum is at most rα|h_i|, the second at most (Σ_j p_ij |u + c_j b_ij|²)^½
    (Σ_j p_ij |h_j|²)^½, and Σ_i Σ_j p_ij |h_j|² ≤ n‖h‖². The former root is at most 1 + rβ, and √(1 + r²β²) where b_ij
    does not depend on j, as its cross term 2 (u·b_i) Σ_j p_ij c_j vanishes. Hence ‖df‖ ≤ σ(V) ℓ ‖h‖ with
        ℓ = √n √(1 + r²β²) + rα,  or with rotations  ℓ = √n (1 + rβ) + rα.

    Without rotations s_ij = t (Q x_i + q)·K x_j + (terms without j: the key's bias), t the scale, plus a position bias
    that x does not move: a_ij = A x_j and b_ij = Aᵀx_i + t Kᵀq with A = t QᵀK, so α = σ(A) r, β = σ(A) r + t|Kᵀq|.
    With rotations s_ij = t (Q x_i + q)·R_ij (K x_j + k), R_ij orthogonal, and the key's bias k stays:
    α = t σ(Q)(σ(K) r + |k|), β = t σ(K)(σ(Q) r + |q|). This holds unrotated too. Grouped queries share K and V.

    The heads together, Σ_h O_h f_h: the lesser of Σ_h σ(O_h V_h) ℓ_h and σ(O) (Σ_h σ(V_h)² ℓ_h²)^½.
    """
    head_width = len(of.query) // of.num_heads

    def heads(rows: Tensor) -> Tensor:
        split = rows.unflatten(0, (-1, head_width))
        return split.repeat_interleave(of.num_heads // len(split), dim=0)

    query, key, value = heads(of.query), heads(of.key), heads(of.value)
    query_bias, key_bias = heads(of.query_bias), heads(of.key_bias)
    root_n = num_tokens**0.5
    if of.rotary:
        query_norm, key_norm = _largest_singular_value(query), _largest_singular_value(key)
        alpha = of.scale * query_norm * (key_norm * radius + key_bias.norm(dim=1))
        beta = of.scale * key_norm * (query_norm * radius + query_bias.norm(dim=1))
        own = root_n * (1 + radius * beta) + radius * alpha
    else:
        alpha = of.scale * _product_singular_value(query.mT, key) * radius
        beta = alpha + of.scale * torch.einsum("hed,he->hd", key, query_bias).norm(dim=1)
        own = root_n * (1 + (radius * beta) ** 2).sqrt() + radius * alpha
    out = of.out.unflatten(1, (of.num_heads, head_width)).transpose(0, 1)
    one_by_one = (_product_singular_value(out, value) * own).sum(1)
    stacked = _largest_singular_value(of.out) * (_largest_singular_value(value) * own).norm(dim=1)
    return torch.minimum(one_by_one, stacked)


def _largest_singular_value(matrix: Tensor) -> Tensor:
    """(…, m, n) → (…,), from the smaller Gram matrix."""
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
    return torch.linalg.eigvalsh(tall.mT @ tall)[..., -1].clamp_min(0).sqrt()


def _product_singular_value(left: Tensor, right: Tensor) -> Tensor:
    """σ(left right) for (…, m, k) and (…, k, n) with small k, without the (m, n) product."""
    return _largest_singular_value(torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.mT, mode="r").R.mT)


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear), f"FC1 and FC2 are linear layers, but got {type(layer).__name__}"
    return _float64(layer.weight)


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)
