"""A machine's speed, from a few measured optimizer steps: what turns the cost model's FLOPs into seconds."""

import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from unfreeze.components.selection import parse_selection
from unfreeze.cost.model import CostModel, StepTime, fit_step_time
from unfreeze.finetune.network import make_autocast
from unfreeze.finetune.optim import make_optimizer
from unfreeze.finetune.parallel import Worker, make_network
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import parameter_dict

# The most and the least that a step can compute; what lies between is read off the line through both.
_MEASURED = ("all", "none")
# A step of more tells nothing new; on a CPU it takes minutes, a GPU with fewer is not yet busy.
_MOST_IMAGES = {"cpu": 16, "cuda": 128}


def calibrate(warm: WarmModel, cost: CostModel) -> StepTime:
    """Overhead and rate of this process on ``warm``'s device; takes six steps of at most 16 images (GPU: 128)."""
    micro = cost.config.micro_batch_size or cost.images_per_worker
    images = min(cost.images_per_worker, micro, _MOST_IMAGES[warm.device.type])
    # What is measured: the whole model, none of it from a cache, and its head trained.
    whole = replace(cost, config=replace(cost.config, prefix_cache_gib=0.0, train_head=True))
    points = []
    for text in _MEASURED:
        selection = parse_selection(text, num_blocks=warm.base.facts.num_blocks)
        points.append((whole.flops(selection).total * images, measure_step(warm, text, whole, images=images)))
    return fit_step_time(points)


def measure_step(warm: WarmModel, selection: str, cost: CostModel, *, images: int) -> float:
    """Seconds of one optimizer step on random images: the faster of two, after one to warm up."""
    config, device, size = cost.config, warm.device, warm.base.facts.image_size
    _, names = warm.prepare(selection, seed=0, train_head=True, lora_alpha=config.lora_alpha)
    trained = parameter_dict(warm.module, names)
    optimizer, _ = make_optimizer(trained, config, num_blocks=warm.base.facts.num_blocks)
    network = make_network(warm.module, config, start=0, worker=Worker()).train()
    autocast = make_autocast(config.precision, device)
    inputs = torch.randn(images, 3, size, size, device=device)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        with autocast:
            logits = network(inputs)
        F.cross_entropy(logits.float(), labels).backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
