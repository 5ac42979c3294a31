"""The cost model against torch's own accounts: its FLOP counter, and what autograd says it keeps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unfreeze.components.freeze import unfreeze_only
from unfreeze.components.mapping import count_parameters
from unfreeze.components.selection import parse_selection
from unfreeze.config import FinetuneConfig
from unfreeze.cost.model import CostModel, StepTime, activation_bytes, fit_step_time
from unfreeze.errors import ModelError
from unfreeze.finetune.network import Network
from unfreeze.records import ModelFacts

# `none` and single blocks besides: where the backward pass ends within a block, each component once as the lowest.
SELECTIONS = ("all", "mha", "fc1", "fc2", "ln1+ln2", "mha@9-11", "ln2@5", "fc2@11", "embed", "mha@3+fc2@1", "none")
IMAGES, SIDE = 3, 64


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """DeiT-Tiny's shape on 64 px: 17 tokens of width 192, 12 blocks."""
    with torch.random.fork_rng():
        return timm.create_model("deit_tiny_patch16_224", img_size=SIDE, num_classes=10).train()


@pytest.fixture(scope="module")
def facts(vit: nn.Module) -> ModelFacts:
    return ModelFacts(
        name="deit_tiny_patch16_224",
        digest="",
        num_blocks=12,
        parameters=count_parameters(vit),
        image_size=SIDE,
        create_kwargs={},
        num_tokens=17,
        width=192,
        plain=True,
        first_token=True,
    )


@pytest.fixture
def images() -> Tensor:
    return torch.randn(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def make_cost(facts: ModelFacts, *, activation_bytes: int = 4, num_workers: int = 1, **settings: Any) -> CostModel:
    plain = {"batch_size": IMAGES * num_workers}
    return CostModel(facts, FinetuneConfig(**{**plain, **settings}), activation_bytes, num_workers)


def select(text: str) -> Any:
    return parse_selection(text, num_blocks=12)


def count_flops(vit: nn.Module, images: Tensor, *, checkpointing: bool = False) -> float:
    """Per image, forward and backward, as torch counts them."""
    vit.zero_grad()
    with FlopCounterMode(display=False) as counter:
        Network(vit, activation_checkpointing=checkpointing)(images).sum().backward()
    return counter.get_total_flops() / len(images)


def kept_bytes(vit: nn.Module, images: Tensor, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps, the parameters' and the images' left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [images, *vit.parameters()]}
    storages: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # held: no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(size for size, _ in storages.values())


# --- FLOPs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_flops_are_those_of_torch_to_one_percent(
    selection: str, train_head: bool, vit: nn.Module, facts: ModelFacts, images: Tensor
) -> None:
    """torch counts matrix products alone; ours has the norms besides, 0.1 to 0.2 % of them."""
    if selection == "none" and not train_head:
        pytest.skip("trains nothing")
    unfreeze_only(vit, select(selection), train_head=train_head)
    predicted = make_cost(facts, train_head=train_head).flops(select(selection)).total
    assert predicted == pytest.approx(count_flops(vit, images), rel=0.01)


@pytest.mark.parametrize("selection", ["all", "fc1", "mha@9-11"])
def test_recomputed_flops_are_those_of_torch_to_one_percent(
    selection: str, vit: nn.Module, facts: ModelFacts, images: Tensor
) -> None:
    unfreeze_only(vit, select(selection), train_head=True)
    measured = count_flops(vit, images, checkpointing=True)
    predicted = make_cost(facts, activation_checkpointing=True).flops(select(selection))
    assert predicted.total == pytest.approx(measured, rel=0.01)
    assert predicted.recomputed > 0


def test_flops_of_a_step_are_one_workers_share(facts: ModelFacts) -> None:
    alone, shared = make_cost(facts, batch_size=64), make_cost(facts, batch_size=64, num_workers=4)
    assert alone.flops_per_step(select("mha")) == pytest.approx(64 * alone.flops(select("mha")).total)
    assert shared.flops_per_step(select("mha")) == pytest.approx(alone.flops_per_step(select("mha")) / 4)


def test_the_share_is_of_all(facts: ModelFacts) -> None:
    cost = make_cost(facts)
    shares = {text: cost.flops_share(select(text)) for text in ("none", "mha@9-11", "ln1", "mha", "all")}
    assert shares["all"] == 1
    assert list(shares.values()) == sorted(shares.values())
    assert shares["none"] == pytest.approx(1 / 3, rel=0.02)  # forward against forward and both gradients


def test_a_cached_prefix_is_not_computed(facts: ModelFacts) -> None:
    plain, cached = make_cost(facts), make_cost(facts, prefix_cache_gib=1.0)
    before, after = plain.flops(select("mha@9-11")), cached.flops(select("mha@9-11"))
    assert after.forward < before.forward / 3.5  # three blocks of twelve, and no embedding
    assert (after.input_gradients, after.weight_gradients) == (before.input_gradients, before.weight_gradients)
    assert cached.flops(select("all")) == plain.flops(select("all"))
    assert cached.validation_flops(10) == plain.validation_flops(10)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS)
def test_kept_activations_are_those_of_autograd_to_one_percent(
    selection: str, vit: nn.Module, facts: ModelFacts, images: Tensor
) -> None:
    unfreeze_only(vit, select(selection), train_head=True)
    measured = kept_bytes(vit, images, lambda: Network(vit)(images))
    assert make_cost(facts).memory(select(selection)).kept == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_kept_activations_under_autocast_to_two_percent(
    selection: str, vit: nn.Module, facts: ModelFacts, images: Tensor
) -> None:
    """With autocast's copies of the weights, which weigh more than the activations of three images."""
    unfreeze_only(vit, select(selection), train_head=True)

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return Network(vit)(images)

    measured = kept_bytes(vit, images, forward)
    predicted = make_cost(facts, activation_bytes=2).memory(select(selection)).kept
    assert predicted == pytest.approx(measured, rel=0.02)


