"""How long a slot does not train between two trials: from the last report of one to the first batch of the next.

A whole sweep on one warm slot: Ray, Tune, board, ledger and checkpoints as in any other. Read from the trials' records:
a report's timestamp minus its seconds is when the trial's loop began. The other side is the start-up of a Ray Train run
per trial, measured by trial_overhead.py. The last line of output is one JSON object.

    python ops/bench/turnaround.py [--trials 8] [--save] [--weights deit_tiny.safetensors --data flowers12]
"""

import argparse
import statistics
import tempfile
from typing import Any

from figures.record import figure, hand_in, make_parser

from unfreeze.load import load_config
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.run import run_sweep

BAR_S = 0.3  # `theirs`: what we hold ourselves to


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--weights", help="of DeiT-Tiny; without, the embedded model on the embedded digits")
    parser.add_argument("--data", help="a tree with train/<class>/ of images, with --weights")
    arguments = parser.parse_args()
    if (arguments.weights is None) != (arguments.data is None):
        parser.error("--weights and --data go together")
    with tempfile.TemporaryDirectory(prefix="unfreeze-bench-", ignore_cleanup_errors=True) as folder:
        config = load_config(settings(arguments, folder))
        run_sweep(config)
        records = Ledger(config.storage, config.sweep.name).trials()
    began = sorted(r.reports[0].timestamp_ms / 1000 - r.reports[0].seconds for r in records)
    ended = sorted(r.reports[-1].timestamp_ms / 1000 for r in records)
    gaps = [start - end for end, start in zip(ended, began[1:], strict=False)]
    name = "turnaround_deit" if arguments.weights else "turnaround"
    model = "deit_tiny_patch16_224, 112 px" if arguments.weights else "unfreeze_tiny"
    spread = {"largest": max(gaps), "gaps": len(gaps)}
    hand_in(name, [figure(name, statistics.median(gaps), BAR_S, "s", **spread, model=model)], arguments)


def settings(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """One slot, and always a next trial waiting for it; few steps, since the gaps are what is looked at."""
    raw: dict[str, Any] = {
        "sweep": {"name": "turnaround"},
        "storage": f"{folder}/runs",
        "tracking": {"uri": None},
        "cluster": {"num_slots": 1},
        "plasticity": {"num_pairs": 64, "bounds": False},
        "data": {"max_train_images": 200, "cache_dir": f"{folder}/cache"},
        "finetune": {"steps": 6, "batch_size": 16, "num_reports": 2},
        "search": {"num_trials": arguments.trials, "confirm_top": 0, "early_stopping": False},
    }
    if arguments.weights:
        raw["model"] = {"name": "deit_tiny_patch16_224", "weights": arguments.weights, "image_size": 112}
        raw["data"] |= {"name": "folder", "path": arguments.data, "source_path": arguments.data}
    return raw


if __name__ == "__main__":
    main()
