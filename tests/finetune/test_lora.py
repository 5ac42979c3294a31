import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from processes import Processes
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unfreeze.components.freeze import unfreeze_only
from unfreeze.components.mapping import count_parameters, group_of, lora_sizes
from unfreeze.components.selection import count_trainable, parse_selection
from unfreeze.config import FinetuneConfig
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import SelectionError
from unfreeze.finetune.checkpoint import Checkpoint, restore
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.lora import inject_adapters, merge_adapters, remove_adapters
from unfreeze.finetune.warm import WarmModel
from unfreeze.records import TrialReport, TrialSpec

MakeWarm = Callable[..., WarmModel]
MakeSpec = Callable[..., TrialSpec]
MakeConfig = Callable[..., FinetuneConfig]

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: VisionTransformer(**SMALL),
    "eva_separate_qkv": lambda: Eva(**SMALL, qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
    "eva_separate_bias": lambda: Eva(**SMALL, attn_type="rope", init_values=0.1),
    "beit_no_bias": lambda: Beit(**SMALL, qkv_bias=False),
}
LAYERS = {
    "plain": {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"},
    "eva_separate_qkv": {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"},
    "eva_separate_bias": {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"},
    "beit_no_bias": {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"},
}
EVERYWHERE = "mha@0:lora(2)+mha@1:lora(5)+fc1:lora(3)+fc2:lora(1)"


@pytest.fixture(scope="session", autouse=True)
def import_peft() -> None:
    """peft and what it imports warn of their own dependencies at import."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft  # noqa: F401


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    nn.init.normal_(model.head.weight)  # type: ignore[union-attr, arg-type]  # EVA's and BEiT's start at a thousandth
    return model


def inject(model: nn.Module, text: str, *, seed: int = 3, lora_alpha: float = 4.0) -> list[str]:
    selection = parse_selection(text, num_blocks=2)
    inject_adapters(model, selection, seed=seed, lora_alpha=lora_alpha)
    return unfreeze_only(model, selection, train_head=False)


def randomize(model: nn.Module, names: list[str]) -> None:
    generator = torch.Generator().manual_seed(8)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(0.3 * torch.randn(parameters[name].shape, generator=generator))


# --- what is adapted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_chosen_layer_is_adapted_and_nothing_else(name: str) -> None:
    model = build(name)
    names = inject(model, EVERYWHERE)
    expected = {
        f"blocks.{block}.{layer}.lora_{half}.default.weight"
        for block in (0, 1)
        for layer in LAYERS[name]
        for half in "AB"
    }
    assert set(names) == expected
    assert {n for n, parameter in model.named_parameters() if parameter.requires_grad} == expected
    parameters = dict(model.named_parameters())
    for layer in LAYERS[name]:
        for block in (0, 1):
            rank = {"attn": (2, 5)[block], "mlp": 1 if layer.endswith("fc2") else 3}[layer.split(".")[0]]
            assert parameters[f"blocks.{block}.{layer}.lora_A.default.weight"].shape[0] == rank
            assert group_of(f"blocks.{block}.{layer}.base_layer.weight") == group_of(f"blocks.{block}.{layer}.weight")


@pytest.mark.parametrize("name", MODELS)
def test_the_count_is_that_of_the_adapted_model(name: str) -> None:
    model = build(name)
    counts, sizes = count_parameters(model), lora_sizes(model)
    inject(model, EVERYWHERE)
    selection = parse_selection(EVERYWHERE, num_blocks=2)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count_trainable(selection, counts, train_head=False, lora_sizes=sizes) == trained
    with_head = count_trainable(selection, counts, train_head=True, lora_sizes=sizes)
    assert with_head == trained + counts["head"]


def test_the_count_for_deit_tiny_is_the_arithmetic_one() -> None:
    with torch.device("meta"):
        model = timm.create_model("deit_tiny_patch16_224")
    d, h = 192, 768
    for text, expected in (
        ("mha:lora(8)", 12 * 8 * ((d + 3 * d) + (d + d))),
        ("fc1@3:lora(4)", 4 * (d + h)),
        ("fc1:lora(4)+fc2:lora(4)", 12 * 2 * 4 * (d + h)),
    ):
        selection = parse_selection(text, num_blocks=12)
        counted = count_trainable(selection, count_parameters(model), train_head=False, lora_sizes=lora_sizes(model))
        assert counted == expected


@pytest.mark.parametrize("name", MODELS)
def test_every_adapter_changes_what_the_model_computes(name: str) -> None:
    """A layer whose weight is read without a call would ignore its adapter."""
    images = torch.randn(2, 3, 32, 32)
    model = build(name)
    before = model(images)
    names = inject(model, EVERYWHERE)
    assert torch.equal(model(images), before)  # B is 0
    parameters = dict(model.named_parameters())
    for layer in sorted({n.partition(".lora_")[0] for n in names}):
        weight = parameters[f"{layer}.lora_B.default.weight"]
        with torch.no_grad():
            weight.fill_(0.5)
            assert not torch.equal(model(images), before), layer
            weight.zero_()


@pytest.mark.parametrize(
    "make", [lambda: Eva(**SMALL, qkv_fused=True), lambda: Beit(**SMALL, init_values=0.1)], ids=["eva", "beit"]
)
def test_attention_that_reads_its_weight_is_refused(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    with pytest.raises(SelectionError, match=rf"{type(model).__name__} has no .* in 0\.mha.*adaptable here: fc1, fc2"):
        inject(model, "mha:lora(2)")
    with pytest.raises(SelectionError, match=r"'mha:lora\(2\)'.*0\.mha, 1\.mha"):
        count_trainable(
            parse_selection("mha:lora(2)", num_blocks=2),
            count_parameters(model),
            train_head=True,
            lora_sizes=lora_sizes(model),
        )
    assert len(inject(model, "fc1:lora(2)")) == 4


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_an_adapted_layer_adds_the_scaled_product() -> None:
    model = build("plain")
    original = model.blocks[1].attn.qkv  # type: ignore[index, union-attr]
    randomize(model, inject(model, "mha@1:lora(3)", lora_alpha=6.0))
    layer = model.blocks[1].attn.qkv  # type: ignore[index, union-attr]
    x = torch.randn(4, 32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(layer(x), original(x) + (6.0 / 3) * x @ a.T @ b.T, atol=1e-6)


def test_the_start_depends_on_seed_and_layer_alone() -> None:
    def start(text: str, seed: int) -> torch.Tensor:
        model = build("plain")
        torch.manual_seed(seed + 100)
        state = torch.get_rng_state()
        inject(model, text, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return dict(model.named_parameters())["blocks.1.mlp.fc1.lora_A.default.weight"]

    first = start("fc1:lora(3)", 1)
    assert torch.equal(first, start("mha:lora(2)+fc1@1:lora(3)", 1))
    assert not torch.equal(first, start("fc1:lora(3)", 2))
    assert first.abs().max() <= 32**-0.5  # as a fresh nn.Linear of 32 inputs
    assert first.abs().max() > 0.9 * 32**-0.5


@pytest.mark.parametrize("name", MODELS)
def test_merged_the_model_is_plain_and_computes_the_same(name: str) -> None:
    model, images = build(name), torch.randn(2, 3, 32, 32)
    plain, base = set(model.state_dict()), model(images)
    randomize(model, inject(model, EVERYWHERE))
    adapted = model(images)
    merge_adapters(model)
    assert set(model.state_dict()) == plain
    assert not any("peft" in type(module).__module__ for module in model.modules())
    assert torch.allclose(model(images), adapted, atol=1e-5)
    assert (adapted - base).abs().max() > 1e-3


def test_removed_the_model_is_bitwise_what_it_was() -> None:
    model, fresh = build("plain"), build("plain")
    for text in (EVERYWHERE, "fc2@1:lora(4)"):
        randomize(model, inject(model, text))
        remove_adapters(model)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in fresh.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert not hasattr(model, "peft_config")
    assert [type(module) for module in model.modules()] == [type(module) for module in fresh.modules()]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_rank_beyond_the_layer_is_refused_before_anything_changes() -> None:
    model = build("plain")
    with pytest.raises(SelectionError, match=r"rank 33 exceeds .* choose 1 to 32"):
        inject(model, "fc1:lora(33)")
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert len(inject(model, "fc1:lora(32)")) == 4


def test_a_rank_beyond_a_narrow_layer_names_it() -> None:
    model = VisionTransformer(**SMALL, mlp_ratio=0.5)
    with pytest.raises(SelectionError, match=r"rank 20 exceeds what blocks\.0\.mlp\.fc1 can use; choose 1 to 16"):
        inject(model, "fc1:lora(20)")


def test_without_peft_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfreeze.components.selection.find_spec", lambda name: None)
    with pytest.raises(SelectionError, match=r"'mha:lora\(2\)' needs peft: pip install 'unfreeze\[lora\]'"):
        inject(build("plain"), "mha:lora(2)")


def test_adapters_that_are_not_there_cannot_be_trained() -> None:
    with pytest.raises(SelectionError, match=r"adapters that the model does not hold in 1\.fc1"):
        unfreeze_only(build("plain"), parse_selection("fc1@1:lora(2)", num_blocks=2), train_head=True)


def test_peft_is_not_imported_without_need(processes: Processes, tmp_path: Path) -> None:
    code = "import sys, unfreeze.finetune.warm, unfreeze.sweep.finalize; assert 'peft' not in sys.modules"
    assert processes.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


# --- a trial ----------------------------------------------------------------------------------------------------------


def run(
    warm: WarmModel, data: Dataset, spec: TrialSpec, config: FinetuneConfig, resume: Checkpoint | None = None
) -> tuple[list[tuple[float, ...]], list[bytes]]:
    """The numbers of every report, and every checkpoint."""
    reports: tuple[TrialReport, ...] = resume.reports if resume else ()
    saved = []
    for progress in finetune(warm, data, spec, config, augment="none", resume=resume):
        reports = progress.reports
        saved.append(progress.checkpoint.to_bytes())
    return [(r.images_seen, r.train_loss, r.val_loss, r.val_accuracy) for r in reports], saved


def weights(warm: WarmModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in warm.module.named_parameters()}


def test_a_trial_trains_the_adapters_and_leaves_the_base_alone(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    warm, spec = make_warm(), make_spec("mha:lora(2)", learning_rate=0.3)
    warm.prepare(spec.selection, seed=spec.seed, train_head=True)
    before = weights(warm)
    numbers, saved = run(warm, data, spec, make_config(epochs=30.0))
    losses = [train_loss for _, train_loss, _, _ in numbers]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05
    after = weights(warm)
    assert after.keys() == before.keys()
    adapters = {n for n in before if ".lora_" in n}
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == adapters | {n for n in before if n.startswith(("norm.", "head."))}
    assert len(adapters) == 2 * 2 * 2
    checkpoint = Checkpoint.from_bytes(saved[-1], base_digest=warm.base.facts.digest)
    assert checkpoint.parameters.keys() == changed


@pytest.mark.parametrize("second", ["mha:lora(2)", "mha+ln2", "fc1:lora(4)+ln1", "all"])
def test_the_next_trial_on_the_same_model_knows_nothing_of_it(
    second: str, data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    warm, fresh = make_warm(), make_warm()
    run(warm, data, make_spec("mha:lora(3)+fc2"), make_config())
    spec = make_spec(second, seed=4)
    assert run(warm, data, spec, make_config())[0] == run(fresh, data, spec, make_config())[0]
    left, right = weights(warm), weights(fresh)
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_interrupted_and_resumed_nothing_changes(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    spec, config = make_spec("mha@1:lora(2)+fc1"), make_config()
    warm, other = make_warm(proj_drop_rate=0.2), make_warm(proj_drop_rate=0.2)
    numbers, saved = run(warm, data, spec, config)
    final = weights(warm)
    for done, data_saved in enumerate(saved[:3], 1):
        run(other, data, make_spec("fc2:lora(1)", seed=5), make_config(num_reports=1))
        checkpoint = Checkpoint.from_bytes(data_saved, base_digest=other.base.facts.digest)
        assert run(other, data, spec, config, resume=checkpoint)[0] == numbers[done:]
        resumed = weights(other)
        assert [name for name in final if not torch.equal(final[name], resumed[name])] == []


def test_a_checkpoint_is_exported_as_a_plain_model(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig, tmp_path: Path
) -> None:
    """What `finalize` does with a checkpoint, up to the state dict that timm loads."""
    from safetensors.torch import save_file

    warm, spec = make_warm(), make_spec("mha:lora(2)+fc2@0:lora(3)")
    _, saved = run(warm, data, spec, make_config())
    images = torch.randn(3, 3, 32, 32)
    expected = warm.module.eval()(images)

    base = make_warm().base
    checkpoint = replace(Checkpoint.from_bytes(saved[-1], base_digest=base.facts.digest), optimizer={})
    selection = parse_selection(spec.selection, num_blocks=2)
    inject_adapters(base.module, selection, seed=spec.seed, lora_alpha=16.0)
    restore(checkpoint, base.module, None, [])
    merge_adapters(base.module)
    save_file(base.module.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = timm.create_model(
        "unfreeze_tiny", checkpoint_path=str(tmp_path / "model.safetensors"), **base.facts.create_kwargs
    )
    assert torch.allclose(loaded.eval()(images), expected, atol=1e-5)
