"""What a sweep would run and what that would cost, without starting it: for dry_run=true.

Nothing is downloaded, decoded or trained: sizes of known data sets are a table, folders are counted.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from unfreeze.components.selection import Selection, check_lora, parse_selection
from unfreeze.config import Config, DataConfig, ModelConfig
from unfreeze.cost.model import cost_model
from unfreeze.data.pixels.files import list_files, split_off_images
from unfreeze.data.sets.layout import find_folders
from unfreeze.errors import DataError
from unfreeze.finetune.schedule import num_steps_of, report_steps
from unfreeze.records import COMPONENTS, ModelFacts
from unfreeze.report.caution import cautions
from unfreeze.report.terminal import make_console, make_table, print_lines, text_of
from unfreeze.search.grid import GridPlanner
from unfreeze.storage.base import open_storage

# FLOP/s that one GPU is assumed to sustain: 60 % of the 67 TFLOP/s that an H100 has without tensor cores, and 40 % of
# its 989 TFLOP/s of dense bfloat16 (NVIDIA's data sheet, SXM). Not measured.
_ASSUMED_RATE = {"float32": 40e12, "bfloat16": 400e12}

# (training pool, own validation part, own test part) in images; None: split off the pool. From torchvision's and the
# sets' own pages; DomainNet's are the lists of its cleaned version. What is on disk counts where it can be counted.
_KNOWN: dict[str, tuple[int, int | None, int | None]] = {
    "digits": (1_797, None, None),
    "cifar10": (50_000, None, 10_000),
    "cifar100": (50_000, None, 10_000),
    "cifar10c": (8_000, None, 2_000),  # one severity has 10,000; the paper's split takes a fifth for the test
    "cifar100c": (8_000, None, 2_000),
    "flowers102": (1_020, 1_020, 6_149),
    "pet": (3_680, None, 3_669),
    "dtd": (1_880, 1_880, 1_880),
    "eurosat": (27_000, None, None),
    "caltech101": (8_677, None, None),
    "svhn": (73_257, None, 26_032),
    "food101": (75_750, None, 25_250),
    "stanford_cars": (8_144, None, 8_041),
}
_DOMAINS = {
    "clipart": 48_129,
    "infograph": 51_605,
    "painting": 72_266,
    "quickdraw": 172_500,
    "real": 172_947,
    "sketch": 69_128,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSizes:
    """Images of each part; to a few, since splits round within each class."""

    train: int
    val: int
    test: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """A sweep in numbers."""

    sweep: str
    num_runs: int  # at most, where it is a search
    steps: int  # of the optimizer, each run
    images_per_run: int  # training images seen
    val_images_per_run: int  # validation images seen, over all reports
    sizes: PartSizes
    flops: float  # training, validation and, where the test chooses, the test of every run
    precision: str
    cautions: tuple[str, ...]  # what it is too small to tell

    @property
    def images(self) -> int:
        return self.num_runs * self.images_per_run

    @property
    def gpu_hours(self) -> float:
        return self.flops / _ASSUMED_RATE[self.precision] / 3600


def plan_sweep(config: Config) -> SweepPlan:
    """What ``config`` would run.

    A grid's runs are priced one by one; those of a search, which nobody knows yet, as if each trained everything.

    Raises:
        UnfreezeError: an unknown model, a wrong selection, a folder that is not there.
    """
    finetune = config.finetune
    model = _model_facts(config.model)
    sizes = part_sizes(config.data)
    steps = num_steps_of(finetune, sizes.train)
    val_images = len(report_steps(steps, finetune.num_reports)) * sizes.val
    test_images = sizes.test if config.search.select_on == "test" else 0
    selections = _selections(config, model)
    cost = cost_model(config, model)
    training = steps * finetune.batch_size * sum(cost.flops(selection).total for selection in selections)
    evaluation = len(selections) * (cost.validation_flops(val_images + test_images) * cost.num_workers)
    return SweepPlan(
        sweep=config.sweep.name,
        num_runs=len(selections),
        steps=steps,
        images_per_run=steps * finetune.batch_size,
        val_images_per_run=val_images,
        sizes=sizes,
        flops=training + evaluation,
        precision="float32" if finetune.precision == "float32" else "bfloat16",
        cautions=tuple(cautions(config, num_train=sizes.train, num_val=sizes.val)),
    )


def terminal_plan(plans: Sequence[SweepPlan]) -> str:
    """The plans as a table with their sum, and what the GPU-hours assume."""
    headings = ("sweep", "runs", "steps", "images", "all images", "val. images", "EFLOP", "GPU-hours")
    rows = [
        (
            plan.sweep,
            f"{plan.num_runs:,}",
            f"{plan.steps:,}",
            _millions(plan.images_per_run),
            _millions(plan.images),
            _millions(plan.num_runs * plan.val_images_per_run),
            f"{plan.flops / 1e18:,.3g}",
            f"{plan.gpu_hours:,.3g}",
        )
        for plan in plans
    ]
    if len(plans) > 1:
        total = (
            f"{sum(plan.num_runs for plan in plans):,}",
            *("", ""),
            _millions(sum(plan.images for plan in plans)),
            _millions(sum(plan.num_runs * plan.val_images_per_run for plan in plans)),
            f"{sum(plan.flops for plan in plans) / 1e18:,.4g}",
            f"{sum(plan.gpu_hours for plan in plans):,.4g}",
        )
        rows.append(("total", *total))
    console = make_console()
    console.print(make_table("Plan; nothing was started", headings, rows))
    rates = {plan.precision: f"{_ASSUMED_RATE[plan.precision] / 1e12:g} TFLOP/s in {plan.precision}" for plan in plans}
    lines = [
        *(f"caution, {plan.sweep}: {line}" for plan in plans for line in plan.cautions),
        *(
            f"{plan.sweep}: about {plan.sizes.train:,} images for training, {plan.sizes.val:,} for validation, "
            f"{plan.sizes.test:,} for the test"
            for plan in plans
        ),
        "Steps and images are of one run. FLOPs are of training and evaluation, without pre-pass, decoding, start-up.",
        f"GPU-hours assume that a GPU sustains {' and '.join(rates.values())}, as an H100 might; not measured.",
    ]
    print_lines(console, lines)
    return text_of(console)


def _millions(count: int) -> str:
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:,.4g} M"


def part_sizes(config: DataConfig) -> PartSizes:
    """How many images train, validate and test, without reading any of them.

    Raises:
        DataError: the folder is not there.
    """
    pool, val, test = _own_parts(config)
    if test is None:
        test = round(config.test_share * pool)
        pool -= test
    if val is None:
        val = round(config.val_share * pool)
        pool -= val
    train_limit, val_limit = config.max_train_images or pool, config.max_val_images or val
    return PartSizes(train=min(pool, train_limit), val=min(val, val_limit), test=test)


def _own_parts(config: DataConfig) -> tuple[int, int | None, int | None]:
    """The set's own training pool, validation and test part, as in `_KNOWN`."""
    if config.name in _KNOWN:
        return _KNOWN[config.name]
    if config.name == "domainnet":
        assert config.path is not None
        assert config.domain is not None
        count = len(_file_names(f"{config.path}/{config.domain}")) or _DOMAINS[config.domain]
        test = count - int(0.8 * count)  # the paper's split of each domain
        return count - test, None, test

    def look(tree: str) -> tuple[list[str], list[str]]:
        images, _ = split_off_images(_file_names(tree))
        if not images:
            raise DataError(f"no images to count in {tree!r}; check data.path")
        return images, []

    counts = {part: len(folder.files) for part, folder in find_folders(config, look).items()}
    return counts["train"], counts.get("val"), counts.get("test")


