"""Plasticity of one model on several target sets, in all three modes: until it is settled, and over all pairs.

    python ops/bench/plasticity_tables.py [--save] [--name deit_tiny_patch16_224]
        [--weights FILE --source FOLDER --targets FOLDER [FOLDER …]]

Without weights and images: the embedded model on the embedded digits. Prints both tables of each target; `--save` also
draws the second one. `ours` is the seconds until the order is settled in all modes, `theirs` those of all pairs. The
last line of output is one JSON object.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from figures.record import RESULTS, figure, hand_in, make_parser

from unfreeze.config import DataConfig, ModelConfig, PlasticityConfig
from unfreeze.data.sets.catalog import load_source, load_train_val
from unfreeze.models.build import build_model, input_size
from unfreeze.plasticity.local import measure_plasticity
from unfreeze.records import MODES, PlasticityTable
from unfreeze.report.notebook import plot_by_block
from unfreeze.report.plasticity import bound_lines, terminal_plasticity


def summary(table: PlasticityTable) -> dict[str, Any]:
    rows = [row for row in table.rows if row.block is None]
    return {
        "pairs": rows[0].num_pairs,
        "seconds": table.seconds,
        "stopped": table.stopped,
        "bounds": bound_lines(table),
        "ranking": {mode: str(table.ranking(mode)) for mode in table.modes},
        "mean_low_high": {
            mode: {r.component: [round(v, 4) for v in (r.mean, r.low, r.high)] for r in rows if r.mode == mode}
            for mode in table.modes
        },
    }


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--name", default="deit_tiny_patch16_224", help="of the model, with --weights")
    parser.add_argument("--weights")
    parser.add_argument("--source")
    parser.add_argument("--targets", nargs="+")
    arguments = parser.parse_args()
    given = [arguments.weights, arguments.source, arguments.targets]
    if any(given) and not all(given):
        parser.error("--weights, --source and --targets go together")
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.weights:
        name = "plasticity_tables"
        model = ModelConfig(name=arguments.name, weights=arguments.weights)
        sets = {
            Path(folder).name: DataConfig(name="folder", path=folder, source_path=arguments.source)
            for folder in arguments.targets
        }
    else:
        name, model, sets = "plasticity_tables_digits", ModelConfig(), {"digits": DataConfig()}
    results = []
    for target, config in sets.items():
        data = load_train_val(config, image_size=input_size(model))
        source = load_source(config, image_size=input_size(model))
        base = build_model(model, num_classes=len(data.classes), cache_dir=Path(config.cache_dir))
        tables = []
        for stop_early in (True, False):
            settings = PlasticityConfig(modes=list(MODES), batch_size=16, stop_early=stop_early)
            table = measure_plasticity(
                base.module, base.spec, source, data.train, settings, device=device, model_digest=base.facts.digest
            )
            print(f"{model.name} on {target}\n{terminal_plasticity(table)}", flush=True)
            tables.append(table)
        settled, everything = map(summary, tables)
        seconds = settled["seconds"], everything["seconds"]
        results.append(figure(target, *seconds, "s", settled=settled, all_pairs=everything))
        if arguments.save:
            plot_by_block(table, table.modes).savefig(RESULTS / f"plasticity_{target}.png", dpi=110)
    hand_in(name, results, arguments, model=model.name)


if __name__ == "__main__":
    main()
