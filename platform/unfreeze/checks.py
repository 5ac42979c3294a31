"""Options that are each right and contradict each other, within a section or between two."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import get_args

from unfreeze.config import Config, DataConfig, FinetuneConfig, RivalScore, SearchConfig

_DEFAULT = Config()
_READ_BY_A_GRID = ("space", "selections", "learning_rates", "seeds", "select_on", "concurrency", "prior", "mirror")
_LIMITS = ("max_trainable_share", "max_flops_share", "max_memory_gib", "objective")
# Of timm's, in embedding and blocks.
_DROPOUT = ("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate")
_DROP_RATES = ("drop_rate", "drop_path_rate", *_DROPOUT)
_ARRAYS = (
    "digits",
    "cifar10",
    "cifar100",
    "cifar10c",
    "cifar100c",
    "svhn",
    "caltech101",
)  # no image has a file of its own
Contradiction = tuple[tuple[str, ...], str]  # the sections it involves, and what to mend


def contradictions(config: Config, typed: Collection[str] | None = None) -> Iterator[Contradiction]:
    """What is wrong between options that are each right. ``typed``: as of `load_config`."""
    batch, workers = config.finetune.batch_size, config.cluster.workers_per_trial
    if batch % workers:
        yield (
            ("finetune", "cluster"),
            f"finetune.batch_size must be a multiple of cluster.workers_per_trial, but got {batch} and {workers}",
        )
    if config.plasticity.batch_size % config.plasticity.cross:
        yield (
            ("plasticity",),
            f"plasticity.batch_size must be a multiple of plasticity.cross, but got {config.plasticity.batch_size} and "
            f"{config.plasticity.cross}",
        )
    yield from _named(config, _unread(config))
    yield from _named(config, _set_aside(config), typed)
    yield from _data_contradictions(config.data)
    yield from _finetune_contradictions(config.finetune)
    yield from _lora_contradictions(config)
    yield from _shard_contradictions(config.finetune, config.cluster.workers_per_trial)
    yield from _mixing_contradictions(config.finetune, config.cluster.workers_per_trial)
    yield from _search_contradictions(config.search)
    if config.search.space == "grid" and config.sweep.checkpoint_gib:
        yield (
            ("search", "sweep"),
            f"a grid is judged when it is complete, so all its checkpoints are kept: sweep.checkpoint_gib must be 0, "
            f"but got {config.sweep.checkpoint_gib:g}",
        )
    if config.search.objective == "pareto" and config.sweep.checkpoint_gib:
        yield (
            ("search", "sweep"),
            f"sweep.checkpoint_gib keeps the most accurate trials, not the front of search.objective=pareto: set it to "
            f"0, but got {config.sweep.checkpoint_gib:g}",
        )
    if config.finetune.prefix_cache_gib and config.data.augment != "none" and not config.data.num_views:
        yield (
            ("finetune", "data"),
            f"finetune.prefix_cache_gib={config.finetune.prefix_cache_gib:g} needs images that come back: data.augment="
            f"none or data.num_views above 0, but got data.augment={config.data.augment} and data.num_views=0",
        )
    dropout = [name for name in _DROPOUT if config.model.kwargs.get(name)]
    if config.finetune.prefix_cache_gib and dropout:
        yield (
            ("finetune", "model"),
            f"finetune.prefix_cache_gib={config.finetune.prefix_cache_gib:g} keeps activations, which "
            f"{' and '.join(f'model.kwargs.{name}={config.model.kwargs[name]}' for name in dropout)} makes anew at "
            f"each step: leave out one or the other",
        )
    for name in _DROP_RATES:
        rate = config.model.kwargs.get(name, 0.0)
        if isinstance(rate, int | float) and not 0 <= rate < 1:
            yield ("model",), f"model.kwargs.{name} must be 0 or more and below 1, but got {rate:g}"
    ratio = config.model.kwargs.get("mlp_ratio", 4)
    if isinstance(ratio, int | float) and not ratio > 0:  # timm takes 0 for 1
        yield ("model",), f"model.kwargs.mlp_ratio must be above 0, but got {ratio:g}"
    if config.data.name != "digits" and config.data.source_path is None:
        yield (
            ("data",),
            f"data.source_path must name a tree of source-domain images for data={config.data.name}, which the "
            f"pre-pass pairs with the downstream ones, but got null",
        )


def _named(
    config: Config, unread: Mapping[str, tuple[bool, str]], typed: Collection[str] | None = None
) -> Iterator[Contradiction]:
    """``unread``: option → whether nothing reads it, as the others are, and the cure."""
    for option, (is_unread, cure) in unread.items():
        section, _, name = option.partition(".")
        value = getattr(getattr(config, section), name)
        is_set = value != getattr(getattr(_DEFAULT, section), name) and (typed is None or option in typed)
        if is_unread and is_set:
            others = ("search", "trial") if name in ("score_images", "lora_alpha") else ()
            yield (section, *others), f"{option}={value} is read by nothing: {cure}"


def _unread(config: Config) -> dict[str, tuple[bool, str]]:
    """What is an error whoever sets it."""
    data, plasticity, finetune, search = config.data, config.plasticity, config.finetune, config.search
    own_score = not plasticity.scores and search.prior.score not in get_args(RivalScore)
    selections = (*search.baselines, *search.selections, config.trial.selection)
    grid = search.space == "grid"
    limits = {f"search.{name}": (grid, "search=grid tries what it lists; leave it out") for name in _LIMITS}
    return limits | {
        "data.path": (data.name == "digits", "data=digits is embedded; did you mean data=folder?"),
        "data.train": (data.name != "folder", f"data={data.name} has parts of its own; did you mean data=folder?"),
        "data.val": (data.name != "folder", f"data={data.name} has parts of its own; did you mean data=folder?"),
        "data.test": (data.name != "folder", f"data={data.name} has parts of its own; did you mean data=folder?"),
        "data.severity": (data.corruption is None, "there is no corruption; set data.corruption"),
        "data.subset": (
            data.max_train_images is None and data.max_val_images is None,
            "all images are taken; set data.max_train_images or data.max_val_images",
        ),
        "data.max_decoded_gib": (data.loading != "auto", f"data.loading={data.loading} decides; set it to auto"),
        "model.resample_patches": (
            config.model.weights in (None, "random"),
            "it is for a file of weights; set model.weights",
        ),
        "data.num_workers": (data.loading == "memory", "images are held in memory; set data.loading to auto or stream"),
        "plasticity.min_observations": (
            not plasticity.stop_early,
            "nothing stops early; set plasticity.stop_early=true",
        ),
        "plasticity.relative_error": (not plasticity.stop_early, "nothing stops early; set plasticity.stop_early=true"),
        "plasticity.score_images": (own_score, "no rival score is computed; list some in plasticity.scores"),
        "finetune.momentum": (finetune.optimizer == "adamw", "adamw has betas instead; set finetune.optimizer=sgd"),
        "finetune.epochs": (
            finetune.steps is not None,
            f"finetune.steps={finetune.steps} decides; set that to null, or leave finetune.epochs out",
        ),
        "finetune.warmup_share": (
            finetune.warmup_steps is not None,
            f"finetune.warmup_steps={finetune.warmup_steps} decides; set that to null, or leave the share out",
        ),
        "finetune.lora_alpha": (
            not any(":lora(" in text for text in selections),
            "no selection has adapters, such as mha:lora(8)",
        ),
        "search.learn_from": (
            search.space == "grid" or search.sampler != "model" or search.objective != "accuracy",
            "it is the model's that searches: set search.sampler=model and search.objective=accuracy, no grid",
        ),
    }


def _set_aside(config: Config) -> dict[str, tuple[bool, str]]:
    """What is an error where it is typed; an experiment may set it for another set, or another way to search."""
    data, finetune, search = config.data, config.finetune, config.search
    arrays = data.name == "digits" and data.source_path is None
    by_model = search.sampler == "model" and search.objective == "accuracy"
    other = "search.sampler=model with search.objective=accuracy alone does; set those"
    aside = {
        "data.crop_share": (data.name == "digits", "data=digits is drawn at the model's size, and nothing is cropped"),
        "data.exif": (arrays, "data=digits has no files that a camera wrote"),
        "data.max_bad_share": (arrays, "data=digits has no files that may be unreadable"),
        "data.val_share": (
            data.val is not None or data.name in ("flowers102", "dtd"),
            "there are validation images already; leave it out",
        ),
        "data.test_share": (
            data.test is not None or data.name not in ("digits", "folder", "eurosat", "caltech101"),
            "there are test images already; leave it out",
        ),
        "finetune.warmup_from_zero": (
            not (finetune.warmup_share if finetune.warmup_steps is None else finetune.warmup_steps),
            "there is no warm-up; set finetune.warmup_share or finetune.warmup_steps",
        ),
        "search.extend_rates": (not by_model, f"{other}, or leave it out"),
        "search.settle": (not by_model, f"{other}, or leave it out"),
        "search.reduction_factor": (not search.early_stopping, "no trial is stopped; set search.early_stopping=true"),
        "search.grace_reports": (not search.early_stopping, "no trial is stopped; set search.early_stopping=true"),
        "search.confirm_seeds": (not search.confirm_top, "nothing is run again; set search.confirm_top"),
    }
    if search.space == "grid":
        options = (f"search.{each.name}" for each in fields(search) if each.name not in _READ_BY_A_GRID)
        said = _unread(config)
        aside |= {name: (True, "search=grid tries what it lists; leave it out") for name in options if name not in said}
    return aside


def _data_contradictions(data: DataConfig) -> Iterator[Contradiction]:
    places = {
        "folder": "an image folder",
        "cifar10c": "the folder of CIFAR-10-C's .npy files",
        "cifar100c": "the folder of CIFAR-100-C's .npy files",
        "domainnet": "the folder that holds DomainNet's domains",
    }
    if data.name in places and data.path is None and not (data.name == "folder" and data.train is not None):
        yield ("data",), f"data.path must name {places[data.name]} (local or s3://) for data={data.name}, but got null"
    if (data.name == "domainnet") != (data.domain is not None):
        yield ("data",), f"data.domain is for data=domainnet, which needs one, but got {data.domain!r} for {data.name}"
    if data.name in ("cifar10c", "cifar100c") and data.corruption is None:
        yield ("data",), f"data.corruption must name one of the corruptions for data={data.name}, but got null"
    if data.loading == "stream" and data.name in _ARRAYS:
        yield (
            ("data",),
            f"data.loading=stream decodes each image from a file of its own, which data={data.name} does not have; "
            f"leave data.loading=auto",
        )
    if data.num_views and data.augment == "none":
        yield ("data",), f"data.num_views are augmented views, but got {data.num_views} with data.augment=none"


def _finetune_contradictions(finetune: FinetuneConfig) -> Iterator[Contradiction]:
    if finetune.steps and finetune.warmup_steps and finetune.warmup_steps >= finetune.steps:
        yield (
            ("finetune",),
            f"finetune.warmup_steps must be below finetune.steps, but got {finetune.warmup_steps} and {finetune.steps}",
        )


def _shard_contradictions(finetune: FinetuneConfig, workers: int) -> Iterator[Contradiction]:
    if not finetune.shard:
        return
    if workers < 2:
        yield (
            ("finetune", "cluster"),
            f"finetune.shard=true spreads a model over workers, but got cluster.workers_per_trial={workers}",
        )
    unfit = [name for name in ("prefix_cache_gib", "compile", "ema_decay") if getattr(finetune, name)]
    if unfit:
        listing = ", ".join(f"finetune.{name}" for name in unfit)
        yield ("finetune",), f"finetune.shard=true works without {listing}: switch off one or the other"


def _lora_contradictions(config: Config) -> Iterator[Contradiction]:
    adapted = [text for text in (*config.search.baselines, *config.search.selections) if ":lora(" in text]
    if config.finetune.shard and adapted:
        yield (
            ("finetune", "search"),
            f"LoRA adapts whole layers, which finetune.shard=true spreads over workers: leave out {', '.join(adapted)} "
            f"or set finetune.shard=false",
        )


def _mixing_contradictions(finetune: FinetuneConfig, workers: int) -> Iterator[Contradiction]:
    if not (finetune.mixup_alpha or finetune.cutmix_alpha):
        return
    if finetune.batch_size % (2 * workers):
        yield (
            ("finetune", "cluster"),
            f"mixup and cutmix mix neighbours, so each worker needs an even share of finetune.batch_size, but got "
            f"{finetune.batch_size} images for {workers} workers",
        )
    if finetune.prefix_cache_gib:
        yield (
            ("finetune",),
            f"mixup and cutmix mix pixels, which a cache of activations does not hold: set "
            f"finetune.prefix_cache_gib=0, but got {finetune.prefix_cache_gib:g}",
        )


def _search_contradictions(search: SearchConfig) -> Iterator[Contradiction]:
    grid = {name: getattr(search, name) for name in ("selections", "learning_rates", "seeds")}
    if search.space == "grid":
        if search.mirror is not None:
            yield ("search",), "search.mirror shows a sampled search as a study, and search=grid samples nothing"
        for name, values in grid.items():
            if not values or len(set(values)) < len(values):
                yield ("search",), f"search.{name} must list each of the grid's once for search=grid, but got {values}"
        return
    if search.space == "listed" and not search.selections:
        yield ("search",), "search.selections must list what search=listed searches, but got none"
    others = [f"search.{name}" for name, values in grid.items() if values]
    if search.space == "listed":
        others = [name for name in others if name != "search.selections"]
    if others:
        yield ("search",), f"{', '.join(others)} are for search=grid, but got search.space={search.space}"
    if search.select_on == "test":
        yield (
            ("search",),
            f"search.select_on=test reproduces a grid's published choice and needs search=grid, but got search.space="
            f"{search.space}; anything else selects on validation",
        )
