"""Whose fault it is, and that nothing else decides it."""

import re
from pathlib import Path

import pytest
import torch

from unfreeze import errors
from unfreeze.slots.outcome import Fault, whose

PACKAGE = Path(errors.__file__).parent


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.DeviceMemoryError("one image alone does not fit"), Fault.TRIAL),
        (errors.SelectionError("nothing to adapt"), Fault.TRIAL),
        (errors.ConfigError("fewer steps than reports"), Fault.TRIAL),
        (errors.StorageError("no space left on device"), Fault.INFRASTRUCTURE),
        (errors.DataError("no such image"), Fault.INFRASTRUCTURE),
        (errors.CheckpointError("of another model"), Fault.INFRASTRUCTURE),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), Fault.SLOT),
        (torch.OutOfMemoryError("CUDA out of memory"), Fault.SLOT),
        (RuntimeError("Connection closed by peer"), Fault.SLOT),
        (KeyError("a bug"), Fault.SLOT),
    ],
)
def test_whose(error: Exception, fault: Fault) -> None:
    assert whose(error) is fault


def test_one_place_makes_failed_records() -> None:
    writers = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"state=TrialState\.FAILED|\(TrialState\.FAILED", path.read_text())
    ]
    assert sorted(writers) == ["slots/outcome.py", "sweep/progress.py"]  # the latter counts them
