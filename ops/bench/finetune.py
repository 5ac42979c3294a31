"""Finetuning: images per second and peak memory by selection, against a plain loop of the paper's shape.

The plain loop trains everything: images decoded and cropped one by one with PIL in the main process, attention unfused,
float32, a gradient for every tensor. On a CPU: DeiT-Tiny at 224 px, batch 32; without weights and images the embedded
model on the embedded digits, whose memory is too little to measure. With a GPU: ViT-B/16, 32-px uint8 images, bfloat16,
also against the same model on random tensors that already lie on the device. All in one run, turn about, the faster of
two; the last line of output is one JSON object.

    python ops/bench/finetune.py [--weights deit_tiny.safetensors --data flowers12] [--steps 4] [--save]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from figures.record import figure, hand_in, make_parser
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from unfreeze.components.selection import parse_selection
from unfreeze.config import DataConfig, FinetuneConfig, ModelConfig
from unfreeze.cost.model import CostModel, activation_bytes
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets import catalog
from unfreeze.data.sets.catalog import load_train_val
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.prefix import PrefixCache
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_model
from unfreeze.records import TrialSpec

RATE = 0.01
SELECTIONS = ("all", "mha", "mha@9-11")
EMBEDDED_SELECTIONS = ("all", "mha", "mha@4-5")  # it has 6 blocks
MEMORY_SELECTIONS = ("all", "mha", "ln1+ln2")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def main() -> None:
    arguments = parse()
    if arguments.memory:
        print(json.dumps(measure_memory(arguments, arguments.memory)))
        return
    torch.set_num_threads(os.cpu_count() or 1)
    runs = gpu_runs(arguments) if CUDA else cpu_runs(arguments)
    rates: dict[str, float] = {}
    for name, run in [*runs.items()] * 2:
        rates[name] = max(run(), rates.get(name, 0.0))
        print(f"{name}: {rates[name]:.1f} images/s", flush=True)
    plain = rates.pop("plain")
    results = [
        figure(name, rate, plain, "images/s", more_is_better=True)
        for name, rate in rates.items()
        if not name.startswith("tensors")
    ]
    if CUDA:
        ceiling = rates["tensors_all"]
        results.append(figure("of_random_tensors", rates["all"], ceiling, "images/s", more_is_better=True))
    if not arguments.embedded:
        results += memory_results(arguments)
    settings = {"torch": torch.__version__, "batch_size": arguments.batch_size, "steps": arguments.steps}
    hand_in("finetune_digits" if arguments.embedded else "finetune", results, arguments, **settings)


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--weights", help="of DeiT-Tiny (CPU) or ViT-B/16 (GPU)")
    parser.add_argument("--data", help="a tree with train/<class>/ of images; CPU only")
    parser.add_argument("--steps", type=int, help="optimizer steps that are timed, after as many to warm up")
    parser.add_argument("--batch-size", type=int, default=512 if CUDA else 32)
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # one selection, in a process of its own
    arguments = parser.parse_args()
    arguments.embedded = not CUDA and arguments.weights is None and arguments.data is None
    if not CUDA and (arguments.weights is None) != (arguments.data is None):
        parser.error("--weights and --data go together")
    arguments.steps = arguments.steps or (20 if arguments.embedded else 4)
    return arguments


# --- ours -------------------------------------------------------------------------------------------------------------


def build(arguments: argparse.Namespace, num_classes: int) -> WarmModel:
    if arguments.embedded:
        config = ModelConfig()
    else:
        name = "vit_base_patch16_224" if CUDA else "deit_tiny_patch16_224"
        config = ModelConfig(name=name, weights=arguments.weights or "random")
    return WarmModel(build_model(config, num_classes=num_classes, cache_dir=Path("unused")), DEVICE)


def load(arguments: argparse.Namespace, cache_dir: str) -> catalog.Dataset:
    """Training images, and two for validation, whose cost is not to be seen."""
    if CUDA:
        pixels = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8)
        part = Part(make_array(pixels, np.arange(len(pixels)) % 10), np.arange(len(pixels)))
        data = catalog.Dataset(tuple("0123456789"), part, part, num_test=0, digest="", bad_files=())
    elif arguments.embedded:
        data = load_train_val(DataConfig(cache_dir=cache_dir), image_size=32)
    else:
        data = load_train_val(DataConfig(name="folder", path=arguments.data, cache_dir=cache_dir), image_size=224)
    few = Part(data.val.array, data.val.indices[:2])
    return catalog.Dataset(data.classes, data.train, few, num_test=0, digest=data.digest, bad_files=())


def train(
    warm: WarmModel, data: catalog.Dataset, arguments: argparse.Namespace, selection: str, cache: PrefixCache | None
) -> float:
    """Images per second of the second half of a trial's steps."""
    config = FinetuneConfig(steps=2 * arguments.steps, batch_size=arguments.batch_size, num_reports=2)
    trial = TrialSpec(index=0, selection=selection, learning_rate=RATE, seed=0, origin="bench")
    augment = "none" if cache else "crop_flip"
    reports = [p.reports[-1] for p in finetune(warm, data, trial, config, augment=augment, prefixes=cache)]
    return arguments.steps * arguments.batch_size / (reports[1].seconds - reports[0].seconds)


# --- the plain loop ---------------------------------------------------------------------------------------------------


