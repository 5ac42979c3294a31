"""What plasticity costs: our estimator against a plain implementation of the paper's algorithm (arXiv 2602.06883).

The plain one feeds both images through every component of every block (attention unfused, FC2 on zero-padded tokens),
keeps all outputs of a batch in host memory, and takes the norms of their differences at the end. Same model, same
batches, one process, turn about. Then: our estimator until the order of the components is settled against the paper's
100 batches of 128 pairs; and groups of cross pairs against plain pairs. The last line of output is one JSON object.

    python ops/bench/prepass.py [--batches 3] [--batch-size 8] [--save]
        [--name deit_tiny_patch16_224 --weights FILE --source FOLDER --target FOLDER]

Without weights and images the second part measures the embedded model on the embedded digits, whose record is
`prepass_digits`. The published figures are of 6 batches.
"""

import argparse
import ctypes
import gc
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from figures.record import figure, hand_in, make_parser
from torch import Tensor, nn

from unfreeze.config import Config, DataConfig, ModelConfig, PlasticityConfig
from unfreeze.data.pixels.batches import eval_view
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import load_source, load_train_val
from unfreeze.models.build import build_model, input_size
from unfreeze.plasticity.estimator import Estimator
from unfreeze.plasticity.local import measure_plasticity
from unfreeze.records import COMPONENTS, PlasticityTable

PAPER_PAIRS = 100 * 128


def plain_rates(module: nn.Module, images: tuple[Tensor, Tensor]) -> np.ndarray:
    """The paper's algorithm on one batch of source and target images (B, 3, H, W): float32 (B, blocks, components)."""
    embedded = [module.norm_pre(module._pos_embed(module.patch_embed(half))) for half in images]
    device = embedded[0].device
    kept: list[list[dict[str, Tensor]]] = []
    for tokens in embedded:
        kept.append([])
        for block in module.blocks:
            padded = F.pad(tokens, (0, block.mlp.fc2.in_features - tokens.shape[-1]))
            outputs = {
                "ln1": block.norm1(tokens),
                "mha": block.attn(tokens),
                "ln2": block.norm2(tokens),
                "fc1": block.mlp.fc1(tokens),
                "fc2": block.mlp.fc2(padded),
            }
            kept[-1].append({name: output.cpu() for name, output in outputs.items()})
    distance = (embedded[0] - embedded[1]).flatten(1).norm(dim=1)
    rates = [
        torch.stack(
            [(x[name].to(device) - y[name].to(device)).flatten(1).norm(dim=1) / distance for name in COMPONENTS]
        )
        for x, y in zip(*kept, strict=True)
    ]
    return torch.stack(rates).permute(2, 0, 1).cpu().numpy()


def set_fused(module: nn.Module, fused: bool) -> None:
    for block in module.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = fused


class Sides:
    """Both estimators on the same model and pairs."""

    def __init__(self, module: nn.Module, spec: InputSpec, parts: tuple[Part, Part], config: PlasticityConfig) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module, self.spec = module, spec
        self.estimator = Estimator(module, spec, *parts, config, device=self.device)

    def ours(self, index: int) -> np.ndarray:
        set_fused(self.module, True)
        return self.estimator.rates(self.estimator.load(index)).observations["reference"]

    def plain(self, index: int) -> np.ndarray:
        set_fused(self.module, False)
        source, target = self.estimator.load(index)
        with torch.no_grad():
            return plain_rates(self.module, (eval_view(source, self.spec), eval_view(target, self.spec)))


def clock(action: Callable[[int], np.ndarray], index: int) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    rates = action(index)  # both end with their numbers on the host, so a GPU is done too
    return time.perf_counter() - started, rates


