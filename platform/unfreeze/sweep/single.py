"""One finetuning run in this process, without Ray: to try a selection, to profile, to debug."""

from collections.abc import Iterator
from pathlib import Path

import torch

from unfreeze.config import Config
from unfreeze.data.catalog import load_train_val
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.prefix import open_cache
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_base, input_size
from unfreeze.records import TrialReport, TrialSpec


def finetune_once(config: Config) -> Iterator[TrialReport]:
    """Train ``config.trial`` and hand out each report as it comes.

    Raises:
        UnfreezeError: what is wrong with model, data or selection.
        Diverged: the loss became NaN or infinite.
    """
    data = load_train_val(config.data, image_size=input_size(config.model))
    base = build_base(config, num_classes=len(data.classes))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trial = TrialSpec(
        index=0,
        selection=config.trial.selection,
        learning_rate=config.trial.learning_rate,
        seed=config.trial.seed,
        origin="single",
    )
    warm = WarmModel(base, device)
    progress_of = finetune(
        warm,
        data,
        trial,
        config.finetune,
        augment=config.data.augment,
        num_views=config.data.num_views,
        prefixes=open_cache(config.finetune, Path(config.data.cache_dir)),
    )
    for progress in progress_of:
        yield progress.reports[-1]