def plain_rate(module: nn.Module, loader: Iterator[tuple[Tensor, Tensor]], steps: int) -> float:
    """Images per second of a loop that trains everything, after as many steps to warm up."""
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9)
    seen, started = 0, 0.0
    for step, (images, labels) in enumerate(loader):
        if step == steps:
            wait()
            seen, started = 0, time.perf_counter()
        if step == 2 * steps:
            break
        loss = F.cross_entropy(module(images.to(DEVICE)), labels.to(DEVICE))
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += len(images)
    wait()
    return seen / (time.perf_counter() - started)


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def chain(spec: InputSpec) -> transforms.Compose:
    steps = [transforms.RandomResizedCrop(spec.image_size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(spec.mean, spec.std)])


class Pictures(Dataset):
    """Images in memory, transformed one by one when asked for."""

    def __init__(self, part: Part, spec: InputSpec) -> None:
        self._part, self._chain = part, chain(spec)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = transforms.functional.to_pil_image(self._part.take(np.array([index]))[0])
        return self._chain(picture), int(self._part.labels[index])


def repeat(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


# --- what is run ------------------------------------------------------------------------------------------------------


def cpu_runs(arguments: argparse.Namespace) -> dict[str, Callable[[], float]]:
    folder = tempfile.mkdtemp(prefix="unfreeze-bench-")
    data = load(arguments, folder)
    warm = build(arguments, len(data.classes))
    cache = PrefixCache(Path(folder) / "prefix", 2**34, {})

    def plain() -> float:
        own = build(arguments, len(data.classes))
        spec = own.base.spec
        if arguments.embedded:
            pictures: Dataset = Pictures(data.train, spec)
        else:
            pictures = ImageFolder(str(Path(arguments.data) / "train"), transform=chain(spec))
        loader = DataLoader(pictures, batch_size=arguments.batch_size, shuffle=True, drop_last=True)
        return plain_rate(own.module, repeat(loader), arguments.steps)

    runs: dict[str, Callable[[], float]] = {"plain": plain}
    selections = EMBEDDED_SELECTIONS if arguments.embedded else SELECTIONS
    for selection in selections:
        runs[selection] = lambda selection=selection: train(warm, data, arguments, selection, None)
    runs[f"{selections[-1]}_cached"] = lambda: train(warm, data, arguments, selections[-1], cache)
    return runs


def gpu_runs(arguments: argparse.Namespace) -> dict[str, Callable[[], float]]:
    data = load(arguments, "unused")
    warm = build(arguments, len(data.classes))
    spec = warm.base.spec

    def plain() -> float:
        own = build(arguments, len(data.classes))
        loader = DataLoader(Pictures(data.train, spec), batch_size=128, shuffle=True, drop_last=True)
        return plain_rate(own.module, repeat(loader), arguments.steps)

    def tensors() -> float:
        """Ours with the pipeline taken out: the batches are random tensors on the device."""
        from unfreeze.data.pixels.batches import TrainBatches

        images = torch.randn(arguments.batch_size, 3, spec.image_size, spec.image_size, device=DEVICE)
        labels = torch.zeros(arguments.batch_size, dtype=torch.int64, device=DEVICE)
        whole = TrainBatches.iterate
        TrainBatches.iterate = lambda self, first, end: ((images, labels) for _ in range(first, end))  # type: ignore[method-assign, assignment, misc]
        try:
            return train(warm, data, arguments, "all", None)
        finally:
            TrainBatches.iterate = whole  # type: ignore[method-assign]

    runs: dict[str, Callable[[], float]] = {"plain": plain, "tensors_all": tensors}
    for selection in SELECTIONS:
        runs[selection] = lambda selection=selection: train(warm, data, arguments, selection, None)
    return runs


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_results(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory beyond model and data, each selection in a process of its own, against `all`.

    On the host, what the allocator holds back for later is no part of it: there it gives freed memory back at once.
    """
    peaks, predicted = {}, {}
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for selection in MEMORY_SELECTIONS:
        command = [sys.executable, __file__, "--memory", selection, "--batch-size", str(arguments.batch_size)]
        for option in ("weights", "data"):
            given = getattr(arguments, option)
            command += [f"--{option}", given] if given else []
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        measured = json.loads(output.splitlines()[-1])
        peaks[selection], predicted[selection] = measured["peak_mib"], measured["predicted_mib"]
        print(f"{selection}: {peaks[selection]:.0f} MiB beyond model and data, predicted {predicted[selection]:.0f}")
    return [
        figure(f"peak_memory_{name}", peak, peaks["all"], "MiB", of_all=peak / peaks["all"], predicted=predicted[name])
        for name, peak in peaks.items()
    ]


def measure_memory(arguments: argparse.Namespace, selection: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data = load(arguments, folder)
        warm = build(arguments, len(data.classes))
        config = FinetuneConfig(steps=2, batch_size=arguments.batch_size, num_reports=1, eval_batch_size=2)
        trial = TrialSpec(index=0, selection=selection, learning_rate=RATE, seed=0, origin="bench")
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            data.train.take(np.arange(len(data.train)))  # the mapped images count as memory once they were read
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            before = memory_kib("VmRSS") * 1024
        list(finetune(warm, data, trial, config, augment="crop_flip"))
        peak = torch.cuda.max_memory_allocated() if CUDA else memory_kib("VmHWM") * 1024
    cost = CostModel(warm.base.facts, config, activation_bytes("auto", has_gpu=CUDA))
    predicted = cost.memory(parse_selection(selection, num_blocks=12))
    predicted_mib = (predicted.peak - predicted.weights) / 2**20
    return {"selection": selection, "peak_mib": (peak - before) / 2**20, "predicted_mib": predicted_mib}


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


if __name__ == "__main__":
    main()
