"""Linear probes in this process, without Ray: what the pretrained network knows of the classes, place by place."""

import time

import torch

from unfreeze.config import Config
from unfreeze.data.sets.catalog import load_train_val
from unfreeze.data.sets.remarks import look_over
from unfreeze.models.build import build_base, input_size
from unfreeze.probe.features import collect_features, find_sites
from unfreeze.probe.linear import ProbeTable, probe
from unfreeze.report.streams import say


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
