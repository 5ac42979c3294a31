"""Images per second of the training pipeline alone: ours in batches against torchvision's, image by image.

Random resized crop to 224 px, flip, normalisation. Theirs is the usual per-image chain on PIL images in the main
process; ours starts from the same pixels as uint8. The last line of output is one JSON object.

    python ops/bench/pipeline.py [--side 32] [--images 512] [--batch-size 64] [--save]
"""

import os
import time
from collections.abc import Callable

import numpy as np
import torch
from figures.record import figure, hand_in, make_parser
from PIL import Image
from torchvision import transforms

from unfreeze.data.pixels.batches import TrainBatches
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part

SPEC = InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
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
    name = f"pipeline_{arguments.side}px"
    result = figure(name, rates["ours"], rates["theirs"], "images/s", more_is_better=True, source_side=arguments.side)
    hand_in(name, [result], arguments)


if __name__ == "__main__":
    main()
