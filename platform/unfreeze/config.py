"""The configuration: what can be set, in which unit, within which range, and what switches it off.

YAML and command line only fill these dataclasses: load.py is the door, checks.py sees to it that options do not
contradict each other.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Mode = Literal["reference", "in_situ", "local"]
# What else has been proposed to rank components by: platform/unfreeze/plasticity/scores.py
RivalScore = Literal["gradient_norm", "sensitivity", "forward_only", "fisher", "parameters"]

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

# A typo is an error, and so is a value of another type ("3" for 3): nothing is guessed.
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    __pydantic_config__ = _STRICT
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "sweep"  # folder below `storage`
    seed: Annotated[int, Field(ge=0)] = 0  # every random number of the sweep derives from it
    checkpoint_gib: NonNegativeFloat = 0.0  # best checkpoints kept, the losers' deleted first; 0: all are kept


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    __pydantic_config__ = _STRICT
    name: str = "unfreeze_tiny"  # any timm Vision Transformer
    weights: str | None = None  # .safetensors or .pth file, local or s3://; null: the weights timm knows for `name`
    image_size: Annotated[int, Field(ge=8)] | None = None  # px; null: the model's own
    kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model
    normalization: Literal["model", "imagenet"] = "model"  # of pixels: as pretrained, or ImageNet's mean and deviation
    layer_norm_eps: PositiveFloat | None = None  # null: the model's own; the paper's models have 1e-12


@dataclass(kw_only=True, slots=True)
class DataConfig:
    __pydantic_config__ = _STRICT
    name: DataName = "digits"
    # folder: the ImageFolder tree; cifar10c, cifar100c: the folder of .npy files; domainnet: the folder of domains; all
    # local or s3://. torchvision's sets: where to download.
    path: str | None = None
    domain: Domain | None = None  # domainnet alone
    # cifar10c, cifar100c: which of their files; any other set: applied to its images by us. null: none
    corruption: Corruption | None = None
    severity: Annotated[int, Field(ge=1, le=5)] = 5  # of the corruption
    source_path: str | None = None  # any tree of source-domain images; null: rendered glyphs
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the training pool, per class; unused where val/ exists
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # per class; only for a tree without test/
    split_seed: Annotated[int, Field(ge=0)] = 0  # the split is the same for every trial and every sweep seed
    max_train_images: Count | None = None  # stratified subset; null: all
    max_val_images: Count | None = None  # stratified subset; null: all
    augment: Literal["none", "crop_flip"] = "none"  # crop_flip: random resized crop and horizontal flip
    num_views: Annotated[int, Field(ge=0)] = 0  # augmented views per image, used in turn; 0: a new one each time
    crop_share: Share = 0.875  # evaluation: side of the centre crop in the square around the image; 1: all of it
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # of the evaluation view; random crops are bilinear
    # memory: decoded once to uint8 squares; stream: each image from its file each time, crops from the whole of it
    loading: Literal["auto", "memory", "stream"] = "auto"
    max_decoded_gib: PositiveFloat = 32.0  # auto: larger sets stream
    num_workers: Count = 2  # processes per worker of a trial that decode a streamed set
    max_bad_share: Annotated[float, Field(ge=0, lt=1)] = 0.01  # unreadable files above this share stop the sweep
    cache_dir: str = "~/.cache/unfreeze"  # node-local; decoded images, by content


@dataclass(kw_only=True, slots=True)
class PlasticityConfig:
    __pydantic_config__ = _STRICT
    modes: Annotated[list[Mode], Field(min_length=1)] = field(default_factory=lambda: ["reference", "in_situ"])
    num_pairs: Annotated[int, Field(ge=2)] = 512  # (source, target) image pairs at most
    batch_size: Count = 32  # source images per forward pass, and as many target images; a look is taken after each
    cross: Count = 1  # images of either side in a group whose every source meets every target; 1: plain pairs
    stop_early: bool = True  # once the order of the components is settled, or known as well as `relative_error` says
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95  # of the order, and of each interval
    min_observations: Annotated[int, Field(ge=2)] = 32  # pairs (groups, with `cross`) before the first look
    relative_error: Annotated[float, Field(ge=0, lt=1)] = 0.005  # standard error / mean of every component; 0: off
    layer_norm_eps: PositiveFloat | None = None  # null: the model's own; the paper's models have 1e-12
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of matrix products on a GPU; sums are float32
    bounds: bool = True  # theoretical upper bounds beside the observed rates
    scores: list[RivalScore] = field(default_factory=list)  # rival scores to compute besides
    score_images: Count = 64  # labelled training images for the rival scores, one of each class at least
    num_actors: Count = 1  # share the pairs; each takes what a worker of a trial takes
    seed: Annotated[int, Field(ge=0)] = 0  # which images are paired


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    __pydantic_config__ = _STRICT
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd
    weight_decay: NonNegativeFloat = 0.0  # 0: off
    epochs: PositiveFloat = 10.0  # passes over the training images; fractions allowed
    steps: Count | None = None  # optimizer steps; null: as many as `epochs` takes
    batch_size: Count = 64  # images per optimizer step, over all workers
    micro_batch_size: Count | None = None  # images per forward pass and worker; null: batch_size / workers
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of the steps, linear; 0: off
    warmup_steps: Annotated[int, Field(ge=0)] | None = None  # null: as many as `warmup_share` says
    warmup_from_zero: bool = False  # the first step's rate is 0, as the paper's code has it; else peak / warmup steps
    clip_norm: NonNegativeFloat = 1.0  # gradient norm; 0: off
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the GPU has it
    train_head: bool = True  # final norm and classifier
    layer_decay: Share = 1.0  # learning rate of a block / that of the block above it; 1: off
    component_rates: dict[RateGroup, NonNegativeFloat] = field(default_factory=dict)  # × learning rate; absent: 1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: off
    mixup_alpha: NonNegativeFloat = 0.0  # of the Beta distribution; 0: off
    cutmix_alpha: NonNegativeFloat = 0.0  # 0: off; with mixup either is drawn for each batch
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # validate and keep the moving average of the weights; 0: off
    lora_alpha: PositiveFloat = 16.0  # of selections such as mha:lora(8): updates are scaled by alpha / rank
    activation_checkpointing: bool = False  # blocks keep their input alone and run again in the backward pass
    compile: bool = False  # torch.compile, once per selection; its seconds are in the trial's first report
    prefix_cache_gib: NonNegativeFloat = 0.0  # node-local disk for activations below the lowest trained block; 0: off
    shard: bool = False  # FSDP2: each worker holds a share of the weights; for models that do not fit
    num_reports: Count = 10  # validations per trial, evenly spaced; rungs of early stopping lie on them
    eval_batch_size: Count = 256  # images per forward pass and worker


@dataclass(kw_only=True, slots=True)
class PriorConfig:
    __pydantic_config__ = _STRICT
    score: Mode | RivalScore | Literal["uniform", "reversed"] = "reference"  # orders the first points


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    __pydantic_config__ = _STRICT
    space: Literal["components", "depth", "blocks", "grid"] = "components"
    # grid: every selection at every rate with every seed, nothing sampled, stopped or confirmed
    selections: list[str] = field(default_factory=list)
    learning_rates: list[PositiveFloat] = field(default_factory=list)
    seeds: list[Annotated[int, Field(ge=0)]] = field(default_factory=list)
    # grid: what chooses a selection's learning rate; test: as the paper's code does, the seal broken for every trial
    select_on: Literal["val", "test"] = "val"
    num_trials: Count = 32  # trials of the search; the confirmation runs come on top
    concurrency: Count = 4  # trials in flight; trial i knows the outcomes of 0 … i − concurrency, whatever the timing
    learning_rate_low: PositiveFloat = 1e-3
    learning_rate_high: PositiveFloat = 1e-1
    start_learning_rates: list[PositiveFloat] = field(default_factory=list)  # of the first points; []: geometric mean
    baselines: list[str] = field(default_factory=lambda: ["all", "none"])  # selections tried after the single ones
    max_trainable_share: Share = 1.0  # of the model's parameters, head included; 1: off
    max_flops_share: Share = 1.0  # of what a training step of `all` computes; 1: off
    max_memory_gib: PositiveFloat | None = None  # predicted peak of one worker; null: off
    objective: Literal["accuracy", "pareto"] = "accuracy"  # pareto: accuracy against FLOPs of a training step
    early_stopping: bool = True  # asynchronous successive halving on images_seen
    reduction_factor: Annotated[float, Field(ge=1.5, allow_inf_nan=False)] = 3.0  # 1/this pass each rung
    grace_reports: Count = 2  # the first rung: reports before a trial may be stopped
    confirm_top: Annotated[int, Field(ge=0)] = 3  # best (selection, learning rate) run again on more seeds; 0: off
    confirm_seeds: Annotated[int, Field(ge=0)] = 2  # additional seeds each
    prior: PriorConfig = field(default_factory=PriorConfig)

    def __post_init__(self) -> None:
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
    __pydantic_config__ = _STRICT
    address: str | None = None  # null: start Ray here; "auto" or host:port: join a running cluster
    num_slots: Count | Literal["auto"] = "auto"  # auto: as many as fit, up to search.concurrency
    workers_per_trial: Count = 1  # data-parallel workers of one slot
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0  # fractions share a card; 0: CPU
    max_slot_failures: Annotated[int, Field(ge=0)] = 3  # worker-group restarts before a slot is given up
    heartbeat_timeout_s: PositiveFloat = 120.0  # a silent slot's trial goes to another slot after this long
    start_timeout_s: PositiveFloat = 600.0  # how long a slot may wait for its workers


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    __pydantic_config__ = _STRICT
    uri: str | None = "sqlite:///mlflow.db"  # MLflow tracking server or database; null: off
    experiment: str = "unfreeze"

    def __post_init__(self) -> None:
        if self.uri is not None and (self.uri.startswith("file:") or "://" not in self.uri):
            raise ValueError(f"MLflow has closed its file store: use sqlite:///… or http://…, but got uri={self.uri!r}")


@dataclass(kw_only=True, slots=True)
class TrialConfig:
    """The one trial that `sweeps/finetune.py` runs; a sweep does not look at it."""

    __pydantic_config__ = _STRICT
    selection: str = "all"
    learning_rate: PositiveFloat = 1e-2
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(kw_only=True, slots=True)
class ProbeConfig:
    """What `sweeps/probe.py` fits; a sweep does not look at it."""

    __pydantic_config__ = _STRICT
    at: list[str] = field(default_factory=lambda: ["head"])  # "6.fc2", "fc2" (every block), "embed", "head", "all"
    method: Literal["ridge", "logistic"] = "ridge"  # closed form, or L-BFGS
    pool: Literal["token", "mean"] = "token"  # class token (its lack: mean), or the mean over tokens


@dataclass(kw_only=True, slots=True)
class PaperConfig:
    """Where the paper's data lies (conf/experiment/paper.yaml), and which sets `sweeps/paper.py` runs."""

    __pydantic_config__ = _STRICT
    root: str = "./datasets"  # folder or s3://bucket/prefix
    sets: Annotated[list[PaperSet], Field(min_length=1)] = field(default_factory=lambda: list(get_args(PaperSet)))


@dataclass(kw_only=True, slots=True)
class Config:
    __pydantic_config__ = _STRICT
    sweep: SweepConfig = field(default_factory=SweepConfig)
    storage: str = "./runs"  # folder or s3://bucket/prefix; the ledger's home
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
    dry_run: bool = False  # print what would run and what it would cost, start nothing


def config_to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as JSON-ready nested dicts."""
    return asdict(config)


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
