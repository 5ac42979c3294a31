"""How a job ends, and whose doing that is: the one place that says what may be held against a trial.

The trial's: its record is final, and running it again would give the same. The slot's: its worker or node is gone, and
another slot takes the job; that is no outcome at all. The infrastructure's: cluster or store are not what the trial
needs; its record stays open, whatever the reason.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from unfreeze.errors import ConfigError, DeviceMemoryError, InfrastructureError, SelectionError, UnfreezeError
from unfreeze.records import TrialRecord, TrialState


class Fault(StrEnum):
    TRIAL = "trial"
    SLOT = "slot"
    INFRASTRUCTURE = "infrastructure"


@dataclass(frozen=True, slots=True)
class Settled:
    """The trial's: the ledger has its final record."""


@dataclass(frozen=True, slots=True)
class Deadly:
    """The trial's: it took down one slot after another without a report. Nobody lived to record it."""

    error: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Cancelled: the last checkpoint stands, and the trial goes on when it is taken up again."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The infrastructure's: what the trial cannot be run for."""

    reason: str


Outcome = Settled | Deadly | Interrupted | Lost

# Met again wherever the trial runs: it cannot be trained, or one image at a time does not fit.
_OWN = (ConfigError, SelectionError, DeviceMemoryError)


def whose(error: Exception) -> Fault:
    """Whose fault an attempt's error is. What nobody foresaw is the slot's: a fresh process may not meet it."""
    if isinstance(error, _OWN):
        return Fault.TRIAL
    return Fault.INFRASTRUCTURE if isinstance(error, UnfreezeError | InfrastructureError) else Fault.SLOT


def failed(record: TrialRecord, reason: str) -> TrialRecord:
    """The record of a trial that would fail again; nothing else makes one."""
    return replace(record, state=TrialState.FAILED, error=reason)


def reopened(record: TrialRecord) -> TrialRecord:
    """A failed trial's record as if it had been interrupted, for ``sweep.retry_failed``."""
    return replace(record, state=TrialState.RUNNING, error=None)
