"""The configuration: what can be set, in which unit, within which range, and what switches it off.

YAML and command line only fill these dataclasses: load.py is the door, checks.py sees to it that options do not
contradict each other.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

ACCELERATOR_LABEL = "ray.io/accelerator-type"  # which Ray gives the node of each card that it knows
# What a node's label may be.
AcceleratorKind = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
SweepName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Mode = Literal["reference", "in_situ", "local"]
# What else has been proposed to rank components by: platform/unfreeze/plasticity/scores.py
RivalScore = Literal[
    "gradient_norm",
    "sensitivity",
    "sensitivity_per_image",
    "forward_only",
    "fisher",
    "fisher_share",
    "parameters",
]

DataName = Literal[
    "digits",
    "folder",
    "cifar10",
    "cifar100",
    "cifar10c",
    "cifar100c",
    "domainnet",
    "flowers102",
    "pet",
    "dtd",
    "eurosat",
    "caltech101",
    "svhn",
    "food101",
    "stanford_cars",
]
Domain = Literal["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
# Hendrycks and Dietterich, ICLR 2019: 15 and 4 more.
Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
]
# conf/experiment/paper_<set>.yaml
PaperSet = Literal[
    "cifar10",
    "cifar100",
    "cifar10c_contrast",
    "cifar10c_gaussian_noise",
    "cifar10c_motion_blur",
    "cifar10c_snow",
    "cifar10c_speckle_noise",
    "domainnet_clipart",
    "domainnet_sketch",
    "flowers102",
    "pet",
]
RateGroup = Literal["ln1", "mha", "ln2", "fc1", "fc2", "embed", "head"]

T = TypeVar("T")
# A typo is an error, and so is a value of another type ("3" for 3): nothing is guessed.
# An empty text is an unset shell variable: as a path it would be the current folder.
_STRICT = ConfigDict(extra="forbid", strict=True, str_min_length=1)


def option(default: T, meaning: str) -> T:
    """A field that says what it means, in which unit, and what switches it off; `--help` prints it.

    A list or mapping is copied for each configuration.
    """
    metadata = {"help": meaning}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """Its name, its seed, and what it keeps."""

    __pydantic_config__ = _STRICT
    name: SweepName = option("sweep", "folder below `storage`")
    seed: NonNegativeInt = option(0, "every random number of the sweep derives from it")
    checkpoint_gib: NonNegativeFloat = option(0.0, "best checkpoints kept, the losers' deleted first; 0: all are kept")
    retry_failed: bool = option(False, "run failed trials again, until the test has been opened; false: once is enough")
    takeover: bool = option(
        False, "wait for the end of another driver's lease instead of refusing to start; one that is alive keeps it"
    )


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The pretrained Vision Transformer."""

    __pydantic_config__ = _STRICT
    name: str = option("unfreeze_tiny", "any timm Vision Transformer")
    weights: str | None = option(
        None,
        ".safetensors, .pth or JAX's .npz file, local or s3://; random: untrained ones; null: those timm knows for "
        "`name`",
    )
    resample_patches: bool = option(
        False, "weights of another patch size are resampled to the model's; false: they are refused"
    )
    image_size: Annotated[int, Field(ge=8)] | None = option(None, "side in px; null: the model's own")
    kwargs: dict[str, Any] = option(
        {},
        "handed to timm.create_model besides, such as {drop_path_rate: 0.1}, which drops nothing below the lowest "
        "trained block; other dropout differs with the number of workers and the micro-batch; {}: nothing",
    )
    normalization: Literal["model", "imagenet"] = option(
        "model", "of pixels: as pretrained, or ImageNet's mean and deviation"
    )
    layer_norm_eps: PositiveFloat | None = option(
        None, "of the layer norms; null: the model's own; the paper's have 1e-12"
    )


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The images: which, how they are split, augmented and decoded."""

    __pydantic_config__ = _STRICT
    name: DataName = option("digits", "the downstream set; data=NAME also sets what goes with it")
    path: str | None = option(
        None,
        "folder: the ImageFolder tree; cifar10c, cifar100c: the folder of .npy files; domainnet: the folder of "
        "domains; torchvision's sets: where to download; all local or s3://; null: torchvision/ below `cache_dir`",
    )
    train: str | None = option(
        None, "folder: its class folders hold the training images, whatever it is called; null: as found below `path`"
    )
    val: str | None = option(None, "folder: the same for validation; null: as found below `path`, or split off")
    test: str | None = option(None, "folder: the same for the test; null: as found below `path`, or split off")
    domain: Domain | None = option(None, "domainnet alone: which of its domains")
    corruption: Corruption | None = option(
        None,
        "cifar10c, cifar100c: which of their files; any other set: applied to its images by us, all but frost, which "
        "takes photographs of it. null: none",
    )
    severity: Annotated[int, Field(ge=1, le=5)] = option(5, "of the corruption")
    source_path: str | None = option(None, "any tree of source-domain images; null: rendered glyphs, for digits alone")
    val_share: OpenShare = option(0.2, "of the training pool, per class; unused where val/ exists")
    test_share: OpenShare = option(0.2, "per class; only for a tree without test/")
    split_seed: NonNegativeInt = option(0, "the split is the same for every trial and every sweep seed")
    max_train_images: Count | None = option(None, "a subset, chosen as `subset` says; null: all")
    max_val_images: Count | None = option(None, "a subset, chosen as `subset` says; null: all")
    subset: Literal["proportional", "balanced"] = option(
        "proportional",
        "of `max_train_images` and `max_val_images`: each class its share, one image at least; or all equally large",
    )
    augment: Literal["none", "crop_flip"] = option(
        "none", "of training images; crop_flip: random resized crop and horizontal flip"
    )
    num_views: NonNegativeInt = option(0, "augmented views per image, used in turn; 0: a new one each time")
    crop_share: Share = option(
        0.875, "evaluation: side of the centre crop in the square around the image; 1: all of it"
    )
    exif: Literal["ignore", "apply"] = option(
        "ignore", "orientation that a camera noted in the file; ignore: as torchvision does; apply: turned upright"
    )
    interpolation: Literal["bicubic", "bilinear"] = option(
        "bicubic", "of the evaluation view; random crops are bilinear"
    )
    loading: Literal["auto", "memory", "stream"] = option(
        "auto",
        "memory: decoded once to uint8 squares; stream: each image from its file each time, crops from the whole of "
        "it; auto: by `max_decoded_gib`",
    )
    max_decoded_gib: PositiveFloat = option(32.0, "loading=auto: larger sets stream")
    num_workers: Count = option(2, "processes per worker of a trial that decode a streamed set")
    max_bad_share: ShareBelowOne = option(0.01, "unreadable files above this share stop the sweep")
    max_duplicate_share: Share = option(
        0.1, "images that are also in another part or class, found by content: above this share an error; 1: off"
    )
    cache_dir: str = option("~/.cache/unfreeze", "node-local; decoded images, by content")
    cache_gib: PositiveFloat = option(
        100.0, "of decoded images below `cache_dir`, and of copies from S3; the longest unused are dropped first"
    )


@dataclass(kw_only=True, slots=True)
class PlasticityConfig:
    """The pre-pass: what is measured of each component, on how many pairs, how exactly."""

    __pydantic_config__ = _STRICT
    modes: Annotated[list[Mode], Field(min_length=1)] = option(
        ["reference", "in_situ"],
        "reference: every component on the embedding, as the paper's code does; in_situ: each on its own input inside "
        "the network; local: what in_situ tends to as the target image approaches the source image",
    )
    num_pairs: Annotated[int, Field(ge=2)] = option(512, "(source, target) image pairs at most")
    batch_size: Count = option(
        32, "source images per forward pass, and as many target images; a look is taken after each"
    )
    cross: Count = option(1, "images of either side in a group whose every source meets every target; 1: plain pairs")
    stop_early: bool = option(
        True, "stop once the order of the components is settled, or known as well as `relative_error` says"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = option(0.95, "of the order, and of each interval")
    min_observations: Annotated[int, Field(ge=2)] = option(32, "pairs (groups, with `cross`) before the first look")
    relative_error: ShareBelowOne = option(0.005, "standard error / mean of every component; 0: off")
    layer_norm_eps: PositiveFloat | None = option(
        None, "of the layer norms; null: the model's own; the paper's have 1e-12"
    )
    precision: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "of matrix products on a GPU; sums are float32"
    )
    bounds: bool = option(True, "theoretical upper bounds beside the observed rates")
    scores: list[RivalScore] = option([], "rival scores to compute besides; []: none")
    score_images: Count = option(64, "labelled training images for the rival scores, one of each class at least")
    num_actors: Count = option(1, "processes that share the pairs; each takes what a worker of a trial takes")
    seed: NonNegativeInt = option(0, "which images are paired")


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """How one trial trains and validates."""

    __pydantic_config__ = _STRICT
    optimizer: Literal["sgd", "adamw"] = option("sgd", "sgd with `momentum`, or adamw with its usual betas")
    momentum: ShareBelowOne = option(0.9, "of sgd; 0: off")
    weight_decay: NonNegativeFloat = option(0.0, "pull of the trained weights towards 0; 0: off")
    decay_norms: bool = option(
        False, "`weight_decay` on norms, biases, tokens and positions too; false: on matrices alone, as timm has it"
    )
    epochs: PositiveFloat = option(10.0, "passes over the training images; fractions allowed")
    steps: Count | None = option(None, "optimizer steps; null: as many as `epochs` takes")
    batch_size: Count = option(64, "images per optimizer step, over all workers")
    micro_batch_size: Count | None = option(None, "images per forward pass and worker; null: batch_size / workers")
    warmup_share: ShareBelowOne = option(0.1, "of the steps, linear from low to peak learning rate; 0: off")
    warmup_steps: NonNegativeInt | None = option(None, "instead of `warmup_share`; null: as many as that says")
    warmup_from_zero: bool = option(
        False, "the first step's rate is 0, as the paper's code has it; else peak / warmup steps"
    )
    clip_norm: NonNegativeFloat = option(1.0, "largest gradient norm; 0: off")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "of forward and backward pass; auto: bfloat16 where the GPU has it"
    )
    train_head: bool = option(
        True, "train final norm and classifier besides the selection; false: they stay as they are"
    )
    layer_decay: Share = option(
        1.0, "learning rate of a block / that of the block above it, the last norm as the last block; 1: off"
    )
    component_rates: dict[RateGroup, NonNegativeFloat] = option(
        {}, "× learning rate, by group of parameters; absent: 1"
    )
    label_smoothing: ShareBelowOne = option(0.0, "share of the target spread over all classes; 0: off")
    mixup_alpha: NonNegativeFloat = option(0.0, "of the Beta distribution, images blended in pairs; 0: off")
    cutmix_alpha: NonNegativeFloat = option(
        0.0, "of the Beta distribution, rectangles swapped in pairs; 0: off; with mixup either is drawn for each batch"
    )
    ema_decay: ShareBelowOne = option(
        0.0, "validate and keep the moving average of the weights, in checkpoints beside them; 0: off"
    )
    lora_alpha: PositiveFloat = option(16.0, "of selections such as mha:lora(8): updates are scaled by alpha / rank")
    activation_checkpointing: bool = option(False, "blocks keep their input alone and run again in the backward pass")
    compile: bool = option(False, "by torch.compile, once per selection; its seconds are in the trial's first report")
    prefix_cache_gib: NonNegativeFloat = option(
        0.0, "node-local disk for activations below the lowest trained block; 0: off"
    )
    shard: bool = option(False, "FSDP2: each worker holds a share of the weights; for models that do not fit")
    num_reports: Count = option(10, "validations per trial, evenly spaced; rungs of early stopping lie on them")
    eval_batch_size: Count = option(256, "images per forward pass and worker")


@dataclass(kw_only=True, slots=True)
class PriorConfig:
    """What the search believes before its first trial."""

    __pydantic_config__ = _STRICT
    score: Mode | RivalScore | Literal["uniform", "reversed"] = option(
        "reference",
        "whose worth the model learns, and what orders the components alone: plasticity of a mode, a rival score, "
        "uniform: no opinion, reversed: minus the reference plasticity",
    )


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    """Which selections at which learning rates, within which budget, and when a trial is stopped."""

    __pydantic_config__ = _STRICT
    space: Literal["components", "depth", "blocks", "listed", "grid"] = option(
        "components",
        "components: a switch per component; depth: per component and third of the blocks; blocks: per component and "
        "block; listed: what `selections` lists; grid: what `selections`, `learning_rates` and `seeds` list",
    )
    selections: list[str] = option(
        [],
        "listed: those that are searched; grid: every one at every rate with every seed, nothing sampled, stopped or "
        "confirmed",
    )
    learning_rates: list[PositiveFloat] = option([], "grid: tried for every selection")
    seeds: list[NonNegativeInt] = option([], "grid: one run of each pair of selection and learning rate per seed")
    select_on: Literal["val", "test"] = option(
        "val",
        "grid: what chooses a selection's learning rate; test: as the paper's code does, the seal broken for every "
        "trial",
    )
    num_trials: Count = option(32, "trials of the search; the confirmation runs come on top")
    concurrency: Count = option(
        4, "trials in flight; trial i knows the outcomes of 0 … i − concurrency, whatever the timing"
    )
    sampler: Literal["model", "tpe", "gp", "random"] = option(
        "model", "what proposes: the model of the evidence, or Optuna's TPE, Gaussian process or random sampler"
    )
    components_alone: bool = option(
        True,
        "every component alone is among the trials, as evidence on plasticity: from the middle of the search on with "
        "sampler=model, else before the sampler's own; false: off",
    )
    learning_rate_low: PositiveFloat = option(1e-3, "the lowest tried")
    learning_rate_high: PositiveFloat = option(1e-1, "the highest tried")
    extend_rates: bool = option(
        True,
        "sampler=model: where what does best lies near an end of the range, try up to half a decade further, a decade "
        "beyond the range at most; false: never outside",
    )
    start_learning_rates: list[PositiveFloat] = option(
        [],
        "of components alone and baselines, all at one before the next; []: as sampler=model asks, else three rates",
    )
    baselines: list[str] = option(["all", "none"], "selections tried after the components alone; []: none")
    max_trainable_share: Share = option(1.0, "of the model's parameters, head included; 1: off")
    max_flops_share: Share = option(1.0, "of what a training step of `all` computes; 1: off")
    max_memory_gib: PositiveFloat | None = option(None, "predicted peak of one worker; null: off")
    objective: Literal["accuracy", "pareto"] = option(
        "accuracy", "accuracy: on validation; pareto: accuracy against FLOPs of a training step"
    )
    early_stopping: bool = option(
        False,
        "a trial ends where its expected end, at its learning rate, is two standard deviations behind; false: off",
    )
    reduction_factor: Annotated[float, Field(ge=1.5, allow_inf_nan=False)] = option(
        3.0, "between rungs: each stands at this many times the reports of the one before"
    )
    grace_reports: Count = option(2, "the first rung: reports before a trial may be stopped")
    confirm_top: NonNegativeInt = option(3, "best selections run again, each at its best rate; 0: off")
    confirm_seeds: NonNegativeInt = option(
        2, "runs for each of them; sampler=model gives them to those that settle the choice; 0: off"
    )
    settle: PositiveFloat | None = option(
        None,
        "sampler=model: the search ends once choosing the best so far gives away less than this many points of "
        "accuracy on average; null: after num_trials",
    )
    learn_from: list[SweepName] = option(
        [],
        "sampler=model: earlier sweeps of the same storage and of a model of the same structure, whose worth of the "
        "prior's score and effects of whole components the search begins with, as sure as they are; []: none",
    )
    mirror: str | None = option(
        None, "a database that gets the sweep as an Optuna study, for optuna-dashboard: sqlite:///optuna.db; null: none"
    )
    prior: PriorConfig = field(default_factory=PriorConfig)

    def __post_init__(self) -> None:
        if self.mirror is not None and "://" not in self.mirror:
            raise ValueError(f"mirror must be a database's URL such as sqlite:///optuna.db, but got {self.mirror!r}")
        if self.learning_rate_low > self.learning_rate_high:
            raise ValueError(
                f"learning_rate_low must not exceed learning_rate_high, but got {self.learning_rate_low} and "
                f"{self.learning_rate_high}"
            )
        outside = [r for r in self.start_learning_rates if not self.learning_rate_low <= r <= self.learning_rate_high]
        if outside:
            raise ValueError(f"start_learning_rates must lie between learning_rate_low and _high, but got {outside}")


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where trials run, and what each takes."""

    __pydantic_config__ = _STRICT
    address: str | None = option(None, 'null: start Ray here; "auto" or host:port: join a running cluster')
    num_slots: Count | Literal["auto"] = option(
        "auto", "trials at a time; auto: as many as fit, more when nodes come and fewer when they go"
    )
    min_slots: Count = option(1, "with num_slots=auto: a sweep starts when there is room for so many")
    max_slots: Count | Literal["auto"] = option(
        "auto",
        "with num_slots=auto: so many at most, and one that waits for a node, for an autoscaler to see; auto: as many "
        "as fit, up to search.concurrency",
    )
    workers_per_trial: Count = option(1, "data-parallel workers of one slot")
    cpus_per_worker: PositiveFloat = option(1.0, "CPU cores that Ray sets aside for a worker")
    gpus_per_worker: NonNegativeFloat | Literal["auto"] = option(
        "auto", "fractions share a card; 0: CPU; auto: 1 where the cluster has any"
    )
    accelerators: list[AcceleratorKind] = option(
        [],
        "kinds of card that workers may have, as Ray labels nodes (A100, H100); workers_per_trial=1 may mix; []: any",
    )
    max_slot_failures: NonNegativeInt = option(
        3, "worker-group restarts before a slot that brought no report meanwhile is given up"
    )
    heartbeat_timeout_s: PositiveFloat = option(120.0, "a silent slot's trial goes to another slot after this long")
    start_timeout_s: PositiveFloat = option(600.0, "how long a sweep waits for a first worker, a slot for its own")

    def __post_init__(self) -> None:
        if self.num_slots != "auto" and (self.min_slots > 1 or self.max_slots != "auto"):
            raise ValueError(f"min_slots and max_slots go with num_slots=auto, but got num_slots={self.num_slots}")
        if self.max_slots != "auto" and self.max_slots < self.min_slots:
            raise ValueError(f"max_slots must be min_slots={self.min_slots} or more, but got {self.max_slots}")
        if self.workers_per_trial > 1 and len(self.accelerators) > 1:
            raise ValueError(
                f"accelerators must be one kind with workers_per_trial={self.workers_per_trial}, since a step takes as "
                f"long as the slowest card, but got {self.accelerators}"
            )
        if self.address is not None and self.address.startswith("ray://"):
            raise ValueError(
                f"address must be host:port of the head's GCS (6379) or auto; ray:// is Ray Client, which cannot run "
                f"a sweep, but got {self.address!r}"
            )

    @property
    def gpus(self) -> float:
        """`gpus_per_worker` as a number; 0 while nobody has looked at the cluster."""
        return 0.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @property
    def labels(self) -> dict[str, str]:
        """What a worker's node must be labelled, in the words of Ray's ``label_selector``; {}: nothing."""
        return {ACCELERATOR_LABEL: f"in({','.join(self.accelerators)})"} if self.accelerators else {}


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """MLflow, which mirrors the ledger."""

    __pydantic_config__ = _STRICT
    uri: str | None = option(
        "auto", "MLflow tracking server or database; auto: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db; null: off"
    )
    experiment: str = option(
        "auto",
        "MLflow's experiment that the sweep's runs go to; auto: MLFLOW_EXPERIMENT_NAME, or the one whose number is "
        "MLFLOW_EXPERIMENT_ID, or else unfreeze",
    )

    def __post_init__(self) -> None:
        if self.uri in (None, "auto"):
            return
        # The two that are no URL: Databricks sets the first by itself, SageMaker's plugin takes the other.
        is_server = self.uri == "databricks" or self.uri.startswith("arn:")
        if not is_server and (self.uri.startswith("file:") or "://" not in self.uri):
            raise ValueError(f"MLflow has closed its file store: use sqlite:///… or http://…, but got uri={self.uri!r}")
        if self.uri.rstrip("/") == "sqlite:" or self.uri.endswith(":memory:"):
            raise ValueError(
                f"a database in memory is gone with the sweep: use sqlite:///FILE, but got uri={self.uri!r}"
            )


