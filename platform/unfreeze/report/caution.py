"""What a plan is too small to tell, said before it starts, each with what would cure it."""

import math
from collections.abc import Iterator

from unfreeze.config import Config
from unfreeze.finetune.schedule import num_steps_of

_FEWEST_STEPS = 50  # of the optimizer: with fewer a rate has hardly been warmed up
_MOST_ERROR = 0.02  # standard error of a validation accuracy
_SUPPOSED = 0.8  # the accuracy that it is reckoned at


def cautions(config: Config, *, num_train: int, num_val: int) -> Iterator[str]:
    """A line for each thing that makes a trial's result more chance than evidence."""
    finetune = config.finetune
    if not (num_train and num_val):
        yield (
            f"{_count(num_train, 'training image')} and {_count(num_val, 'validation image')} are left: lower "
            f"data.test_share or data.val_share, or bring more images"
        )
        return
    steps = num_steps_of(finetune, num_train)
    if steps < _FEWEST_STEPS:
        epochs = math.ceil(_FEWEST_STEPS * finetune.batch_size / num_train)
        cure = f"finetune.epochs={epochs}" if finetune.steps is None else f"finetune.steps={_FEWEST_STEPS}"
        yield (
            f"a trial is {_count(steps, 'optimizer step')} on {_count(num_train, 'training image')}, and with "
            f"fewer than {_FEWEST_STEPS} selections hardly come apart; {cure} makes it {_FEWEST_STEPS}, and so does a "
            f"smaller finetune.batch_size than {finetune.batch_size}"
        )
    if finetune.batch_size > num_train:
        yield (
            f"a batch of finetune.batch_size={finetune.batch_size} is more than the "
            f"{_count(num_train, 'training image')}, so it holds some twice or oftener; {num_train} is the most that "
            f"does not"
        )
    error = math.sqrt(_SUPPOSED * (1 - _SUPPOSED) / num_val)
    if error > _MOST_ERROR:
        enough = math.ceil(_SUPPOSED * (1 - _SUPPOSED) / _MOST_ERROR**2)
        limited = config.data.max_val_images is not None and num_val >= config.data.max_val_images
        cure = "data.max_val_images" if limited else "data.val_share, where they are split off,"
        yield (
            f"with {_count(num_val, 'validation image')} an accuracy of {_SUPPOSED:.0%} has a standard error "
            f"of {100 * error:.1f} points, so what differs by less is chance; {enough} would make it "
            f"{100 * _MOST_ERROR:g}: raise {cure} or bring more images"
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