def test_checkpointed_blocks_keep_their_input(vit: nn.Module, facts: ModelFacts, images: Tensor) -> None:
    plain = make_cost(facts).memory(select("all")).kept
    checkpointed = make_cost(facts, activation_checkpointing=True).memory(select("all")).kept
    row = 4 * IMAGES * 17 * 192
    assert checkpointed == pytest.approx(12 * row + 16 * row, rel=0.02)  # inputs, one block
    # The last block: LN1's input and output, queries, keys and values; of the rest one token in 17.
    assert plain == pytest.approx(11 * 16 * row + 5 * row + 13 / 17 * row, rel=0.02)


def test_the_head_alone_keeps_nothing_of_the_blocks(facts: ModelFacts) -> None:
    row = 4 * IMAGES * 17 * 192
    assert make_cost(facts).memory(select("none")).kept == pytest.approx(2 / 17 * row, rel=0.01)
    assert make_cost(facts, train_head=False).memory(select("fc2@11")).kept < row / 2


@pytest.mark.parametrize(
    ("settings", "states"),
    [({}, 1), ({"momentum": 0.0}, 0), ({"optimizer": "adamw"}, 2), ({"optimizer": "adamw", "momentum": 0.0}, 2)],
)
def test_optimizer_state_is_of_the_trained_tensors(settings: dict[str, Any], states: int, facts: ModelFacts) -> None:
    cost = make_cost(facts, **settings)
    memory = cost.memory(select("fc1"))
    trained = sum(facts.parameters[f"{block}.fc1"] for block in range(12)) + facts.parameters["head"]
    assert cost.num_trained(select("fc1")) == trained
    assert (memory.gradients, memory.optimizer, memory.average) == (4 * trained, 4 * states * trained, 0)
    assert memory.weights == 8 * facts.num_parameters
    assert make_cost(facts, ema_decay=0.99).memory(select("fc1")).average == 4 * trained


def test_smaller_micro_batches_keep_less_and_hold_gradients_meanwhile(facts: ModelFacts) -> None:
    whole = make_cost(facts, batch_size=64).memory(select("all"))
    halves = make_cost(facts, batch_size=64, micro_batch_size=32).memory(select("all"))
    assert halves.kept == pytest.approx(whole.kept / 2)
    assert (whole.accumulates, halves.accumulates) == (False, True)
    assert halves.images == whole.images
    resident = halves.weights + halves.optimizer
    assert halves.peak == resident + halves.images + halves.kept + halves.transients + halves.gradients
    assert whole.peak == resident + whole.images + whole.kept + whole.transients


def test_validation_may_be_the_peak(facts: ModelFacts) -> None:
    small, large = (make_cost(facts, eval_batch_size=size).memory(select("none")) for size in (1, 4096))
    assert large.peak == large.weights + large.optimizer + large.evaluation > small.peak


def test_workers_share_the_batch_and_hold_buckets(facts: ModelFacts) -> None:
    one, two = (make_cost(facts, batch_size=64, num_workers=count).memory(select("mha")) for count in (1, 2))
    # make_cost's batch size is the global one where it is given
    assert two.kept == pytest.approx(one.kept / 2)
    assert two.gradients == 2 * one.gradients


@pytest.mark.parametrize(
    ("precision", "has_gpu", "size"),
    [("auto", False, 4), ("auto", True, 2), ("float32", True, 4), ("bfloat16", False, 2)],
)
def test_bytes_of_an_activation(precision: str, has_gpu: bool, size: int) -> None:
    assert activation_bytes(precision, has_gpu=has_gpu) == size


def test_facts_without_tokens_say_so_when_asked(facts: ModelFacts) -> None:
    cost = make_cost(replace(facts, num_tokens=0))
    assert cost.num_trained(select("none")) == facts.parameters["head"]
    for ask in (cost.flops_share, cost.memory):
        with pytest.raises(ModelError, match="deit_tiny_patch16_224 lack the number and width of its tokens"):
            ask(select("mha"))


# --- seconds ----------------------------------------------------------------------------------------------------------


def test_two_points_are_met_exactly() -> None:
    time = fit_step_time([(1e9, 0.3), (4e9, 0.9)])
    assert time == StepTime(pytest.approx(0.1), pytest.approx(5e9))
    assert time.seconds(2e9) == pytest.approx(0.5)


def test_three_points_by_relative_errors() -> None:
    """On a line they are met; off it none is missed by more than the worst of them lies off."""
    assert fit_step_time([(x, 0.2 + x / 1e9) for x in (1e8, 5e8, 9e9)]) == StepTime(
        pytest.approx(0.2), pytest.approx(1e9)
    )
    time = fit_step_time([(1e9, 1.1), (2e9, 1.9), (3e9, 3.1)])
    assert all(abs(time.seconds(x) / y - 1) < 0.1 for x, y in [(1e9, 1.1), (2e9, 1.9), (3e9, 3.1)])


@pytest.mark.parametrize(
    "points", [[(1e9, 0.5)], [(1e9, 0.4), (1e9, 0.6)], [(1e9, 0.6), (2e9, 0.5)], [(1e9, 0.1), (2e9, 0.9)]]
)
def test_no_sensible_line_goes_through_the_origin(points: list[tuple[float, float]]) -> None:
    time = fit_step_time(points)
    assert time.overhead_s == 0
    assert time.flops_per_s > 0