@dataclass(kw_only=True, slots=True)
class TrialConfig:
    """The one trial that `sweeps/finetune.py` runs; a sweep does not look at it."""

    __pydantic_config__ = _STRICT
    selection: str = option("all", "what is trained: all, none, mha, mha@6-11+fc1, mha:lora(8), …")
    learning_rate: PositiveFloat = option(1e-2, "peak, after warmup")
    seed: NonNegativeInt = option(0, "order and augmentation of the images, weights of a new head, dropout")


@dataclass(kw_only=True, slots=True)
class ProbeConfig:
    """What `sweeps/probe.py` fits; a sweep does not look at it."""

    __pydantic_config__ = _STRICT
    at: list[str] = option(["head"], '"6.fc2", "fc2" (every block), "embed", "head", "all"')
    method: Literal["ridge", "logistic"] = option("ridge", "closed form, or L-BFGS")
    pool: Literal["token", "mean"] = option("token", "class token (its lack: mean), or the mean over tokens")


@dataclass(kw_only=True, slots=True)
class PaperConfig:
    """Where the paper's data lies (conf/experiment/paper.yaml), and which sets `sweeps/paper.py` runs."""

    __pydantic_config__ = _STRICT
    root: str = option("./datasets", "folder or s3://bucket/prefix")
    sets: Annotated[list[PaperSet], Field(min_length=1)] = option(
        list(get_args(PaperSet)), "run one after another, each a sweep of its own"
    )


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What `sweeps/report.py` tells, and how."""

    __pydantic_config__ = _STRICT
    sweeps: list[str] = option([], "told together, and pooled where they may be; []: `sweep.name` alone")
    format: Literal["text", "md", "json", "csv", "parquet"] = option(
        "text",
        "text: the report, and report.html; md, json: all of it for other pages and programs; csv, parquet: the trials "
        "that the statistics saw, a line each",
    )
    sync: bool = option(
        False, "bring the MLflow at `tracking.uri` up to the ledger, a new one too, and tell nothing; false: off"
    )
    every_s: NonNegativeFloat = option(
        0.0, "seconds from one writing of a running sweep's report.html to the next, until it has ended; 0: once"
    )


@dataclass(kw_only=True, slots=True)
class Config:
    """All of it; what belongs to no section stands in none."""

    __pydantic_config__ = _STRICT
    sweep: SweepConfig = field(default_factory=SweepConfig)
    storage: str = option("./runs", "folder or s3://bucket/prefix; the ledger's home")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    plasticity: PlasticityConfig = field(default_factory=PlasticityConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    paper: PaperConfig = field(default_factory=PaperConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    dry_run: bool = option(False, "print what would run and what it would cost, start nothing")


# What may differ between two runs of one sweep, since it changes no number: where it runs and who watches,
FREE_SECTIONS = ("cluster", "storage", "tracking", "trial", "probe", "paper", "report", "dry_run")
# how work is cut and what is kept of it, the same runs chosen from differently or begun again.
FREE_OPTIONS = {
    "sweep": ("checkpoint_gib", "retry_failed", "takeover"),
    "data": ("cache_dir", "cache_gib", "num_workers"),
    "plasticity": ("num_actors",),
    "finetune": ("micro_batch_size", "eval_batch_size", "prefix_cache_gib"),
    "search": ("select_on", "mirror"),
}


def config_to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as JSON-ready nested dicts."""
    return asdict(config)


def redact(text: str) -> str:
    """``http://user:password@host`` without the user and the password."""
    return re.sub(r"://[^/@\s]+@", "://…@", text)


def changed_keys(stored: Mapping[str, Any], current: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ, with both values."""
    lines: list[str] = []
    for key in sorted(stored.keys() | current.keys()):
        before, now, name = stored.get(key), current.get(key), f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            lines += changed_keys(before, now, prefix=f"{name}.")
        elif before != now:
            lines.append(f"{name}: stored {before!r}, now {now!r}")
    return lines
