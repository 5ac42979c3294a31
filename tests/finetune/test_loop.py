from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unfreeze.config import FinetuneConfig
from unfreeze.data.pixels.batches import batch_positions
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import Dataset
from unfreeze.finetune.checkpoint import Checkpoint, restore
from unfreeze.finetune.evaluate import evaluate
from unfreeze.finetune.loop import Diverged, Progress, finetune
from unfreeze.finetune.network import make_autocast
from unfreeze.finetune.schedule import report_steps, total_steps
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import init_classifier
from unfreeze.records import TrialReport, TrialSpec

MakeWarm = Callable[..., WarmModel]
MakeSpec = Callable[..., TrialSpec]
MakeConfig = Callable[..., FinetuneConfig]

DROPOUT = {"proj_drop_rate": 0.2, "attn_drop_rate": 0.1, "drop_path_rate": 0.2, "pos_drop_rate": 0.1}


@dataclass(frozen=True)
class RecordingPart(Part):
    taken: list[int] = field(default_factory=list)

    def take(self, positions: np.ndarray) -> np.ndarray:
        self.taken.extend(positions.tolist())
        return Part.take(self, positions)


def numbers(reports: tuple[TrialReport, ...]) -> list[tuple[float, ...]]:
    """Everything of the reports that is no time."""
    return [(r.images_seen, r.train_loss, r.val_loss, r.val_accuracy) for r in reports]


def weights(warm: WarmModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in warm.module.named_parameters()}


def run(
    warm: WarmModel,
    data: Dataset,
    spec: TrialSpec,
    config: FinetuneConfig,
    *,
    augment: str = "none",
    resume: Checkpoint | None = None,
) -> tuple[TrialReport, ...]:
    reports: tuple[TrialReport, ...] = resume.reports if resume else ()
    for progress in finetune(warm, data, spec, config, augment=augment, resume=resume):
        reports = progress.reports
    return reports


def assert_same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("selection", "augment", "train_head"),
    [("all", "crop_flip", True), ("mha@1+fc1", "none", True), ("ln2", "crop_flip", False)],
)
def test_interrupted_after_any_report_and_resumed_nothing_changes(
    optimizer: str,
    selection: str,
    augment: str,
    train_head: bool,
    data: Dataset,
    make_warm: MakeWarm,
    make_spec: MakeSpec,
    make_config: MakeConfig,
) -> None:
    spec = make_spec(selection, learning_rate=0.05 if optimizer == "sgd" else 0.003)
    config = make_config(
        optimizer=optimizer, weight_decay=0.01, decay_norms=True, train_head=train_head, micro_batch_size=3
    )
    warm = make_warm(**DROPOUT)
    saved, reports = [], ()
    for progress in finetune(warm, data, spec, config, augment=augment):
        saved.append(progress.checkpoint.to_bytes())
        reports = progress.reports
    final = weights(warm)
    assert len(reports) == 4

    other = make_warm(**DROPOUT)
    for done in range(1, 5):
        run(other, data, make_spec("fc2", seed=5), make_config(num_reports=1))  # the slot did something else meanwhile
        checkpoint = Checkpoint.from_bytes(saved[done - 1], base_digest=other.base.facts.digest)
        assert checkpoint.spec == spec
        checkpoint = replace(checkpoint, reports=reports[:done])
        resumed = run(other, data, spec, config, augment=augment, resume=checkpoint)
        assert resumed[:done] == reports[:done]
        assert numbers(resumed) == numbers(reports)
        assert_same_weights(weights(other), final)


