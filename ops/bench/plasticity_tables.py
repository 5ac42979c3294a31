"""Plasticity of one model on several target sets, in all three modes: until it is settled, and over all pairs.

    python ops/bench/plasticity_tables.py --weights FILE --source FOLDER --targets FOLDER [FOLDER …]
        [--name deit_tiny_patch16_224]

Prints both tables of each target, writes the second one's figure and the numbers of both to ops/bench/results/. The
last line of output is one JSON object.
"""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from unfreeze.config import DataConfig, ModelConfig, PlasticityConfig
from unfreeze.data.sets.catalog import load_source, load_train_val
from unfreeze.models.build import build_model, input_size
from unfreeze.plasticity.local import measure_plasticity
from unfreeze.records import MODES, PlasticityTable
from unfreeze.report.plasticity import bound_lines, terminal_plasticity
from unfreeze.report.plasticity_figures import plot_by_block

RESULTS = Path(__file__).parent / "results"


def summary(target: str, table: PlasticityTable) -> dict[str, Any]:
    rows = [row for row in table.rows if row.block is None]
    return {
        "name": f"plasticity_{target}",
        "pairs": rows[0].num_pairs,
        "seconds": round(table.seconds, 2),
        "stopped": table.stopped,
        "bounds": bound_lines(table),
        "ranking": {mode: str(table.ranking(mode)) for mode in table.modes},
        "mean_low_high": {
            mode: {r.component: [round(v, 4) for v in (r.mean, r.low, r.high)] for r in rows if r.mode == mode}
            for mode in table.modes
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--targets", nargs="+", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ModelConfig(name=arguments.name, weights=arguments.weights)
    results = []
    for folder in arguments.targets:
        target = Path(folder).name
        config = DataConfig(name="folder", path=folder, source_path=arguments.source)
        data = load_train_val(config, image_size=input_size(model))
        source = load_source(config, image_size=input_size(model))
        base = build_model(model, num_classes=len(data.classes), cache_dir=Path(config.cache_dir))
        for stop_early in (True, False):
            settings = PlasticityConfig(modes=list(MODES), batch_size=16, stop_early=stop_early)
            table = measure_plasticity(
                base.module, base.spec, source, data.train, settings, device=device, model_digest=base.facts.digest
            )
            print(f"{arguments.name} on {target}\n{terminal_plasticity(table)}", flush=True)
            results.append(summary(target, table))
        plot_by_block(table, table.modes).savefig(RESULTS / f"plasticity_{target}.png", dpi=110)
    output = {
        "name": "plasticity_tables",
        "date": datetime.date.today().isoformat(),
        "model": arguments.name,
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "results": results,
    }
    (RESULTS / "plasticity_tables.json").write_text(json.dumps(output, indent=1) + "\n")
    print(json.dumps(output))


if __name__ == "__main__":
    main()
