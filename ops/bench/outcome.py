"""What a person gets for as many training images: a sweep with the search's default options, against full finetuning
and a linear probe with their learning rates tuned. Six rates and three seeds of both are about what a sweep runs.

The sweep's trials are planned as `sweeps/vit_components.py` plans them and run in this process, one after another, on
one thread; so are the others. Each way chooses by validation. The run that it chose is then made once more, which gives
the same numbers, and its best checkpoint meets the sealed test. `theirs` is the alternative that does better on
validation: what is taken by somebody who tunes both. A split is another `data.split_seed`.

    python ops/bench/outcome.py [--full] [--splits 3] [--sets digits …] [--weights FILE --data FOLDER] [--save]

FOLDER has flowers12, cifar10-jpeg and imagenet-samples; without it those sets are skipped. Without --full a search of a
few trials against one seed at two rates. Each run is appended to .scratch/outcome/ when it is done, so the same command
goes on where it was cut.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures.record import figure, hand_in, make_parser
from scipy import stats
from tables.make_table import SETTINGS, Bench

from unfreeze.components.selection import parse_selection
from unfreeze.config import Config, config_to_dict
from unfreeze.cost.model import cost_model
from unfreeze.evidence.recommend import recommend
from unfreeze.finetune.evaluate import Evaluation
from unfreeze.finetune.loop import Diverged
from unfreeze.finetune.schedule import num_steps_of, report_steps
from unfreeze.load import load_config
from unfreeze.records import Recommendation, TrialRecord, TrialSpec, TrialState, to_dict, trial_record_from_dict
from unfreeze.search.planner import Planner
from unfreeze.search.prior import prior_scores
from unfreeze.search.space import make_space
from unfreeze.search.standing import stand

SCRATCH = Path(__file__).resolve().parents[2] / ".scratch" / "outcome"
ALTERNATIVES = ("all", "none")
SEARCH: dict[str, Any] = {"digits": {"learning_rate_low": 0.01, "learning_rate_high": 0.6}}  # the demo's range


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is run."""

    search: dict[str, Any]  # options of the search, besides `SEARCH`
    num_rates: int
    num_seeds: int


FULL = Effort(search={}, num_rates=6, num_seeds=3)
SMALL = Effort(search={"num_trials": 4, "confirm_top": 1, "confirm_seeds": 1}, num_rates=2, num_seeds=1)


@dataclass(frozen=True, slots=True)
class Got:
    """What one way of choosing ended with."""

    chosen: Recommendation
    stated: float  # the accuracy that was expected of it, by validation
    images: int  # trained on in all of its runs
    test: Evaluation

    @property
    def interval(self) -> tuple[float, float]:
        """Of the test's accuracy: Wilson's, 95 %, as a sweep states it."""
        found = stats.binomtest(self.test.correct, self.test.count).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def describe(self) -> dict[str, Any]:
        """Accuracies in %."""
        low, high = self.interval
        return {
            "selection": self.chosen.selection,
            "learning_rate": float(f"{self.chosen.learning_rate:.3g}"),
            "test": round(100 * self.test.accuracy, 2),
            "interval": [round(100 * low, 2), round(100 * high, 2)],
            "stated": round(100 * self.stated, 2),
            "stated_lies_in_interval": low <= self.stated <= high,
            "images": self.images,
        }


