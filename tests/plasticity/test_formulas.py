import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unfreeze.components.mapping import BlockModules, block_modules
from unfreeze.plasticity.formulas import pair_norm, rate_of_change, reference_changes


def _tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_pair_norm_is_the_frobenius_norm_of_each_matrix(pairs: int) -> None:
    difference = _tokens(0, pairs, 5, 7)
    expected = torch.stack([torch.linalg.matrix_norm(matrix.double(), "fro") for matrix in difference])
    norms = pair_norm(difference)
    assert norms.dtype == torch.float64
    torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0)


def test_pair_norm_of_bfloat16_is_summed_in_float32() -> None:
    # 200 × 200 entries of 1: a bfloat16 sum of squares would stop growing at 256.
    ones = torch.ones(1, 200, 200, dtype=torch.bfloat16)
    assert pair_norm(ones).item() == pytest.approx(200.0, rel=1e-6)


def test_rate_of_change_is_the_ratio_of_the_norms() -> None:
    in_x, in_y, out_x, out_y = (_tokens(seed, 4, 5, 6) for seed in range(4))
    expected = [
        ((out_x[i] - out_y[i]).double().square().sum() / (in_x[i] - in_y[i]).double().square().sum()).sqrt().item()
        for i in range(4)
    ]
    assert rate_of_change(out_x, out_y, in_x, in_y).tolist() == pytest.approx(expected, rel=1e-6)


def test_rate_of_change_is_nan_for_equal_inputs_alone() -> None:
    x, y = _tokens(0, 3, 4, 5), _tokens(1, 3, 4, 5)
    y[1] = x[1]
    rates = rate_of_change(2 * x, 2 * y, x, y)
    assert rates.isnan().tolist() == [False, True, False]
    assert rates[0].item() == pytest.approx(2.0)


def test_rate_of_change_of_an_isometry_is_one() -> None:
    rotation = torch.linalg.qr(_tokens(0, 6, 6)).Q
    x, y = _tokens(1, 3, 5, 6), _tokens(2, 3, 5, 6)
    rates = rate_of_change(x @ rotation, y @ rotation, x, y)
    assert rates.tolist() == pytest.approx([1.0] * 3, rel=1e-6)


def test_reference_changes_are_those_of_the_modules_called_on_both_inputs() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=2).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    parts = next(iter(block_modules(model)))
    x, y = _tokens(1, 5, 5, 24), _tokens(2, 5, 5, 24)
    padded_x, padded_y = (nn.functional.pad(tokens, (0, 96 - 24)) for tokens in (x, y))
    with torch.no_grad():
        changes = reference_changes(parts, x, y, {})
        plain = {
            "ln1": parts.ln1(x) - parts.ln1(y),
            "mha": parts.mha(x) - parts.mha(y),
            "ln2": parts.ln2(x) - parts.ln2(y),
            "fc1": parts.fc1[0](x) - parts.fc1[0](y),
            "fc2": parts.fc2(padded_x) - parts.fc2(padded_y),
        }
    assert changes.keys() == plain.keys()
    for name, difference in plain.items():
        torch.testing.assert_close(changes[name], pair_norm(difference), rtol=1e-5, atol=0, msg=name)


def test_two_first_layers_are_one_wide_layer() -> None:
    """SwiGLU's FC1: the change of two projections side by side is that of their concatenation."""
    torch.manual_seed(0)
    gate, value, identity = nn.Linear(6, 9), nn.Linear(6, 9), nn.Identity()
    parts = BlockModules(ln1=identity, mha=identity, ln2=identity, fc1=(gate, value), fc2=nn.Linear(9, 6))
    x, y = _tokens(1, 4, 3, 6), _tokens(2, 4, 3, 6)
    with torch.no_grad():
        together = torch.cat([gate(x) - gate(y), value(x) - value(y)], dim=-1)
        changes = reference_changes(parts, x, y, {})
    torch.testing.assert_close(changes["fc1"], pair_norm(together), rtol=1e-5, atol=0)
