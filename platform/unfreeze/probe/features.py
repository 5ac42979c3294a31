"""What every image looks like at chosen places of a frozen network: pooled tokens, all places in one pass."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unfreeze.components.mapping import block_modules
from unfreeze.data.pixels.batches import eval_batches
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.part import Part
from unfreeze.errors import ConfigError
from unfreeze.records import COMPONENTS

EMBED, HEAD = "embed", "head"


@dataclass(frozen=True, slots=True)
class Features:
    """Pooled tokens of each image of a part, the sites side by side: 4 bytes × images × sum of the sites' widths."""

    values: np.ndarray  # float32 (N, widths of all sites)
    labels: np.ndarray  # int64 (N,)
    columns: dict[str, slice]  # site → its columns

    def at(self, site: str) -> np.ndarray:
        """float32 (N, width of the site), a view."""
        return self.values[:, self.columns[site]]


def find_sites(at: Sequence[str], *, num_blocks: int) -> list[str]:
    """The sites that ``at`` names, in network order, each once: ``embed``, ``<block>.<component>``, ``head``.

    Raises:
        ConfigError: names what does not exist, and what does.
    """
    everything = [EMBED, *(f"{block}.{name}" for block in range(num_blocks) for name in COMPONENTS), HEAD]
    found = {name: [site for site in everything if name in ("all", site, site.rpartition(".")[2])] for name in at}
    unknown = [name for name, sites in found.items() if not sites]
    if unknown or not at:
        raise ConfigError(
            f"probe.at must name outputs of this model, but got {unknown or list(at)}; there are "
            f"{', '.join(COMPONENTS)} (of every block), 0.{COMPONENTS[0]} to {num_blocks - 1}.{COMPONENTS[-1]} (of one "
            f"of its {num_blocks} blocks), {EMBED}, {HEAD}, all"
        )
    wanted = {site for sites in found.values() for site in sites}
    return [site for site in everything if site in wanted]


@torch.no_grad()
def collect_features(
    module: nn.Module,
    part: Part,
    spec: InputSpec,
    sites: Sequence[str],
    *,
    pool: str,
    batch_size: int,
    device: torch.device,
) -> Features:
    """Features of every image of ``part`` in evaluation view, in one float32 pass over it.

    A component's are its output's class token (``pool`` "token"; a model without one: the mean) or its mean over all
    tokens, before LayerScale and the residual sum. ``embed``: the tokens that enter block 0, pooled alike. ``head``:
    what the classifier gets, after final norm and the model's own pooling. Leaves the module in evaluation mode.
    """
    module.eval()
    labels, values, done = np.empty(len(part), np.int64), np.empty((0, 0), np.float32), 0
    columns: dict[str, slice] = {}
    with _pooled_outputs(module, sites, pool) as pooled:
        for images, targets in eval_batches(part, spec, batch_size=batch_size, device=device):
            pooled.clear()
            tokens = module.forward_features(images)  # type: ignore[operator]
            if HEAD in sites:
                pooled[HEAD] = [module.forward_head(tokens, pre_logits=True)]  # type: ignore[operator]
            rows = torch.cat([tensor for site in sites for tensor in pooled[site]], dim=1)
            if not columns:
                widths = [sum(tensor.shape[1] for tensor in pooled[site]) for site in sites]
                ends = np.cumsum(widths).tolist()
                columns = {s: slice(end - width, end) for s, width, end in zip(sites, widths, ends, strict=True)}
                values = np.empty((len(part), ends[-1]), np.float32)
            values[done : done + len(rows)] = rows.cpu().numpy()
            labels[done : done + len(rows)] = targets.cpu().numpy()
            done += len(rows)
    return Features(values, labels, columns)


@contextlib.contextmanager
def _pooled_outputs(module: nn.Module, sites: Sequence[str], pool: str) -> Iterator[dict[str, list[Tensor]]]:
    """Site → its pooled output (B, width) of the last forward pass; SwiGLU's FC1 has two, side by side one vector."""
    pooled: dict[str, list[Tensor]] = {}
    use_token = pool == "token" and getattr(module, "cls_token", None) is not None

    def keep(site: str, tokens: Tensor) -> None:
        # A copy: a view of one token would hold all of them until the batch is done.
        pooled.setdefault(site, []).append(tokens[:, 0].clone() if use_token else tokens.mean(1))

    with contextlib.ExitStack() as hooks:
        if EMBED in sites:

            def before(_: nn.Module, args: tuple[Any, ...]) -> None:
                keep(EMBED, args[0])

            first: nn.Module = module.blocks[0]  # type: ignore[index, assignment]
            hooks.callback(first.register_forward_pre_hook(before).remove)
        for block, parts in enumerate(block_modules(module)):
            for name in COMPONENTS:
                if (site := f"{block}.{name}") not in sites:
                    continue
                layers = parts.fc1 if name == "fc1" else (getattr(parts, name),)
                for layer in layers:

                    def after(_: nn.Module, args: Any, output: Tensor, site: str = site) -> None:
                        keep(site, output)

                    hooks.callback(layer.register_forward_hook(after).remove)
        yield pooled
