"""How far the cost model is off: predicted against measured seconds of a step and peak memory, per selection.

DeiT-Tiny's shape at 112 px, random weights. Seconds: calibrated as a dry run does, then each selection's step is
measured in the same process. Memory: each selection in a process of its own, that of the allocator on a GPU, on a CPU
the growth of the resident set. Validation is left out of both. The last line of output is one JSON object; `ratio` is
predicted / measured, so 1 is a perfect prediction.

    python ops/bench/cost.py [--batch-size 8] [--save]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from figures.record import figure, hand_in, make_parser

from unfreeze.components.selection import parse_selection
from unfreeze.config import FinetuneConfig, ModelConfig
from unfreeze.cost.calibrate import calibrate, measure_step
from unfreeze.cost.model import CostModel, activation_bytes
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_model

# None of them is calibrated on but the first and the last.
SELECTIONS = ("all", "mha", "fc1", "fc2", "ln1+ln2", "fc1@6-11", "mha@9-11", "none")
MEMORY_SELECTIONS = ("all", "mha", "ln1+ln2", "mha@9-11", "none")
# Blocks above it go back to the system when they are freed: the resident set is then what is alive.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, arguments.batch_size))
        return
    results = compare_seconds(arguments.batch_size) + compare_memory(arguments.batch_size)
    hand_in("cost", results, arguments, batch_size=arguments.batch_size)


def open_model(batch_size: int) -> tuple[WarmModel, CostModel]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = ModelConfig(name="deit_tiny_patch16_224", weights="random", image_size=112)
    base = build_model(config, num_classes=10, cache_dir=Path("unused"))
    finetune = FinetuneConfig(batch_size=batch_size, eval_batch_size=1)
    size = activation_bytes(finetune.precision, has_gpu=device.type == "cuda")
    return WarmModel(base, device), CostModel(base.facts, finetune, activation_bytes=size)


def compare_seconds(batch_size: int) -> list[dict[str, Any]]:
    warm, cost = open_model(batch_size)
    # The faster of two calibrations and of two looks: other programs only ever make a step slower.
    everything = parse_selection("all", num_blocks=warm.base.facts.num_blocks)
    times = [calibrate(warm, cost) for _ in range(2)]
    time = min(times, key=lambda found: found.seconds(cost.flops_per_step(everything)))
    lines = []
    for text in SELECTIONS:
        selection = parse_selection(text, num_blocks=warm.base.facts.num_blocks)
        predicted = time.seconds(cost.flops_per_step(selection))
        measured = min(measure_step(warm, text, cost, images=batch_size) for _ in range(2))
        lines.append(compare(f"seconds_{text}", predicted, measured, "s/step"))
    return lines


def compare_memory(batch_size: int) -> list[dict[str, Any]]:
    _, cost = open_model(batch_size)
    lines = []
    for text in MEMORY_SELECTIONS:
        predicted = cost.memory(parse_selection(text, num_blocks=cost.model.num_blocks)).peak
        command = [sys.executable, __file__, "--memory-of", text, "--batch-size", str(batch_size)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **_ENVIRONMENT})
        measured = int(answer.stdout.split()[-1])
        lines.append(compare(f"memory_{text}", predicted / 2**20, measured / 2**20, "MiB"))
    return lines


def measure_memory(selection: str, batch_size: int) -> int:
    """Bytes that a model and its training steps add to this process, or to its GPU."""
    open_model(batch_size)  # imports, thread pools: not the trial's
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over: imports had one of their own
    warm, cost = open_model(batch_size)
    measure_step(warm, selection, cost, images=batch_size)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """Of this process: now (``VmRSS``), or at its peak (``VmHWM``; `getrusage` would give the parent's, if larger)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def compare(name: str, predicted: float, measured: float, unit: str) -> dict[str, Any]:
    """``ours`` is the prediction, ``theirs`` the measurement, ``ratio`` the one over the other."""
    print(f"{name}: predicted {predicted:.4g}, measured {measured:.4g} {unit}", flush=True)
    return figure(name, predicted, measured, unit, more_is_better=True, ratio_is="predicted / measured, 1 is perfect")


if __name__ == "__main__":
    main()