def peak_bytes(action: Callable[[int], np.ndarray]) -> int:
    """Memory that one batch takes on top of what was held before it: of the GPU, or of this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action(0)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from here
    before = _status_bytes("VmRSS")
    action(0)
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def per_pair(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """ViT-B/16 at 224 px, random weights and images: seconds per pair, peak memory, largest difference."""
    torch.manual_seed(0)
    module = timm.create_model("vit_base_patch16_224", num_classes=10).eval()
    spec = InputSpec(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    count = arguments.batches * arguments.batch_size
    rng = np.random.default_rng(0)
    source, target = (
        Part(make_array(rng.integers(0, 256, (count, 224, 224, 3), dtype=np.uint8), np.zeros(count)), np.arange(count))
        for _ in range(2)
    )
    config = PlasticityConfig(modes=["reference"], num_pairs=count, batch_size=arguments.batch_size, bounds=False)
    sides = Sides(module, spec, (source, target), config)
    sides.plain(0)  # warm up
    first_s, _ = clock(sides.ours, 0)  # the Gram matrices of the weights are made here
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    difference = 0.0
    for index in range(arguments.batches):
        plain_s, expected = clock(sides.plain, index)
        ours_s, rates = clock(sides.ours, index)
        seconds["plain"].append(plain_s / len(rates))
        seconds["ours"].append(ours_s / len(rates))
        difference = max(difference, float(np.abs(rates / expected - 1).max()))
        print(f"batch {index}: plain {plain_s:.2f} s, ours {ours_s:.2f} s, {plain_s / ours_s:.2f} ×", flush=True)
    ours, plain = float(np.median(seconds["ours"])), float(np.median(seconds["plain"]))
    setup_s = max(0.0, first_s - ours * arguments.batch_size)
    print(f"setting up ours, once per model: {setup_s:.2f} s")

    def from_nothing(index: int) -> np.ndarray:  # what is set up counts as memory of ours
        return Sides(module, spec, (source, target), config).ours(index)

    sides = Sides(module, spec, (source, target), config)
    memory = {"ours": peak_bytes(from_nothing), "plain": peak_bytes(sides.plain)}
    print(f"peak memory of one batch: plain {memory['plain'] / 2**20:.0f} MiB, ours {memory['ours'] / 2**20:.0f} MiB")
    results = [
        figure(
            "prepass_per_pair",
            ours,
            plain,
            "s/pair",
            largest_relative_difference=difference,
            setup_s=setup_s,
            ratio_over_32_pairs_with_setup=plain / (ours + setup_s / 32),
        ),
        figure("prepass_memory", memory["ours"] / 2**20, memory["plain"] / 2**20, "MiB beyond the model"),
    ]
    if sides.device.type == "cuda":
        results += _on_gpu(arguments, module, spec, (source, target), ours, plain)
    return results


def _on_gpu(
    arguments: argparse.Namespace,
    module: nn.Module,
    spec: InputSpec,
    parts: tuple[Part, Part],
    ours: float,
    plain: float,
) -> list[dict[str, Any]]:
    """bfloat16 besides, and the share of the card's own matmul rate that the needed operations reach."""
    n, d, blocks = 197, 768, 12
    # Multiply-adds twice: qkv and attention of two images, one output projection, one Gram matrix.
    flops = 2 * (blocks * (2 * (3 * n * d * d + 2 * n * n * d) + n * d * d) + n * d * d + 2 * blocks * d * d)
    results = []
    for precision, seconds in (("float32", ours), ("bfloat16", None)):
        if seconds is None:
            config = PlasticityConfig(
                modes=["reference"],
                num_pairs=arguments.batches * arguments.batch_size,
                batch_size=arguments.batch_size,
                bounds=False,
                precision="bfloat16",
            )
            sides = Sides(module, spec, parts, config)
            sides.ours(0)
            seconds = float(np.median([clock(sides.ours, i)[0] for i in range(arguments.batches)])) / config.batch_size
        rate = _matmul_rate(getattr(torch, precision))
        share = flops / seconds / rate
        results.append(figure(f"prepass_per_pair_{precision}", seconds, plain, "s/pair", share_of_matmul_rate=share))
    return results


def _matmul_rate(dtype: torch.dtype) -> float:
    """Operations per second of one large matrix product."""
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    a @ a
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        a @ a
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - started)


