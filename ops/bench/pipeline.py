"""Images per second of the training pipeline alone: ours in batches against torchvision's, image by image.

Random resized crop to 224 px, flip, normalisation. Theirs is the usual per-image chain on PIL images in the main
process; ours starts from the same pixels as uint8. The last line of output is one JSON object.

    python ops/bench/pipeline.py [--side 32] [--images 2000] [--batch-size 64]
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from unfreeze.data.pixels.batches import TrainBatches
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part

RESULTS = Path(__file__).parent / "results"
SPEC = InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (arguments.images, arguments.side, arguments.side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    part = Part(make_array(pixels, np.zeros(len(pixels))), np.arange(len(pixels)))
    batches = TrainBatches(part, SPEC, arguments.batch_size, seed=0, augment="crop_flip", device=device)
    pictures = [Image.fromarray(image) for image in pixels]
    chain = transforms.Compose(
        [
            transforms.RandomResizedCrop(SPEC.image_size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(SPEC.mean, SPEC.std),
        ]
    )
    steps = arguments.images // arguments.batch_size

    def ours(num_steps: int) -> None:
        for step in range(num_steps):
            batches.get(step)

    def theirs(num_steps: int) -> None:
        for step in range(num_steps):
            chosen = range(step * arguments.batch_size, (step + 1) * arguments.batch_size)
            torch.stack([chain(pictures[index]) for index in chosen]).to(device)

    def seconds(run: Callable[[int], None], num_steps: int) -> float:
        """Until the last batch is on the device."""
        started = time.perf_counter()
        run(num_steps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    rates: dict[str, float] = {}
    for run in (ours, theirs):
        seconds(run, 2)  # kernels loaded, pinned memory taken
    for name, run in (("ours", ours), ("theirs", theirs)) * 3:  # turn about, the fastest of three
        rate = steps * arguments.batch_size / seconds(run, steps)
        rates[name] = max(rate, rates.get(name, 0.0))
        print(f"{name}: {rate:.0f} images/s", flush=True)
    result = {
        "name": "pipeline",
        "date": datetime.date.today().isoformat(),
        "ours": round(rates["ours"]),
        "theirs": round(rates["theirs"]),
        "unit": "images/s",
        "ratio": round(rates["ours"] / rates["theirs"], 2),
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "source_side": arguments.side,
    }
    (RESULTS / f"pipeline_{arguments.side}px.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
