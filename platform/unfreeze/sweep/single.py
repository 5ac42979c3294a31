"""One finetuning run in this process, without Ray: to try a selection, to price it, to profile, to debug."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from unfreeze.components.selection import check_lora, parse_selection
from unfreeze.config import Config
from unfreeze.cost.calibrate import calibrate
from unfreeze.cost.model import CostModel, TrialCost, activation_bytes
from unfreeze.data.sets.catalog import Dataset, load_train_val
from unfreeze.data.sets.remarks import look_over
from unfreeze.errors import ConfigError, TrialError
from unfreeze.finetune.loop import Diverged, finetune
from unfreeze.finetune.prefix import open_cache
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_base, input_size
from unfreeze.records import TrialReport, TrialSpec
from unfreeze.report.caution import cautions
from unfreeze.report.streams import say


@dataclass(frozen=True, slots=True)
class SingleTrial:
    """``config.trial`` with its model and data at hand."""

    config: Config
    warm: WarmModel
    data: Dataset

    def cost(self) -> TrialCost:
        """What it will take, in seconds of this machine; measures a few steps."""
        facts = self.warm.base.facts
        selection = parse_selection(self.config.trial.selection, num_blocks=facts.num_blocks)
        has_gpu = self.warm.device.type == "cuda"
        cost = CostModel(facts, self.config.finetune, activation_bytes(self.config.finetune.precision, has_gpu=has_gpu))
        time = calibrate(self.warm, cost)
        return cost.trial(selection, time, num_train=len(self.data.train), num_val=len(self.data.val))

    def run(self) -> Iterator[TrialReport]:
        """Train and hand out each report as it comes.

        Raises:
            TrialError: the loss became NaN or infinite.
        """
        config = self.config
        trial = TrialSpec(
            index=0,
            selection=config.trial.selection,
            learning_rate=config.trial.learning_rate,
            seed=config.trial.seed,
            origin="single",
        )
        progress_of = finetune(
            self.warm,
            self.data,
            trial,
            config.finetune,
            augment=config.data.augment,
            num_views=config.data.num_views,
            prefixes=open_cache(config),
        )
        try:
            for progress in progress_of:
                yield progress.reports[-1]
        except Diverged as error:
            raise TrialError(
                f"the trial diverged, its {error}; try a lower trial.learning_rate than {trial.learning_rate:g}"
            ) from error


def open_trial(config: Config) -> SingleTrial:
    """Load model and data.

    Raises:
        UnfreezeError: what is wrong with model, data or selection.
    """
    if config.finetune.shard:
        raise ConfigError("finetune.shard=true spreads a model over workers; a single run has one, so set it to false")
    data = load_train_val(config.data, image_size=input_size(config.model))
    for note in look_over(config.data, data):
        say(note)
    for line in cautions(config, num_train=len(data.train), num_val=len(data.val)):
        say(f"caution: {line}")
    base = build_base(config, num_classes=len(data.classes))
    check_lora(parse_selection(config.trial.selection, num_blocks=base.facts.num_blocks), width=base.facts.width)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return SingleTrial(config, WarmModel(base, device), data)