def settled(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Until the order is settled, against the paper's number of pairs at the plain cost; and cross pairs."""
    config = Config()
    if arguments.weights:
        config.model = ModelConfig(name=arguments.name, weights=arguments.weights)
        config.data = DataConfig(name="folder", path=arguments.target, source_path=arguments.source)
    size = input_size(config.model)
    data = load_train_val(config.data, image_size=size)
    source = load_source(config.data, image_size=size)
    base = build_model(config.model, num_classes=len(data.classes), cache_dir=Path(config.data.cache_dir))

    def measure(**options: Any) -> tuple[float, PlasticityTable]:
        set_fused(base.module, True)
        settings = PlasticityConfig(**{"modes": ["reference"], "bounds": False, **options})
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        started = time.perf_counter()
        table = measure_plasticity(
            base.module, base.spec, source, data.train, settings, device=device, model_digest=base.facts.digest
        )
        return time.perf_counter() - started, table

    measure(num_pairs=32)  # warm up
    sides = Sides(base.module, base.spec, (source, data.train), PlasticityConfig(modes=["reference"], bounds=False))
    plain = float(np.median([clock(sides.plain, index)[0] for index in range(3)])) / sides.estimator.config.batch_size
    seconds, table = measure(batch_size=16)
    ranking, num_pairs = table.ranking("reference"), table.rows[0].num_pairs
    print(f"{ranking} after {num_pairs} pairs, {seconds:.2f} s: {table.stopped['reference']}", flush=True)
    results = [
        figure(
            "prepass_settled",
            seconds,
            plain * PAPER_PAIRS,
            "s to the ranking",
            model=config.model.name,
            pairs=num_pairs,
            fewer_pairs=PAPER_PAIRS / num_pairs,
            faster_per_pair=plain * num_pairs / seconds,
            plain_seconds_are="3 batches of 32 pairs, extrapolated",
            ranking=str(ranking),
            stopped=table.stopped["reference"],
        )
    ]
    return results + _cross_pairs(measure)


def _cross_pairs(measure: Callable[..., tuple[float, PlasticityTable]]) -> list[dict[str, Any]]:
    """What a second buys: 1 / (variance of a component's mean × seconds), groups of c × c pairs against plain pairs."""
    best_s: dict[int, float] = {}
    tables: dict[int, PlasticityTable] = {}
    for c in (1, 2, 4, 8) * 2:  # turn about, the faster of two
        seconds, tables[c] = measure(cross=c, stop_early=False, num_pairs=512 * c, batch_size=32)
        best_s[c] = min(seconds, best_s.get(c, math.inf))
    efficiency, detail = {}, {}
    for c, table in tables.items():
        rows = [row for row in table.rows if row.block is None]
        groups = rows[0].num_pairs // c**2
        relative = [(row.sd / row.mean) ** 2 / groups for row in rows]
        variance = math.exp(sum(math.log(value) for value in relative) / len(relative))
        efficiency[c] = 1 / (variance * best_s[c])
        detail[c] = {"pairs": rows[0].num_pairs, "seconds": best_s[c], "relative_error": variance**0.5}
        print(f"cross={c}: {rows[0].num_pairs} pairs in {best_s[c]:.2f} s, relative error {100 * variance**0.5:.3f} %")
    best = max((c for c in efficiency if c > 1), key=lambda c: efficiency[c])
    return [figure("prepass_cross_pairs", 1 / efficiency[best], 1 / efficiency[1], "s × variance", by_c=detail)]


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--name", default="deit_tiny_patch16_224", help="of the model, with --weights")
    parser.add_argument("--weights")
    parser.add_argument("--source")
    parser.add_argument("--target")
    arguments = parser.parse_args()
    given = [arguments.weights, arguments.source, arguments.target]
    if any(given) and not all(given):
        parser.error("--weights, --source and --target go together")
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(os.cpu_count() or 1)
    name = "prepass" if arguments.weights else "prepass_digits"
    hand_in(name, per_pair(arguments) + settled(arguments), arguments)


if __name__ == "__main__":
    main()