def _file_names(location: str) -> list[str]:
    """Relative paths of the files at ``location``, local or ``s3://``; empty where there is nothing."""
    if location.startswith("s3://"):
        return [key for key in open_storage(location).keys("") if not key.endswith("/")]
    return list_files(Path(location))


def _selections(config: Config, model: ModelFacts) -> list[Selection]:
    """Of every run: a grid's own, checked as the sweep checks them; of a search as many times everything."""
    search = config.search
    if search.space != "grid":
        for text in (*search.baselines, *search.selections):
            check_lora(parse_selection(text, num_blocks=model.num_blocks), width=model.width)
        most = search.num_trials + search.confirm_top * search.confirm_seeds
        return [parse_selection("all", num_blocks=model.num_blocks)] * most
    unranked = dict.fromkeys(COMPONENTS, 0.0)
    planner = GridPlanner(search, model, scores=unranked, train_head=config.finetune.train_head)
    specs = [planner.plan(index, {}, {}) for index in range(planner.max_trials)]
    return [parse_selection(spec.selection, num_blocks=model.num_blocks) for spec in specs if spec is not None]


def _model_facts(config: ModelConfig) -> ModelFacts:
    """Of the architecture alone, so that no weights are downloaded; the classifier of one class weighs nothing."""
    return _build(json.dumps(asdict(replace(config, weights="random")), sort_keys=True))


@cache
def _build(settings: str) -> ModelFacts:
    """Once for all sets of the paper: ViT-B takes seconds."""
    from unfreeze.models.build import build_model  # and so do torch and timm

    return build_model(ModelConfig(**json.loads(settings)), num_classes=1, cache_dir=Path()).facts
