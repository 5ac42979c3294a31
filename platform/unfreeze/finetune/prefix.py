"""Activations below the lowest trained block, computed once per node and shared by all trials that start there.

Between trials the base weights are the same, so where a selection's lowest trained block is k and an image comes back
as it was (no augmentation, or a fixed number of views), the tokens that enter block k never change.
"""

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.components.structure import is_divisible, reads_first_token
from unfreeze.config import Config
from unfreeze.data.pixels.batches import TrainBatches, training_views
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.keys import digest_of, specification
from unfreeze.data.pixels.part import Part
from unfreeze.data.pixels.prefetch import Batch, prefetched
from unfreeze.data.sets.catalog import Dataset
from unfreeze.finetune.network import Network, embed, has_randomness
from unfreeze.records import ModelFacts

logger = logging.getLogger(__name__)

# Images per forward pass. Fixed, because rounding depends on it: whoever fills a chunk stores the same bits.
_CHUNK = 32
_EMBEDDING = ("patch_embed", "pos_drop", "patch_drop", "norm_pre")  # what comes before the blocks, parameters aside


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that enter block ``start``: (images × views, N, width), mapped from the node's disk."""

    start: int
    batches: TrainBatches
    train: Tensor
    val: Tensor

    def iterate(self, first_step: int, num_steps: int) -> Generator[Batch]:
        """What `TrainBatches.iterate` gives, with tokens in place of images."""
        batches, num_views = self.batches, max(self.batches.num_views, 1)

        def each() -> Generator[Batch]:
            for step in range(first_step, num_steps):
                positions, views = batches.positions(step)
                rows = torch.from_numpy(positions * num_views + views)
                labels = torch.from_numpy(batches.part.labels[positions])
                yield _to_device(self.train[rows], batches.device), labels.to(batches.device, non_blocking=True)

        return prefetched(each(), batches.device, streams=False)

    def val_batches(
        self, part: Part, spec: InputSpec, *, batch_size: int, device: torch.device, rank: int, world_size: int
    ) -> Generator[Batch]:
        """What `eval_batches` gives, with tokens in place of images."""

        def each() -> Generator[Batch]:
            labels = torch.from_numpy(part.labels)
            for rows in torch.arange(rank, len(part), world_size).split(batch_size):
                yield _to_device(self.val[rows], device), labels[rows].to(device, non_blocking=True)

        return prefetched(each(), device, streams=False)


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """A node's store of prefixes, below ``folder``, at most ``max_bytes`` of them."""

    folder: Path
    max_bytes: int
    options: dict[str, Any]  # what of the configuration the tokens depend on

    def open(
        self,
        module: nn.Module,
        data: Dataset,
        batches: TrainBatches,
        *,
        start: int,
        facts: ModelFacts,
        autocast: torch.autocast,
    ) -> Prefix | None:
        """The prefix of block ``start``, filled; None where there is none to cache or it does not fit.

        Workers of a trial that share a node share the work.
        """
        if start == 0:
            return None
        if not is_divisible(module):
            logger.warning("finetune.prefix_cache_gib has no effect: %s cannot be taken apart at a block", facts.name)
            return None
        below = [getattr(module, name) for name in _EMBEDDING] + list(module.blocks[:start])  # type: ignore[index]
        if any(map(has_randomness, below)):
            logger.warning("finetune.prefix_cache_gib has no effect: dropout makes other activations at each step")
            return None
        spec, device, num_views = batches.spec, batches.device, max(batches.num_views, 1)
        one = _tokens_of_one(module, spec, start, autocast, device)
        needed = (len(data.train) * num_views + len(data.val)) * one.numel() * one.element_size()
        if needed > self.max_bytes:
            logger.warning(
                "the tokens that enter block %d take %.1f GiB, above finetune.prefix_cache_gib: they are computed anew",
                start,
                needed / 2**30,
            )
            return None
        # What the tokens depend on: weights, architecture (a number of heads shows in neither weights nor repr), how
        # images are made and numbers computed.
        key = {
            "options": self.options,
            "weights": facts.digest,
            "model": [facts.name, {k: v for k, v in facts.create_kwargs.items() if k != "num_classes"}],
            "prefix": [repr(layer) for layer in below],
            "spec": repr(spec),
            "start": start,
            "shape": list(one.shape),
            "dtype": str(one.dtype),
            "autocast": str(autocast.fast_dtype) if autocast._enabled else None,
            "tf32": torch.get_float32_matmul_precision(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
        }
        network = Network(module)

        def fill(part: Part, augment: str, num_views: int) -> Tensor:
            def compute(rows: Tensor) -> Tensor:
                positions, views = (rows // num_views).numpy(), (rows % num_views).numpy()
                images = training_views(part, positions, views, spec, augment=augment, device=device)
                with torch.no_grad(), autocast:
                    return _kept(module, network.run_blocks(embed(module, images), 0, start), start)

            own = {**key, "images": part.digest, "augment": augment, "views": num_views}
            offset = batches.rank / batches.world_size
            return self._filled(own, len(part) * num_views, one, compute, offset)

        module.eval()
        try:
            return Prefix(start, batches, fill(data.train, batches.augment, num_views), fill(data.val, "none", 1))
        except OSError as error:  # the disk is full, or not ours to write to
            logger.warning("no activations are cached in %s (%s): they are computed anew", self.folder, error)
            return None

    def _filled(
        self, key: dict[str, object], count: int, one: Tensor, compute: Callable[[Tensor], Tensor], offset: float
    ) -> Tensor:
        """The tokens stored under ``key``, those that are missing computed now: (count, N, width).

        Several processes may fill at once: each starts at its own ``offset``, a share of the whole, and a chunk done
        twice is the same bytes twice.
        """
        folder = self.folder / digest_of(key)
        num_chunks = -(-count // _CHUNK)
        size_bytes = count * one.numel() * one.element_size()
        if not folder.exists():
            self._make_room(size_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        for name, needed in (("tokens", size_bytes), ("done", num_chunks)):
            with (folder / name).open("ab") as file:
                # Taken now: a disk that is full later would kill the process that writes to the mapping.
                os.posix_fallocate(file.fileno(), 0, needed)
        flags = torch.from_file(str(folder / "done"), shared=True, size=num_chunks, dtype=torch.uint8)
        size = count * one.numel()
        tokens = torch.from_file(str(folder / "tokens"), shared=True, size=size, dtype=one.dtype).view(
            count, *one.shape
        )
        (folder / "tokens").touch()  # when it was last used
        for chunk in torch.arange(num_chunks).roll(-int(offset * num_chunks)).tolist():
            if not flags[chunk]:
                rows = torch.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, count))
                tokens[rows[0] : rows[-1] + 1] = compute(rows).cpu()
                flags[chunk] = 1  # after the tokens are there
        return tokens

    def _make_room(self, needed: int) -> None:
        """Drop prefixes, the longest unused first; whoever still reads one keeps what it has mapped."""
        entries = sorted(self.folder.glob("*/tokens"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in entries)
        for path in entries:
            if total + needed <= self.max_bytes:
                return
            total -= path.stat().st_size
            # Away at once, so that nobody finds half of it.
            gone = path.parent.with_name(f".gone-{uuid.uuid4().hex}")
            with contextlib.suppress(OSError):  # another process was first
                path.parent.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def open_cache(config: Config) -> PrefixCache | None:
    """The node's prefixes below its cache folder; None where they are switched off."""
    if not config.finetune.prefix_cache_gib:
        return None
    folder = Path(config.data.cache_dir).expanduser() / "prefix"
    max_bytes = int(config.finetune.prefix_cache_gib * 2**30)
    return PrefixCache(folder, max_bytes, specification("prefix", config.model, config.data))


def _kept(module: nn.Module, tokens: Tensor, start: int) -> Tensor:
    """What of the tokens is read from ``start`` on: where only the head is left, perhaps the first alone."""
    at_head = start == len(module.blocks)  # type: ignore[arg-type]
    return tokens[:, :1] if at_head and reads_first_token(module) else tokens


def _tokens_of_one(
    module: nn.Module, spec: InputSpec, start: int, autocast: torch.autocast, device: torch.device
) -> Tensor:
    """Tokens of one image, for their shape and type: (N, width)."""
    with torch.no_grad(), autocast:
        tokens = embed(module, torch.zeros(1, 3, spec.image_size, spec.image_size, device=device))
        block = module.blocks[0](tokens)  # type: ignore[index, operator]
    return _kept(module, block, start)[0].cpu()


def _to_device(tokens: Tensor, device: torch.device) -> Tensor:
    return tokens.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tokens