class Lab:
    """Model and images of one split; every run is made once and kept."""

    def __init__(self, name: str, config: Config) -> None:
        self.config, self._bench = config, Bench(config)
        self.facts = self._bench.warm.base.facts
        self.cost = cost_model(config, self.facts)
        trained = {section: config_to_dict(config)[section] for section in ("model", "data", "finetune")}
        digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:8]
        SCRATCH.mkdir(parents=True, exist_ok=True)
        self._log = SCRATCH / f"{name}-{digest}.jsonl"
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._done = {key_of(record.spec): record for record in map(trial_record_from_dict, map(json.loads, lines))}

    def run(self, spec: TrialSpec) -> TrialRecord:
        """A trial to its end; one that both ways ask for is made once."""
        if key_of(spec) not in self._done:
            self._done[key_of(spec)] = record = self._train(spec)
            with self._log.open("a") as file:
                file.write(json.dumps(to_dict(record)) + "\n")
            print(f"{self._log.stem} {len(self._done)}: {key_of(spec)} {record.best_val_accuracy}", flush=True)
        return replace(self._done[key_of(spec)], spec=spec)

    def _train(self, spec: TrialSpec) -> TrialRecord:
        selection = parse_selection(spec.selection, num_blocks=self.facts.num_blocks)
        record = TrialRecord(
            spec=spec, state=TrialState.FINISHED, trainable_parameters=self.cost.num_trained(selection)
        )
        try:
            return replace(record, reports=self._bench.train(spec)[0])
        except Diverged as error:
            return replace(record, state=TrialState.DIVERGED, error=str(error))

    def open_test(self, chosen: Recommendation, records: Sequence[TrialRecord], *, stated: float) -> Got:
        """The best run of what was chosen once more, and its best checkpoint on the test images."""
        record = next(record for record in records if record.spec.trial_id == chosen.trial_ids[0])
        reports, best = self._bench.train(record.spec)
        assert [report.val_accuracy for report in reports] == [report.val_accuracy for report in record.reports]
        images = sum(record.reports[-1].images_seen for record in records if record.reports)
        return Got(chosen, stated, images, self._bench.evaluate_on_test(best))

    def search(self) -> Got:
        """The sweep."""
        config, facts, table = self.config, self.facts, self._bench.plasticity()
        steps = report_steps(num_steps_of(config.finetune, len(self._bench.data.train)), config.finetune.num_reports)
        planner = Planner(
            config.search,
            make_space(config.search, self.cost),
            scores=prior_scores(config.search.prior.score, table, num_blocks=facts.num_blocks),
            milestones=[step * config.finetune.batch_size for step in steps],
            seed=config.sweep.seed,
        )
        final: dict[int, TrialRecord] = {}
        planned: dict[int, TrialSpec] = {}
        while (spec := planner.plan(len(final), final, planned)) is not None:
            planned[spec.index], final[spec.index] = spec, self.run(spec)
        records = list(final.values())
        contenders = stand(config, facts, table, records)
        chosen = recommend(records, contenders=contenders)
        assert chosen is not None
        expected = {(own.selection, own.learning_rate): own.expected for own in contenders}
        return self.open_test(chosen, records, stated=expected[chosen.selection, chosen.learning_rate])

    def tune(self, selection: str, effort: Effort) -> Got:
        """One selection at several rates from the lowest to the highest of the search, each with every seed."""
        low, high = self.config.search.learning_rate_low, self.config.search.learning_rate_high
        grid = [(rate, seed) for rate in np.geomspace(low, high, effort.num_rates) for seed in range(effort.num_seeds)]
        records = [
            self.run(TrialSpec(index=i, selection=selection, learning_rate=float(rate), seed=seed, origin="grid"))
            for i, (rate, seed) in enumerate(grid)
        ]
        chosen = recommend(records)
        assert chosen is not None
        return self.open_test(chosen, records, stated=chosen.val_accuracy)


def key_of(spec: TrialSpec) -> tuple[str, float, int]:
    return spec.selection, spec.learning_rate, spec.seed


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="default options of the search, six rates, three seeds")
    parser.add_argument("--weights", help="of DeiT-Tiny")
    parser.add_argument("--data", help="folder of flowers12, cifar10-jpeg and imagenet-samples")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for name in arguments.sets:
        if name != "digits" and None in (arguments.weights, arguments.data):
            print(f"{name}: skipped, no --weights and --data", flush=True)
            continue
        splits = [compare(name, split, arguments) for split in range(arguments.splits)]
        results += [*splits, summary(name, splits)]
    hand_in("outcome", results, arguments, splits=arguments.splits)


def compare(name: str, split: int, arguments: argparse.Namespace) -> dict[str, Any]:
    effort = FULL if arguments.full else SMALL
    lab = Lab(f"{name}-{split}", configure(name, split, effort, arguments))
    ours = lab.search()
    others = {selection: lab.tune(selection, effort) for selection in ALTERNATIVES}
    theirs = max(others.values(), key=lambda got: got.chosen.val_accuracy)
    return figure(
        f"{name}/{split}",
        100 * ours.test.accuracy,
        100 * theirs.test.accuracy,
        "% of the sealed test images",
        more_is_better=True,
        num_test=ours.test.count,
        sweep=ours.describe(),
        alternatives={selection: got.describe() for selection, got in others.items()},
        never_below=all(ours.test.accuracy >= got.interval[0] for got in others.values()),
    )


def configure(name: str, split: int, effort: Effort, arguments: argparse.Namespace) -> Config:
    settings: dict[str, Any] = {section: dict(values) for section, values in SETTINGS[name].items()}
    settings["data"]["split_seed"] = split
    settings["search"] = {**SEARCH.get(name, {}), **effort.search}
    if name != "digits":
        settings["model"]["weights"] = arguments.weights
        settings["data"] |= {"path": f"{arguments.data}/{name}", "source_path": f"{arguments.data}/imagenet-samples"}
    return load_config(settings)


def summary(name: str, splits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over splits; the gain's interval is Student's, None with one split."""
    ours, theirs = ([split[side] for split in splits] for side in ("ours", "theirs"))
    gains = np.subtract(ours, theirs)
    gain, half = gains.mean(), stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1) if len(gains) > 1 else None
    return figure(
        name,
        float(np.mean(ours)),
        float(np.mean(theirs)),
        "% of the sealed test images, mean over splits",
        more_is_better=True,
        gain=round(float(gain), 2),
        gain_interval=None if half is None else [round(float(gain + side * half), 2) for side in (-1, 1)],
        never_below=all(split["never_below"] for split in splits),
        stated_lies_in_interval=sum(split["sweep"]["stated_lies_in_interval"] for split in splits),
    )


if __name__ == "__main__":
    main()
