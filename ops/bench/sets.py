"""Does plasticity predict accuracy? The verdict on measured tables, each and pooled, and what the others would have
saved on the one left out.

    python ops/bench/sets.py [--tables digits flowers12 cifar10-jpeg] [--save]

Every run of a table (ops/bench/tables) is a finished trial. `NAME` is one table's β, in points of accuracy, for the
mode of plasticity that a sweep's verdict is about; `pooled/MODEL` the average set's over the tables of one model.
Tables of different models are not pooled: their components are others. `left_out/NAME` are trials of a search of the
table itself, by the model, with what the other tables taught of the components and without; there all tables teach,
whatever their model.
"""

import json
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from figures.record import figure, hand_in, make_parser
from planted.pre_pass import plasticity_table
from search_replay import TABLES, measured

from unfreeze.evidence.across import pool
from unfreeze.evidence.model import Terms
from unfreeze.evidence.transfer import component_effects, expected_of_components
from unfreeze.evidence.transfer import pool as pool_effects
from unfreeze.evidence.verdict import headline, pooled_word, verdict, word_of
from unfreeze.evidence.worth import score_slopes, weigh_scores
from unfreeze.records import (
    COMPONENTS,
    MODES,
    ModelFacts,
    PlasticityTable,
    TrialRecord,
    TrialReport,
    TrialSpec,
    TrialState,
)
from unfreeze.search.left_out import trials_saved

NUM_REPLAYS = 24


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tables", nargs="+", default=["digits", "flowers12", "cifar10-jpeg"])
    arguments = parser.parse_args()
    runs = {name: read(name) for name in arguments.tables}
    results = [weigh(name, *own) for name, own in runs.items()]
    by_model: dict[str, list[str]] = {}
    for name, (_, model, _) in runs.items():
        by_model.setdefault(model.name, []).append(name)
    results += [pool_tables(model, {name: runs[name] for name in names}) for model, names in by_model.items()]
    results += [leave_out(name, runs) for name in runs if len(runs) > 1]
    hand_in("sets", results, arguments)


def read(name: str) -> tuple[list[TrialRecord], ModelFacts, PlasticityTable]:
    """A table as the trials, the model and the pre-pass of a sweep."""
    raw = pq.read_table(TABLES / f"{name}.parquet")
    meta = json.loads(raw.schema.metadata[b"unfreeze"])
    reports: dict[tuple[str, float, int], list[TrialReport]] = {}
    for row in raw.to_pylist():
        seen = TrialReport(**{key: row[key] for key in _REPORT}, seconds=0.0, timestamp_ms=0)
        reports.setdefault((row["selection"], row["learning_rate"], row["seed"]), []).append(seen)
    trials = [
        TrialRecord(
            spec=TrialSpec(index=index, selection=selection, learning_rate=rate, seed=seed, origin="table"),
            state=TrialState.FINISHED,
            reports=tuple(own),
        )
        for index, ((selection, rate, seed), own) in enumerate(reports.items())
    ]
    blocks = range(meta["num_blocks"])
    model = ModelFacts(
        name=meta["settings"]["model"]["name"],
        digest="",
        num_blocks=len(blocks),
        parameters={f"{block}.{c}": meta["sizes"][c] // len(blocks) for block in blocks for c in COMPONENTS},
        image_size=0,
        create_kwargs={},
    )
    scores = {
        mode: {f"{block}.{c}": own[f"{block}.{c}"] for block in blocks for c in COMPONENTS}
        for mode, own in meta["scores"].items()
        if mode in MODES
    }
    return trials, model, plasticity_table(scores, data_digest=name)


_REPORT = ("images_seen", "train_loss", "val_loss", "val_accuracy")


def weigh(name: str, trials: list[TrialRecord], model: ModelFacts, plasticity: PlasticityTable) -> dict[str, Any]:
    worths = weigh_scores(plasticity, trials, model)
    found = headline(worths)
    assert found is not None
    assert found.worth is not None, found.trouble
    worth = found.worth
    print(f"{name}: {verdict(worths)}", flush=True)
    return figure(
        name,
        100 * worth.mean,
        None,
        "points of accuracy for one standard deviation more plasticity",
        interval=[100 * worth.low, 100 * worth.high],
        positive=worth.positive,
        p=worth.p,
        word=word_of(found),
        score=found.score,
        trials=found.num_trials,
        sentence=verdict(worths),
    )


def pool_tables(model: str, runs: dict[str, tuple[list[TrialRecord], ModelFacts, PlasticityTable]]) -> dict[str, Any]:
    """In points near the median set's accuracy, as sweeps are pooled."""
    each = [score_slopes(plasticity, trials, facts)[0] for trials, facts, plasticity in runs.values()]
    slopes = [own.slope for own in each if own.slope is not None]
    pooled, accuracy = pool(slopes), median(own.accuracy for own in each)
    rate = 100 * accuracy * (1 - accuracy)
    print(f"pooled {', '.join(runs)}: {pooled_word(pooled)}", flush=True)
    return figure(
        f"pooled/{model}",
        rate * pooled.mean,
        None,
        "points of accuracy for one standard deviation more plasticity, the average set",
        interval=None if pooled.low is None or pooled.high is None else [rate * pooled.low, rate * pooled.high],
        p=pooled.p,
        word=pooled_word(pooled),
        sets=list(runs),
    )


def leave_out(name: str, runs: dict[str, tuple[list[TrialRecord], ModelFacts, PlasticityTable]]) -> dict[str, Any]:
    """Trials of a search of the table, each run's noise drawn anew in each of `NUM_REPLAYS`."""
    table = measured(name)
    scores = {other: own[2] for other, own in runs.items()}
    means = {
        other: {
            c: float(np.mean([r.mean for r in own.rows if r.mode == MODES[0] and r.component == c])) for c in COMPONENTS
        }
        for other, own in scores.items()
    }
    effects = {
        other: component_effects(trials, model, means[other])
        for other, (trials, model, _) in runs.items()
        if other != name
    }
    learned = expected_of_components(pool_effects({o: e for o, e in effects.items() if e is not None}), means[name])
    own = np.array([means[name][c] for c in COMPONENTS])
    terms = Terms.of(own, table.sizes, np.arange(len(COMPONENTS)), rates=table.rates)
    found = trials_saved(name, table.cells, np.tile(table.truth, (NUM_REPLAYS, 1)), table.noise, terms, learned)
    print(found, flush=True)
    return figure(
        f"left_out/{name}",
        found.learned,
        found.alone,
        "trials until within half a point of the best, mean",
        saved=found.saved,
        interval=[found.low, found.high],
        replays=NUM_REPLAYS,
        learned_on=list(effects),
    )


if __name__ == "__main__":
    main()
