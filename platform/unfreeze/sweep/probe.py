"""Linear probes without Ray: what the pretrained network knows of the classes, place by place, or at its end alone."""

import time

import torch

from unfreeze.config import Config
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import Dataset, load_train_val
from unfreeze.data.sets.remarks import look_over
from unfreeze.data.sets.splits import stratified_subset
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_base, input_size
from unfreeze.probe.features import HEAD, collect_features, find_sites
from unfreeze.probe.linear import ProbeResult, ProbeTable, probe
from unfreeze.report.streams import say

_MOST_IMAGES = 20_000  # for training: enough for a linear classifier, and one more pass over a large set is not free


def probe_once(config: Config) -> ProbeTable:
    """Probe the sites of ``config.probe`` on the training images; the validation images judge.

    Raises:
        UnfreezeError: what is wrong with model, data or sites.
    """
    data = load_train_val(config.data, image_size=input_size(config.model))
    for note in look_over(config.data, data):
        say(note)
    base = build_base(config, num_classes=len(data.classes))
    sites = find_sites(config.probe.at, num_blocks=base.facts.num_blocks)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, batch_size = base.module.to(device), config.finetune.eval_batch_size
    started = time.perf_counter()
    train, val = (
        collect_features(module, part, base.spec, sites, pool=config.probe.pool, batch_size=batch_size, device=device)
        for part in (data.train, data.val)
    )
    seconds = time.perf_counter() - started
    results = probe(train, val, method=config.probe.method, num_classes=len(data.classes), device=device)
    return ProbeTable(
        results=tuple(results),
        method=config.probe.method,
        pool=config.probe.pool,
        num_train=len(data.train),
        num_classes=len(data.classes),
        feature_seconds=seconds,
        feature_bytes=train.values.nbytes + val.values.nbytes,
    )


def probe_head(warm: WarmModel, data: Dataset, *, batch_size: int) -> ProbeResult:
    """A ridge probe of what the pretrained network's classifier gets: what there is to have without finetuning.

    ``warm``: not prepared for a trial. Of more than 20,000 training images each class gives its share.
    """
    chosen = stratified_subset(data.train.labels, _MOST_IMAGES, seed=0, purpose="head probe", balanced=False)
    train, val = (
        collect_features(
            warm.module, part, warm.base.spec, [HEAD], pool="token", batch_size=batch_size, device=warm.device
        )
        for part in (Part(data.train.array, data.train.indices[chosen]), data.val)
    )
    return next(probe(train, val, method="ridge", num_classes=len(data.classes), device=warm.device))
