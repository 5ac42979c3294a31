"""Sweeps of several data sets together: which may be pooled, what plasticity is worth over them, the paper's tests."""

from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

from unfreeze.config import changed_keys
from unfreeze.errors import ConfigError
from unfreeze.evidence.across import compare, mean_ranks, pool
from unfreeze.evidence.correlate import score_selections
from unfreeze.evidence.verdict import headline
from unfreeze.evidence.worth import score_slopes
from unfreeze.records import COMPONENTS, Evidence, Pooled, PooledSweeps

# What makes accuracies comparable; how long a set is trained is part of it.
_PROTOCOL = ("model", "finetune", "plasticity")


def pool_sweeps(evidence: Mapping[str, Evidence], *, one_protocol: bool = False) -> PooledSweeps:
    """``evidence``: name → sweep, in the order to be shown. Sweeps of another model, metric or protocol than the
    first one's stand apart, as do those without a number. ``one_protocol``: they are one by definition
    (`sweeps/paper.py`).

    Raises:
        ConfigError: two are the same sweep, or of the same images.
    """
    _refuse_the_same(evidence)
    apart: dict[str, str] = {}
    slopes = {}
    score = next((h.score for found in evidence.values() if (h := headline(found.worths)) is not None), "")
    for name, found in evidence.items():
        own = next((s for s in score_slopes(found.plasticity, found.trials, found.model) if s.score == score), None)
        difference = "" if one_protocol else _difference(next(iter(evidence.values())), found)
        if own is None:
            apart[name] = "plasticity was not measured" if not score else f"{score} was not measured"
        elif difference or own.slope is None:
            apart[name] = difference or own.trouble
        else:
            slopes[name] = own
    pooled, accuracy = None, None
    if slopes:
        accuracy = median(own.accuracy for own in slopes.values())
        logits = pool([own.slope for own in slopes.values() if own.slope is not None])
        pooled = _in_accuracy(logits, accuracy)
    columns = _component_accuracies(evidence, skip=apart.keys() if not one_protocol else ())
    return PooledSweeps(
        score=score,
        names=tuple(slopes),
        apart=apart,
        pooled=pooled,
        accuracy=accuracy,
        comparisons=compare(columns) if len(columns["mha"]) > 1 else (),
        ranks=mean_ranks(columns) if len(columns["mha"]) > 1 else {},
    )


def _refuse_the_same(evidence: Mapping[str, Evidence]) -> None:
    seen: dict[str, str] = {}
    for name, found in evidence.items():
        if found.data.digest in seen:
            raise ConfigError(
                f"{seen[found.data.digest]} and {name} are sweeps of the same images ({found.data.name}), which would "
                f"count twice; leave one out"
            )
        seen[found.data.digest] = name


def _difference(first: Evidence, other: Evidence) -> str:
    """In what another sweep's model, metric or protocol differs; empty: in nothing."""
    if first.model.digest != other.model.digest:
        return f"another model, {other.model.name} ({other.model.digest[:8]})"
    metrics = [found.config["search"].get("select_on", "val") for found in (other, first)]
    if len(set(metrics)) > 1:
        return f"another metric (it chose on {metrics[0]}, the first on {metrics[1]})"
    stored, own = ({key: found.config.get(key) for key in _PROTOCOL} for found in (first, other))
    differences = changed_keys(_without_rivals(stored), _without_rivals(own))
    return f"another protocol ({'; '.join(differences)})" if differences else ""


def _without_rivals(config: dict[str, Any]) -> dict[str, Any]:
    """Rival scores and how they are measured change nothing of plasticity's own number."""
    own = config["plasticity"] or {}
    return {**config, "plasticity": {key: value for key, value in own.items() if not key.startswith("score")}}


def _in_accuracy(pooled: Pooled, accuracy: float) -> Pooled:
    rate = accuracy * (1 - accuracy)

    def scaled(value: float | None) -> float | None:
        return None if value is None else rate * value

    return Pooled(
        mean=rate * pooled.mean,
        low=scaled(pooled.low),
        high=scaled(pooled.high),
        spread=rate * pooled.spread,
        next_low=scaled(pooled.next_low),
        next_high=scaled(pooled.next_high),
        num_sets=pooled.num_sets,
        p=pooled.p,
    )


def _component_accuracies(evidence: Mapping[str, Evidence], skip: Collection[str]) -> dict[str, list[float]]:
    """Component → accuracy in % of each set that has all five, each alone at its own best rate; test where it chose."""
    columns: dict[str, list[float]] = {name: [] for name in ("mha", "fc1", "fc2", "ln2", "ln1")}
    for name, found in evidence.items():
        own = {str(score.selection): score.val_accuracy for score in score_selections(found.trials, found.model)}
        own |= {c.selection: c.test_accuracy for c in found.choices if c.test_accuracy is not None}
        if name not in skip and own.keys() >= set(COMPONENTS):
            for component, column in columns.items():
                column.append(100 * own[component])
    return columns
