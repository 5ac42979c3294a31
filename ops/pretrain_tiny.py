"""How the shipped weights were made: `python ops/pretrain_tiny.py [--out DIR]`.

Trains `unfreeze_tiny` from scratch on rendered glyphs, on one CPU thread, and writes

    tiny_vit.safetensors   float16 state dict, the classifier over the 38 glyphs included (key `head`)
    tiny_vit.json          every setting, versions, seconds, held-out accuracy, sha256 of the weights

to DIR, by default where the package looks for them. How exact a second run is: with the versions in the JSON and a CPU
of the same instruction set (`cpu_capability`) the weights are the same bytes; elsewhere the order of floating-point
sums differs, and only the accuracy agrees, within its sampling error.

Loading: `timm.create_model("unfreeze_tiny", pretrained=True, num_classes=N)` after importing `unfreeze.models.tiny`;
timm drops the classifier when N is not 38.
"""

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import Tensor, nn

from unfreeze.data.sets.embedded import render_glyphs
from unfreeze.models.tiny import tiny_weights_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The settings of the pretraining; the defaults are those of the shipped weights."""

    model: str = "unfreeze_tiny"
    # Xavier uniform: 34.7 % after two epochs at learning rate 1e-3, against 22.8 % at 2e-3 from timm's N(0, 0.02) (a
    # pilot with 48 classes).
    weight_init: str = "jax"
    image_size: int = 32  # pixels
    num_train_images: int = 19_200
    train_data_seed: int = 1
    num_held_out_images: int = 9_500
    held_out_data_seed: int = 2
    seed: int = 0  # initial weights, order of the images, augmentation
    num_threads: int = 1  # more would change the order of the sums
    optimizer: str = "adamw"
    learning_rate: float = 3e-3  # peak; linear warm-up, then cosine to 0
    weight_decay: float = 0.05  # on matrices only
    warmup_share: float = 0.05  # of the steps
    clip_norm: float = 1.0
    epochs: int = 4  # short on purpose: finetuning should have something to gain
    batch_size: int = 64
    max_shift: int = 1  # augmentation: translation drawn anew per image and epoch, pixels


def main() -> None:
    """Pretrain, save, measure what was saved, write down how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=tiny_weights_path().parent, help="folder of the two files")
    pretrain(Recipe(), parser.parse_args().out)


def pretrain(recipe: Recipe, folder: Path) -> dict[str, object]:
    """Run ``recipe`` and write the two files to ``folder``; returns the JSON's content."""
    torch.set_num_threads(recipe.num_threads)
    torch.manual_seed(recipe.seed)
    images, labels, classes = render_glyphs(
        recipe.num_train_images, image_size=recipe.image_size, seed=recipe.train_data_seed
    )
    model = timm.create_model(recipe.model, num_classes=len(classes), weight_init=recipe.weight_init)
    start = time.perf_counter()
    _train(model, torch.from_numpy(images), torch.from_numpy(labels), recipe)
    train_s = time.perf_counter() - start

    folder.mkdir(parents=True, exist_ok=True)
    weights_path = folder / tiny_weights_path().name
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, weights_path)

    model.load_state_dict(load_file(weights_path))  # measured after the rounding to float16
    held_out_images, held_out_labels, _ = render_glyphs(
        recipe.num_held_out_images, image_size=recipe.image_size, seed=recipe.held_out_data_seed
    )
    record = {
        "recipe": asdict(recipe),
        "classes": "".join(classes),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out_accuracy": accuracy(model, held_out_images, held_out_labels),
        "held_out_num_images": recipe.num_held_out_images,
        "train_s": round(train_s, 1),
        "weights_sha256": hashlib.sha256(weights_path.read_bytes()).hexdigest(),
        "weights_size_bytes": weights_path.stat().st_size,
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "pillow", "matplotlib")},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    weights_path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return record


@torch.inference_mode()
def accuracy(model: VisionTransformer, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of ``images``, uint8 (N, H, W, 3), that ``model`` classifies as ``labels``, (N,)."""
    model.eval()
    num_correct = 0
    for batch, target in zip(torch.from_numpy(images).split(512), torch.from_numpy(labels).split(512), strict=True):
        num_correct += int((model(_normalize(batch, model)).argmax(dim=1) == target).sum())
    return num_correct / len(labels)


def _train(model: VisionTransformer, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    steps_per_epoch = len(images) // recipe.batch_size
    num_steps = recipe.epochs * steps_per_epoch
    num_warmup = max(1, round(recipe.warmup_share * num_steps))

    def scale(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return 0.5 * (1 + float(np.cos(np.pi * (step - num_warmup) / (num_steps - num_warmup))))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    generator = torch.Generator().manual_seed(recipe.seed)
    model.train()
    for epoch in range(recipe.epochs):
        loss_sum, num_correct = 0.0, 0
        order = torch.randperm(len(images), generator=generator)[: steps_per_epoch * recipe.batch_size]
        for index in order.split(recipe.batch_size):
            batch, target = _shift(images[index], recipe.max_shift, generator), labels[index]
            logits = model(_normalize(batch, model))
            loss = F.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            scheduler.step()
            loss_sum += loss.item() * len(index)
            num_correct += int((logits.argmax(dim=1) == target).sum())
        mean_loss, share_correct = loss_sum / len(order), num_correct / len(order)
        print(f"epoch {epoch + 1}: loss {mean_loss:.3f}, accuracy {share_correct:.4f}", flush=True)


def _normalize(images: Tensor, model: VisionTransformer) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W), with the mean and deviation of the model's own configuration."""
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _shift(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Each image of (N, H, W, 3) moved by up to ``max_shift`` pixels in both directions, black moving in."""
    num_images, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, max_shift, max_shift, max_shift, max_shift))
    down, right = torch.randint(2 * max_shift + 1, (2, num_images, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    return padded[torch.arange(num_images)[:, None, None], rows[:, :, None], columns[:, None, :]]


if __name__ == "__main__":
    main()
