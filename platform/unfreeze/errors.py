"""Errors a person can mend: each names the value that is wrong and the way out."""

import signal


class UnfreezeError(ValueError):
    """Base of every error that the user, not the developer, must fix; printed without a traceback."""


class ConfigError(UnfreezeError):
    """One or more options are unknown, of the wrong type, or out of range."""


class SelectionError(UnfreezeError):
    """A selection text cannot be read or names what the model does not have."""


class ModelError(UnfreezeError):
    """The model is unknown, unsupported, or its weights do not fit."""


class DataError(UnfreezeError):
    """The data set is missing, unreadable, or cannot be split as asked."""


class StorageError(UnfreezeError):
    """The storage location cannot be read or written. ``may_pass``: nobody need mend it, such as a line that is cut."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class SweepMismatchError(UnfreezeError):
    """The sweep's name is taken by a sweep with another configuration."""


class CheckpointError(UnfreezeError):
    """A checkpoint is damaged or belongs to another base model."""


class DeviceMemoryError(UnfreezeError):
    """A training step does not fit into the memory of its device."""


class TrialError(UnfreezeError):
    """The one trial that was asked for did not come to its end."""


class BudgetError(UnfreezeError):
    """No selection of the search space fits the budget."""


class ClusterError(UnfreezeError):
    """The cluster cannot give what the sweep asks for."""


class InfrastructureError(Exception):
    """Cluster or store broke down under the sweep: no trial is to blame, and the same command goes on."""


class SweepHeldError(InfrastructureError):
    """Another driver runs the sweep."""


class SweepInterrupted(KeyboardInterrupt):
    """Stopped by a signal before its end: Ctrl-C, or SIGTERM of a job, a pod or Slurm. What finished is kept.

    No `Exception`: nothing that takes an error for a trial's or a slot's may take this one.
    """

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number  # as a shell reports it
        super().__init__(
            f"stopped by {signal.Signals(number).name}: nothing that finished is lost, run the same command and it "
            f"goes on where it stopped (exit code {self.exit_code})"
        )
