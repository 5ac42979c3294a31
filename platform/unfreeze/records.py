"""The records the floors hand to each other: frozen, JSON-ready, without behaviour that needs a library."""

import functools
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from statistics import fmean
from typing import Any

COMPONENTS = ("ln1", "mha", "ln2", "fc1", "fc2")
MODES = ("reference", "in_situ", "local")  # of plasticity, in the order they are shown


class TrialState(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"  # trained to the end
    STOPPED = "stopped"  # by early stopping, or cancelled
    DIVERGED = "diverged"  # the loss became NaN or infinite
    FAILED = "failed"  # an error; its text is in the record

    @property
    def is_final(self) -> bool:
        return self is not TrialState.RUNNING


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """What one trial runs. Everything that decides its numbers is here or in the sweep's configuration."""

    index: int  # position in the sweep's sequence; the trial's identity
    selection: str  # canonical text, e.g. "mha@6-11+fc1"
    learning_rate: float
    seed: int  # head initialisation, batch order, augmentation
    origin: str  # why it was tried: "prior", "baseline", "search", "confirm"
    stop_below: tuple[tuple[int, float], ...] = ()  # (images_seen, validation accuracy): early-stopping cutoffs

    @property
    def trial_id(self) -> str:
        return f"trial-{self.index:05d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialReport:
    """One validation during a trial."""

    images_seen: int
    train_loss: float  # mean over the images since the last report
    val_loss: float
    val_accuracy: float  # share of validation images, 0 to 1
    seconds: float  # of training and validation since the trial began, restarts left out
    timestamp_ms: int  # wall clock, Unix time
    usage: dict[str, float] = field(default_factory=dict, compare=False)  # of the machine, by MLflow's names


@dataclass(frozen=True, kw_only=True)  # no slots: what is asked of thousands of records again and again is kept
class TrialRecord:
    """The ledger's object for one trial."""

    spec: TrialSpec
    state: TrialState
    reports: tuple[TrialReport, ...] = ()
    trainable_parameters: int = 0  # head included
    checkpoint: str | None = None  # key of the best-validation delta checkpoint, below the sweep; None: deleted
    checkpoint_bytes: int = 0  # of its tensors
    error: str | None = None
    slot: str | None = None  # who ran it last
    attempts: int = 1  # 1 + the times it was taken up again
    lease: int = 0  # of the driver for which it was written last; 0: of none

    @functools.cached_property
    def best_val_accuracy(self) -> float | None:
        """Best validation accuracy over the reports: that of the exported checkpoint. None before the first."""
        return max((report.val_accuracy for report in self.reports), default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlasticityRow:
    """Plasticity of one component, of one block or (``block`` None) over all blocks."""

    mode: str  # of MODES
    block: int | None
    component: str
    mean: float
    sd: float  # over observations: pairs, or the means of groups of cross pairs
    num_pairs: int
    low: float  # interval of the mean at `settings["confidence"]`, valid whenever the measurement stopped
    high: float
    quantiles: tuple[float, ...] = ()  # 5, 25, 50, 75, 95 % of the observations
    maximum: float | None = None  # largest single pair


@dataclass(frozen=True, kw_only=True, slots=True)
class PlasticityRanking:
    """The order of the components in one block or (``block`` None) over all blocks, and what of it is settled."""

    mode: str
    block: int | None
    order: tuple[str, ...]  # most plastic first
    ties: tuple[bool, ...]  # whether order[i] and order[i + 1] could not be told apart

    def __str__(self) -> str:
        """``fc1 > ln2 ≈ ln1 > fc2 > mha``."""
        signs = [" ≈ " if tie else " > " for tie in self.ties]
        return "".join(name + sign for name, sign in zip(self.order, [*signs, ""], strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class PlasticityBound:
    """Upper bounds of the rate of change of one component of one block; None where none is known."""

    mode: str
    block: int
    component: str
    as_published: float | None  # what the paper's code computes; a rate may exceed it
    valid: float | None  # holds for every pair that was measured


@dataclass(frozen=True, kw_only=True, slots=True)
class PlasticityTable:
    """The pre-pass's answer, with what it was measured on."""

    rows: tuple[PlasticityRow, ...]
    skipped_pairs: int  # distance 0
    seconds: float
    model_digest: str
    data_digest: str
    rankings: tuple[PlasticityRanking, ...] = ()
    stopped: dict[str, str] = field(default_factory=dict)  # mode → why no more pairs were measured
    bounds: tuple[PlasticityBound, ...] = ()
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # rival score → group ("3.mha") → value
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def modes(self) -> tuple[str, ...]:
        present = {row.mode for row in self.rows}
        return tuple(mode for mode in MODES if mode in present)

    @property
    def by_group(self) -> dict[str, dict[str, float]]:
        """Every mode, then every rival score → group ("3.mha") → value."""
        modes: dict[str, dict[str, float]] = {mode: {} for mode in self.modes}
        for row in self.rows:
            if row.block is not None:
                modes[row.mode][f"{row.block}.{row.component}"] = row.mean
        return modes | self.scores

    def component_means(self, score: str) -> dict[str, float]:
        """Component → mean over blocks, of plasticity in a mode or of a rival score; empty if it was not measured."""
        if score in self.scores:
            groups = self.scores[score]
            own = {name: [v for g, v in groups.items() if g.endswith(f".{name}")] for name in COMPONENTS}
            return {name: fmean(values) for name, values in own.items() if values}
        return {row.component: row.mean for row in self.rows if row.mode == score and row.block is None}

    def ranking(self, mode: str) -> PlasticityRanking | None:
        """The order of the components over all blocks; None in a table that was not ranked."""
        return next((r for r in self.rankings if r.mode == mode and r.block is None), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What the driver needs to know of a model it never loads."""

    name: str
    digest: str  # of the base weights
    num_blocks: int
    parameters: dict[str, int]  # "3.mha" → count; "embed", "head" without a block
    image_size: int
    create_kwargs: dict[str, Any]  # timm.create_model(name, **create_kwargs) gives the architecture
    num_tokens: int = 0  # of an image, class token and registers included
    width: int = 0  # of a token
    plain: bool = False  # its blocks are LN1, attention, LN2, FC1, FC2 and nothing else
    first_token: bool = False  # plain, and the classifier reads the class token alone
    lora_sizes: dict[str, int] = field(default_factory=dict)  # "3.mha" → parameters of a rank-1 update; absent: none

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """What the driver needs to know of the data."""

    name: str
    digest: str  # of the decoded images and labels
    classes: tuple[str, ...]
    num_train: int
    num_val: int
    num_test: int
    num_source: int
    pairs_digest: str = ""  # of the source and training images, which plasticity is measured on
    notes: tuple[str, ...] = ()  # how the set was understood, for people
    test_digest: str = ""  # of the sealed images and their labels
    bad_files: tuple[str, ...] = ()  # unreadable, left out


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """A selection at its chosen learning rate, and what the choice rests on."""

    selection: str
    learning_rate: float
    val_accuracy: float  # mean over seeds, each at its best checkpoint
    val_accuracy_sd: float | None  # over seeds; None with one seed
    num_seeds: int
    trainable_parameters: int
    trial_ids: tuple[str, ...]  # best on validation first; its checkpoint is exported if this is what is recommended
    num_rates: int = 1  # learning rates at which the selection has finished
    test_accuracy: float | None = None  # mean over seeds; given only where it made the choice (search.select_on=test)
    test_accuracy_sd: float | None = None

    @property
    def select_on(self) -> str:
        """The images that chose."""
        return "val" if self.test_accuracy is None else "test"


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What earlier sweeps say before the first trial of another, in logits: β of the prior's score, and the effect of
    each whole component that β leaves over."""

    sweeps: tuple[str, ...]
    mean: tuple[float, ...]  # β, then in the order of COMPONENTS
    covariance: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A configuration that was run, as the model of the evidence sees it from all trials."""

    selection: str
    learning_rate: float
    expected: float  # validation accuracy: what its runs would average to, a lucky one's luck taken out
    low: float  # 95 % interval of it
    high: float
    near_best: float  # probability that no configuration is more than `tolerance` better
    loss: float  # accuracy that is given away by choosing it, on average
    tolerance: float = 0.005


@dataclass(frozen=True, kw_only=True, slots=True)
class Worth:
    """Accuracy for one standard deviation more of a score, at the median selection's accuracy, of a component trained
    whole, its size held fixed."""

    mean: float  # posterior
    low: float  # 95 % interval by exchange of the components' labels; infinite where nothing is excluded
    high: float
    positive: float  # posterior probability that it is above 0
    p: float  # share of the exchanges that do as well
    bayes_factor: float  # of the score against none


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreWorth:
    """What the trials say of a score's worth, or why that has no number."""

    score: str  # a mode of plasticity, or a rival
    num_trials: int  # that it rests on
    worth: Worth | None = None
    trouble: str = ""  # why there is no number


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """What a score is worth over several data sets; intervals are 95 %, None with one set."""

    mean: float  # on the average set
    low: float | None
    high: float | None
    spread: float  # standard deviation between sets
    next_low: float | None  # of the effect on a set like these; None with fewer than three
    next_high: float | None
    num_sets: int
    p: float  # share of the exchanges of the components' labels, the same in every set, that do as well


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One component against another over the sets, as the paper does; accuracies in points. p is None where no
    difference or too few sets leave nothing to test."""

    first: str
    second: str
    num_sets: int
    difference: float  # mean of first − second
    relative: float  # mean of 100·(first − second) / second
    t_p: float | None  # paired t-test, two-sided
    wilcoxon_p: float | None  # signed ranks, one-sided: first is better


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Trials that a search of one data set takes, on average over what its truth may be, without and with what the
    others taught."""

    sweep: str
    alone: float
    learned: float
    saved: float
    low: float  # 95 %, Student's over the truths
    high: float
    num_truths: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledSweeps:
    """Sweeps of several data sets together."""

    score: str  # the mode of plasticity that is pooled; empty: none was measured
    names: tuple[str, ...]  # of the sweeps that are
    apart: dict[str, str]  # the others → why they are not
    pooled: Pooled | None  # in accuracy; None: no sweep has a number
    accuracy: float | None  # near which: the median of the sets' median selections
    comparisons: tuple[Comparison, ...]
    ranks: dict[str, float]  # component → mean rank of its accuracy, 1 the best
    left_out: tuple[LeftOut, ...] = ()  # each of `names` in turn; empty with fewer than two


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """Rank correlation of plasticity with validation accuracy: a description, which claims nothing.

    Statistics are None where n is too small for them. There is no interval: the points share five components, and no
    interval over so few is honest.
    """

    name: str  # "components", "selections", "selections_size_partialled", "within_mha", …
    mode: str  # plasticity mode
    held_fixed: str  # what was held fixed or partialled out, in words
    exchanged: str  # whose labels p exchanges: "components" or "blocks"
    n: int
    spearman: float | None
    spearman_p: float | None  # share of the exchanges whose coefficient is no smaller in magnitude
    kendall: float | None
    kendall_p: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TestResult:
    """One trial's best-validation checkpoint on the test images; there are some under search.select_on=test alone."""

    __test__ = False  # no test case, whatever pytest reads from the name
    correct: int
    num_test: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.num_test


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalResult:
    """The sealed test, opened once, and the exported model, which is what was evaluated, in float32."""

    trial_id: str
    selection: str
    test_correct: int
    num_test: int
    test_low: float  # 95 % Wilson interval of the accuracy
    test_high: float
    export: str  # key of the weights, below the sweep; beside them config.json, timm's own, with the preprocessing
    export_sha256: str
    create_kwargs: dict[str, Any]  # timm.create_model(model_name, checkpoint_path=…, **create_kwargs)
    model_name: str
    select_on: str = (
        "val"  # the images that chose it; "test": as the paper's code does, the seal broken for every trial
    )
    val_correct: int = 0  # by the export, as the test; trials validate in the precision that they train in
    num_val: int = 0  # 0: finished before exports were validated
    probe_correct: int | None = None  # of `num_val`, by a ridge probe of the pretrained head; None in older ledgers

    @property
    def val_accuracy(self) -> float:
        return self.val_correct / self.num_val

    @property
    def test_accuracy(self) -> float:
        return self.test_correct / self.num_test

    @property
    def export_folder(self) -> str:
        """Key of the folder that timm loads as ``local-dir:``."""
        return self.export.rpartition("/")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class MlflowPlace:
    """Where a sweep was last written to in MLflow."""

    id: str  # the tag unfreeze.id of its runs
    page: str  # MLflow's address in a browser
    experiment_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that a report shows of one sweep."""

    sweep: str
    config: dict[str, Any]
    model: ModelFacts
    data: DataFacts
    plasticity: PlasticityTable
    trials: tuple[TrialRecord, ...]
    correlations: tuple[Correlation, ...]
    recommendation: Recommendation | None  # None when no trial finished
    final: FinalResult | None  # None before `finalize`
    choices: tuple[Recommendation, ...] = ()  # each selection at its chosen learning rate, best first
    contenders: tuple[Contender, ...] = ()  # most promising first; empty where the model did not search
    worths: tuple[ScoreWorth, ...] = ()  # of each mode and rival score
    cautions: tuple[str, ...] = ()  # what the sweep is too small to tell
    importances: dict[str, float] = field(default_factory=dict)  # parameter of the space → share, the largest first
    num_tested: int = 0  # trials that search.select_on=test evaluated on the test images, now or in an earlier run
    mlflow: MlflowPlace | None = None  # None: it is not there

    @property
    def has_ended(self) -> bool:
        """Whether nothing is to come: every trial has its outcome, and the test was opened."""
        return self.final is not None and all(trial.state.is_final for trial in self.trials)


def to_dict(record: Any) -> dict[str, Any]:
    """A record as JSON-ready dicts and lists."""
    return asdict(record)


def trial_spec_from_dict(raw: dict[str, Any]) -> TrialSpec:
    cutoffs = tuple((int(images), float(value)) for images, value in raw["stop_below"])
    return TrialSpec(**{**raw, "stop_below": cutoffs})


def trial_record_from_dict(raw: dict[str, Any]) -> TrialRecord:
    return TrialRecord(
        **{
            **raw,
            "spec": trial_spec_from_dict(raw["spec"]),
            "state": TrialState(raw["state"]),
            "reports": tuple(TrialReport(**report) for report in raw["reports"]),
        }
    )


def plasticity_table_from_dict(raw: dict[str, Any]) -> PlasticityTable:
    return PlasticityTable(
        **{
            **raw,
            "rows": tuple(
                PlasticityRow(**{**row, "quantiles": tuple(row.get("quantiles", ()))}) for row in raw["rows"]
            ),
            "rankings": tuple(
                PlasticityRanking(**{**ranking, "order": tuple(ranking["order"]), "ties": tuple(ranking["ties"])})
                for ranking in raw.get("rankings", ())
            ),
            "bounds": tuple(PlasticityBound(**bound) for bound in raw.get("bounds", ())),
        }
    )


def model_facts_from_dict(raw: dict[str, Any]) -> ModelFacts:
    return ModelFacts(**raw)


def learned_from_dict(raw: dict[str, Any]) -> Learned:
    covariance = tuple(tuple(row) for row in raw["covariance"])
    return Learned(sweeps=tuple(raw["sweeps"]), mean=tuple(raw["mean"]), covariance=covariance)


def data_facts_from_dict(raw: dict[str, Any]) -> DataFacts:
    lists = {name: tuple(raw.get(name, ())) for name in ("classes", "bad_files", "notes")}
    return DataFacts(**{**raw, **lists})


def final_result_from_dict(raw: dict[str, Any]) -> FinalResult:
    return FinalResult(**raw)
