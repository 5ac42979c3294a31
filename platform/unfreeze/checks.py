"""Options that are each right and contradict each other, within a section or between two."""

from collections.abc import Iterator

from unfreeze.config import Config, DataConfig, FinetuneConfig, SearchConfig

Contradiction = tuple[tuple[str, ...], str]  # the sections it involves, and what to mend


def contradictions(config: Config) -> Iterator[Contradiction]:
    """What is wrong between options that are each right."""
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
    if config.data.name != "digits" and config.data.source_path is None:
        yield (
            ("data",),
            f"data.source_path must name a tree of source-domain images for data={config.data.name}, which the "
            f"pre-pass pairs with the downstream ones, but got null",
        )


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
        for name, values in grid.items():
            if not values or len(set(values)) < len(values):
                yield ("search",), f"search.{name} must list each of the grid's once for search=grid, but got {values}"
    elif any(grid.values()):
        given = ", ".join(f"search.{name}" for name, values in grid.items() if values)
        yield ("search",), f"{given} are for search=grid, but got search.space={search.space}"
    if search.select_on == "test" and search.space != "grid":
        yield (
            ("search",),
            f"search.select_on=test reproduces a grid's published choice and needs search=grid, but got search.space="
            f"{search.space}; anything else selects on validation",
        )