def test_seconds_go_on_after_a_resume(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    first = next(finetune(make_warm(), data, make_spec(), make_config(), augment="none"))
    checkpoint = replace(first.checkpoint, reports=(replace(first.reports[0], seconds=1000.0),))
    resumed = run(make_warm(), data, make_spec(), make_config(), resume=checkpoint)
    seconds = [report.seconds for report in resumed]
    assert seconds == sorted(seconds)
    assert seconds[0] == 1000.0 < seconds[1]


def test_a_finished_checkpoint_has_nothing_left_to_run(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    progress = list(finetune(make_warm(), data, make_spec(), make_config(), augment="none"))[-1]
    assert progress.is_last
    assert (
        list(finetune(make_warm(), data, make_spec(), make_config(), augment="none", resume=progress.checkpoint)) == []
    )


# --- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "prefixes"),
    [
        ("mha", ["blocks.0.attn.", "blocks.1.attn."]),
        ("ln1@1+fc2@0", ["blocks.1.norm1.", "blocks.0.mlp.fc2."]),
        ("embed+ln2@0", ["cls_token", "pos_embed", "patch_embed.", "blocks.0.norm2."]),
        ("none", []),
        ("all", [""]),
    ],
)
def test_what_is_selected_and_the_head_change_and_nothing_else(
    selection: str,
    prefixes: list[str],
    data: Dataset,
    make_warm: MakeWarm,
    make_spec: MakeSpec,
    make_config: MakeConfig,
) -> None:
    warm = make_warm()
    spec = make_spec(selection)
    init_classifier(warm.module, warm.base.classifier, seed=spec.seed)
    before = weights(warm)
    run(warm, data, spec, make_config())
    changed = {name for name, value in weights(warm).items() if not torch.equal(value, before[name])}
    expected = {name for name in before if name.startswith(("norm.", "head.", *prefixes))}
    assert changed == expected


def test_an_untrained_head_keeps_its_fresh_classifier(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    warm = make_warm()
    spec = make_spec("fc1@0")
    init_classifier(warm.module, warm.base.classifier, seed=spec.seed)
    before = weights(warm)
    run(warm, data, spec, make_config(train_head=False))
    changed = {name for name, value in weights(warm).items() if not torch.equal(value, before[name])}
    assert changed == {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias"}


def test_it_learns(data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig) -> None:
    reports = run(make_warm(), data, make_spec("all", learning_rate=0.1), make_config(epochs=30.0))
    assert reports[-1].train_loss < 0.7 * reports[0].train_loss


# --- one trial knows nothing of another -------------------------------------------------------------------------------


@pytest.mark.parametrize("first_selection", ["all", "mha", "none"])
@pytest.mark.parametrize("ends", ["finished", "stopped", "diverged"])
def test_a_trial_does_not_depend_on_the_one_before(
    first_selection: str, ends: str, data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    second = make_spec("mha+ln2", seed=4)
    fresh, warm = make_warm(**DROPOUT), make_warm(**DROPOUT)
    expected = run(fresh, data, second, make_config())

    rate = 1e30 if ends == "diverged" else 0.1
    first = finetune(
        warm, data, make_spec(first_selection, learning_rate=rate), make_config(clip_norm=0.0), augment="crop_flip"
    )
    if ends == "stopped":
        next(first)
        first.close()
    elif ends == "finished":
        list(first)
    else:
        with pytest.raises(Diverged):
            list(first)
    assert numbers(run(warm, data, second, make_config())) == numbers(expected)
    assert_same_weights(weights(warm), weights(fresh))


def test_an_error_between_two_micro_batches_leaves_no_gradient_behind(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    """Out of memory in the second micro-batch: the slot lives on, and its next trial starts as on a fresh model."""
    expected = run(make_warm(), data, make_spec("mha", seed=4), make_config())
    warm, calls = make_warm(), []

    def run_out_of_memory(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    hook = warm.module.head.register_forward_hook(run_out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(warm, data, make_spec("all"), make_config(micro_batch_size=4))
    hook.remove()
    assert numbers(run(warm, data, make_spec("mha", seed=4), make_config())) == numbers(expected)


def test_prepare_restores_the_base_weights(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    warm, fresh = make_warm(), make_warm()
    run(warm, data, make_spec("all"), make_config())
    for model in (warm, fresh):
        model.prepare("fc1", seed=3, train_head=True)
    assert_same_weights(weights(warm), weights(fresh))
    trained = {name for name, value in warm.module.named_parameters() if value.requires_grad}
    assert trained == {n for n in weights(warm) if ".mlp.fc1." in n or n.startswith(("norm.", "head."))}


# --- common random numbers --------------------------------------------------------------------------------------------


def test_same_seed_same_numbers_whatever_the_index(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    results = [
        numbers(run(make_warm(**DROPOUT), data, make_spec(**settings), make_config(), augment="crop_flip"))
        for settings in ({"index": 0}, {"index": 17, "origin": "confirm"}, {"seed": 12})
    ]
    assert results[0] == results[1] != results[2]


def test_same_seed_same_images_whatever_the_selection(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    orders = []
    for selection, seed in (("mha", 1), ("all", 1), ("mha", 2)):
        train = RecordingPart(data.train.array, data.train.indices)
        run(make_warm(), replace(data, train=train), make_spec(selection, seed=seed), make_config())
        orders.append(train.taken)
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0][:45]) == list(range(45))  # each epoch sees every image once
    assert sorted(orders[0][45:90]) == list(range(45))


# --- the protocol -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 8, 100])
def test_gradient_accumulation_is_the_full_batch(
    micro_batch_size: int, data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    expected = run(make_warm(), data, make_spec("all"), make_config())
    reports = run(make_warm(), data, make_spec("all"), make_config(micro_batch_size=micro_batch_size))
    assert np.array(numbers(reports)) == pytest.approx(np.array(numbers(expected)), rel=2e-5)


def plain_finetune(
    warm: WarmModel, data: Dataset, spec: TrialSpec, config: FinetuneConfig, prefixes: tuple[str, ...], num_steps: int
) -> Iterator[tuple[float, float, float]]:
    """(training loss, validation loss, accuracy) after every step: the protocol as a tutorial would write it."""
    model = warm.module
    init_classifier(model, warm.base.classifier, seed=spec.seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(prefixes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            trained, lr=spec.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, weight_decay=config.weight_decay)
    warmup = round(config.warmup_share * num_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / warmup if step < warmup else 0.5 * (1 + np.cos(np.pi * (step - warmup) / (num_steps - warmup)))
        ),
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (warm.base.spec.mean, warm.base.spec.std))

    def load(part: Part, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(part.array.images[part.indices[positions]]).permute(0, 3, 1, 2).float() / 255
        return (images - mean) / std, torch.from_numpy(part.array.labels[part.indices[positions]])

    for step in range(num_steps):
        model.train()
        positions = batch_positions(len(data.train), step, batch_size=config.batch_size, seed=spec.seed)
        images, labels = load(data.train, positions)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            images, labels = load(data.val, np.arange(len(data.val)))
            logits = model(images)
            yield (
                loss.item(),
                F.cross_entropy(logits, labels).item(),
                (logits.argmax(1) == labels).float().mean().item(),
            )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("selection", "prefixes"),
    [("all", ("",)), ("mha", ("blocks.0.attn", "blocks.1.attn", "norm.", "head."))],
)
@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_parity_with_a_plain_loop(
    optimizer: str,
    selection: str,
    prefixes: tuple[str, ...],
    clip_norm: float,
    data: Dataset,
    make_warm: MakeWarm,
    make_spec: MakeSpec,
    make_config: MakeConfig,
) -> None:
    num_steps = 10
    spec = make_spec(selection, learning_rate=0.05 if optimizer == "sgd" else 0.002)
    config = make_config(
        optimizer=optimizer,
        epochs=num_steps * 8 / 45,
        num_reports=num_steps,
        weight_decay=0.01,
        decay_norms=True,
        warmup_share=0.2,
        clip_norm=clip_norm,
    )
    ours = [(train, loss, accuracy) for _, train, loss, accuracy in numbers(run(make_warm(), data, spec, config))]
    plain = list(plain_finetune(make_warm(), data, spec, config, prefixes, num_steps))
    assert np.array(ours) == pytest.approx(np.array(plain), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("num_reports", [1, 5, 12, 100])
def test_reports_come_when_the_schedule_says(
    num_reports: int, data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    config = make_config(num_reports=num_reports)
    progress: list[Progress] = list(finetune(make_warm(), data, make_spec(), config, augment="none"))
    num_steps = total_steps(45, epochs=config.epochs, batch_size=8)
    assert num_steps == 12
    assert [p.reports[-1].images_seen for p in progress] == [8 * s for s in report_steps(num_steps, num_reports)]
    assert [p.is_last for p in progress] == [False] * (len(progress) - 1) + [True]
    assert [len(p.reports) for p in progress] == list(range(1, len(progress) + 1))
    accuracies = [p.reports[-1].val_accuracy for p in progress]
    assert [p.is_best for p in progress] == [a > max(accuracies[:k], default=-1) for k, a in enumerate(accuracies)]
    seconds = [p.reports[-1].seconds for p in progress]
    assert seconds == sorted(seconds)


def test_the_training_loss_covers_the_images_since_the_last_report(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    each = run(make_warm(), data, make_spec(), make_config(num_reports=12))
    quarters = run(make_warm(), data, make_spec(), make_config(num_reports=4))
    means = [np.mean([report.train_loss for report in each[k : k + 3]]) for k in range(0, 12, 3)]
    assert [report.train_loss for report in quarters] == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_divergence_is_an_error_and_the_reports_so_far_stand(
    clip_norm: float, data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    config = make_config(optimizer="sgd", clip_norm=clip_norm, num_reports=12, epochs=60 * 8 / 45, warmup_share=0.9)
    rate = 1e6 if clip_norm == 0 else 1e38  # clipped gradients need a larger rate to overflow
    kept: list[TrialReport] = []
    loop = finetune(make_warm(), data, make_spec("all", learning_rate=rate), config, augment="none")
    with pytest.raises(Diverged, match="loss became"):
        kept.extend(progress.reports[-1] for progress in loop)
    assert len(kept) < 12
    assert all(np.isfinite((report.train_loss, report.val_loss)).all() for report in kept)


def test_bfloat16_stays_close_to_float32(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    expected = run(make_warm(), data, make_spec(), make_config())
    reports = run(make_warm(), data, make_spec(), make_config(precision="bfloat16"))
    assert [r.train_loss for r in reports] == pytest.approx([r.train_loss for r in expected], rel=0.02)
    assert [r.train_loss for r in reports] != [r.train_loss for r in expected]


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        {"ema_decay": 0.9},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1},
        {"layer_decay": 0.7, "component_rates": {"head": 3.0, "fc1": 0.0}, "optimizer": "adamw"},
        {"activation_checkpointing": True},
    ],
)
def test_a_recipe_goes_on_after_an_interruption_as_if_there_had_been_none(
    recipe: dict[str, object], data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    spec, config = make_spec("mha+fc1", learning_rate=0.02), make_config(**recipe)
    warm = make_warm(**DROPOUT)
    saved, reports = [], ()
    for progress in finetune(warm, data, spec, config, augment="crop_flip"):
        saved.append(progress.checkpoint.to_bytes())
        reports = progress.reports
    final = weights(warm)
    other = make_warm(**DROPOUT)
    for done in (1, 3):
        checkpoint = Checkpoint.from_bytes(saved[done - 1], base_digest=other.base.facts.digest)
        checkpoint = replace(checkpoint, reports=reports[:done])
        resumed = run(other, data, spec, config, augment="crop_flip", resume=checkpoint)
        assert numbers(resumed) == numbers(reports)
        assert_same_weights(weights(other), final)
    plain = run(make_warm(**DROPOUT), data, spec, make_config(), augment="crop_flip")
    same = numbers(plain) == numbers(reports)
    assert same == ("activation_checkpointing" in recipe)  # it changes what is kept, not what is computed


def test_a_component_of_rate_zero_stays_as_it_was(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    warm = make_warm()
    before = weights(warm)
    run(warm, data, make_spec("mha+fc1"), make_config(component_rates={"fc1": 0.0}))
    changed = {name for name, value in weights(warm).items() if not torch.equal(value, before[name])}
    assert any(".attn." in name for name in changed)
    assert not any(".fc1." in name for name in changed)


def test_the_average_is_what_is_validated_and_kept(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    warm = make_warm()
    progress = list(finetune(warm, data, make_spec("mha"), make_config(ema_decay=0.9), augment="none"))[-1]
    kept = progress.checkpoint.for_evaluation()
    assert kept.optimizer == kept.ema == {}
    raw = weights(warm)
    assert not torch.equal(kept.parameters["head.weight"], raw["head.weight"])
    fresh = make_warm()
    fresh.prepare("mha", seed=11, train_head=True)
    restore(kept, fresh.module, None, [])
    result = evaluate(
        fresh.module,
        data.val,
        fresh.base.spec,
        batch_size=6,
        autocast=make_autocast("float32", torch.device("cpu")),
        device=torch.device("cpu"),
    )
    assert result.loss == pytest.approx(progress.reports[-1].val_loss, rel=1e-5)
    assert result.accuracy == progress.reports[-1].val_accuracy


@pytest.mark.parametrize("selection", ["all", "ln1@1", "none"])
def test_compiled_it_reports_the_same(
    selection: str,
    data: Dataset,
    make_warm: MakeWarm,
    make_spec: MakeSpec,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced and differentiated ahead of time as inductor would have it, without the minute that inductor takes."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: whole(network, backend="aot_eager"))
    expected = run(make_warm(), data, make_spec(selection), make_config())
    reports = run(make_warm(), data, make_spec(selection), make_config(compile=True))
    for ours, theirs in zip(reports, expected, strict=True):
        assert ours.val_accuracy == theirs.val_accuracy
        assert (ours.train_loss, ours.val_loss) == pytest.approx((theirs.train_loss, theirs.val_loss), rel=1e-5)


def test_steps_given_outright_are_taken_whatever_the_epochs(
    data: Dataset, make_warm: MakeWarm, make_spec: MakeSpec, make_config: MakeConfig
) -> None:
    config = make_config(steps=7, num_reports=7, warmup_steps=3, warmup_from_zero=True)
    warm = make_warm()
    _, before = warm.prepare("mha", seed=11, train_head=True), weights(warm)
    reports: list[TrialReport] = []
    for progress in finetune(warm, data, make_spec("mha"), config, augment="none"):
        if not reports:  # the first step's rate is 0
            assert_same_weights(weights(warm), before)
        reports.append(progress.reports[-1])
    assert [report.images_seen for report in reports] == [8 * step for step in range(1, 8)]
