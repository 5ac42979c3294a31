"""Every selection of components at every learning rate with every seed, each report of each run: what searches are
replayed on (ops/bench/search_replay.py).

    python ops/bench/tables/make_table.py digits [--seeds 3]
    python ops/bench/tables/make_table.py flowers12 --weights FILE --data FOLDER --source FOLDER [--seeds 1]

Each run is appended to .scratch/tables/NAME.jsonl when it is done, so the same command goes on where it was cut.
Complete, it is ops/bench/tables/NAME.parquet: one row a report; the schema's metadata holds the settings, the scores
of every (block, component) and the sizes. Plain runs in this process, one after another, on one thread each.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from unfreeze.components.selection import count_trainable, parse_selection
from unfreeze.config import Config, config_to_dict
from unfreeze.data.sets.catalog import Dataset, load_source, load_test, load_train_val
from unfreeze.finetune.checkpoint import Checkpoint, restore
from unfreeze.finetune.evaluate import Evaluation, evaluate
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.network import make_autocast
from unfreeze.finetune.prefix import open_cache
from unfreeze.finetune.warm import WarmModel
from unfreeze.load import load_config
from unfreeze.models.build import build_base
from unfreeze.plasticity.local import measure_plasticity
from unfreeze.plasticity.scores import SCORES, rival_scores
from unfreeze.records import COMPONENTS, MODES, PlasticityTable, TrialReport, TrialSpec

TABLES = Path(__file__).parent
SCRATCH = Path(__file__).resolve().parents[3] / ".scratch" / "tables"

# `demo`'s data and training, and rates from its low to its high.
_DIGITS: dict[str, Any] = {
    "data": {"max_train_images": 200, "val_share": 0.35, "max_val_images": 500, "subset": "balanced"},
    "finetune": {"epochs": 10.0, "batch_size": 32},
}
_REAL: dict[str, Any] = {
    "model": {"name": "deit_tiny_patch16_224", "image_size": 64},
    "data": {"name": "folder", "max_train_images": 240, "subset": "balanced", "augment": "none"},
    "finetune": {"epochs": 4.0, "batch_size": 16, "num_reports": 5, "prefix_cache_gib": 4.0},
}
SETTINGS = {"digits": _DIGITS, "flowers12": _REAL, "cifar10-jpeg": _REAL}
RATES = {
    "digits": (0.01, 0.0227, 0.0515, 0.117, 0.264, 0.6),
    "flowers12": (0.01, 0.0316, 0.1),
    "cifar10-jpeg": (0.01, 0.0316, 0.1),
}


def selections() -> list[str]:
    """All 31 of the five components in canonical form, `all` and `none`."""
    subsets = [names for size in range(1, 6) for names in itertools.combinations(COMPONENTS, size)]
    return ["all", "none", *("+".join(names) for names in subsets)]


def configure(name: str, weights: str | None, data: str | None, source: str | None) -> Config:
    settings = {section: dict(values) for section, values in SETTINGS[name].items()}
    if weights is not None:
        settings["model"]["weights"] = weights
        settings["data"] |= {"path": data, "source_path": source}
    return load_config({**settings, "plasticity": {"modes": list(MODES), "stop_early": False, "num_pairs": 512}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights")
    parser.add_argument("--data", help="folder of train/ and test/")
    parser.add_argument("--source", help="folder of source-domain images")
    arguments = parser.parse_args()
    if arguments.table != "digits" and None in (arguments.weights, arguments.data, arguments.source):
        print("skipped: no --weights, --data and --source")
        return
    torch.set_num_threads(1)
    config = configure(arguments.table, arguments.weights, arguments.data, arguments.source)
    grid = list(itertools.product(range(arguments.seeds), RATES[arguments.table], selections()))
    SCRATCH.mkdir(parents=True, exist_ok=True)
    log = SCRATCH / f"{arguments.table}.jsonl"
    done = {tuple(run["cell"]): run for run in map(json.loads, log.read_text().splitlines())} if log.exists() else {}
    bench = Bench(config)
    with log.open("a") as file:
        for number, (seed, rate, selection) in enumerate(grid):
            if (seed, rate, selection) not in done:
                run = {"cell": (seed, rate, selection), **bench.run(selection, rate, seed)}
                done[seed, rate, selection] = run
                file.write(json.dumps(run) + "\n")
                file.flush()
                print(f"{number + 1}/{len(grid)} {selection} {rate} {seed}: {run['reports'][-1]}", flush=True)
    write(arguments.table, [done[cell] for cell in grid], bench.describe(), config)


class Bench:
    """Model and data, loaded once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        size = config.model.image_size or 32
        self.data: Dataset = load_train_val(config.data, image_size=size)
        self.test = load_test(config.data, image_size=size)
        self.warm = WarmModel(build_base(config, num_classes=len(self.data.classes)), torch.device("cpu"))
        self.prefixes = open_cache(config)

    def run(self, selection: str, rate: float, seed: int) -> dict[str, Any]:
        """Every report, and the best checkpoint on the test images: a table is no sweep, nothing is chosen by it."""
        trial = TrialSpec(index=0, selection=selection, learning_rate=rate, seed=seed, origin="table")
        reports, best = self.train(trial)
        rows = [(r.images_seen, r.train_loss, r.val_loss, r.val_accuracy) for r in reports]
        return {"reports": rows, "seconds": reports[-1].seconds, "test_accuracy": self.evaluate_on_test(best).accuracy}

    def train(self, trial: TrialSpec) -> tuple[tuple[TrialReport, ...], Checkpoint]:
        """Every report, and the checkpoint at the best.

        Raises:
            Diverged: the loss became NaN or infinite.
        """
        config = self.config.finetune
        best: Checkpoint | None = None
        reports: tuple[TrialReport, ...] = ()
        progress_of = finetune(
            self.warm, self.data, trial, config, augment=self.config.data.augment, prefixes=self.prefixes
        )
        for progress in progress_of:
            reports = progress.reports
            if progress.is_best:
                best = progress.checkpoint.for_evaluation().snapshot()
        assert best is not None
        return reports, best

    def evaluate_on_test(self, best: Checkpoint) -> Evaluation:
        """Of the trial that was trained last."""
        config = self.config.finetune
        restore(best, self.warm.module, None, [])
        return evaluate(
            self.warm.module,
            self.test,
            self.warm.base.spec,
            batch_size=config.eval_batch_size,
            autocast=make_autocast(config.precision, self.warm.device),
            device=self.warm.device,
        )

    def plasticity(self) -> PlasticityTable:
        """Of the model as it was pretrained."""
        config, warm = self.config, self.warm
        warm.prepare("none", seed=0, train_head=True)
        source = load_source(config.data, image_size=warm.base.spec.image_size)
        return measure_plasticity(
            warm.module,
            warm.base.spec,
            source,
            self.data.train,
            config.plasticity,
            device=warm.device,
            model_digest=warm.base.facts.digest,
        )

    def describe(self) -> dict[str, Any]:
        """Scores by mode or name and "block.component", and sizes."""
        warm, table = self.warm, self.plasticity()
        scores = {
            mode: {f"{r.block}.{r.component}": r.mean for r in table.rows if r.mode == mode and r.block is not None}
            for mode in table.modes
        }
        scores |= rival_scores(
            list(SCORES),
            warm.module,
            warm.base.spec,
            self.data.train,
            classifier=warm.base.classifier,
            num_images=64,
            batch_size=32,
            seed=0,
            device=warm.device,
        )
        facts = warm.base.facts
        sizes = {
            name: count_trainable(
                parse_selection(name, num_blocks=facts.num_blocks), facts.parameters, train_head=False
            )
            for name in COMPONENTS
        }
        return {
            "scores": scores,
            "sizes": sizes,
            "num_blocks": facts.num_blocks,
            "num_val": len(self.data.val),
            "num_test": len(self.test),
            "num_classes": len(self.data.classes),
        }


def write(name: str, runs: list[dict[str, Any]], description: dict[str, Any], config: Config) -> None:
    names = ("selection", "learning_rate", "seed", "images_seen", "train_loss", "val_loss", "val_accuracy")
    columns: dict[str, list[Any]] = {key: [] for key in (*names, "test_accuracy", "seconds")}
    for run in runs:
        seed, rate, selection = run["cell"]
        for images, train_loss, val_loss, accuracy in run["reports"]:
            row = (selection, rate, seed, images, train_loss, val_loss, accuracy, run["test_accuracy"], run["seconds"])
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    settings = {key: value for key, value in config_to_dict(config).items() if key in ("model", "data", "finetune")}
    for section, option in (("model", "weights"), ("data", "path"), ("data", "source_path"), ("data", "cache_dir")):
        settings[section].pop(option)  # of one machine
    meta = {
        **description,
        "settings": settings,
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }
    table = pa.table(columns).replace_schema_metadata({"unfreeze": json.dumps(meta)})
    pq.write_table(table, TABLES / f"{name}.parquet", compression="zstd")
    print(json.dumps({"name": f"table_{name}", "runs": len(runs), "rows": table.num_rows}))


if __name__ == "__main__":
    main()
