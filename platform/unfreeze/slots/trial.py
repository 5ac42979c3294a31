"""What Ray Tune runs: a trial that trains nothing itself. It posts a job and relays its reports."""

import uuid
from typing import Any

import ray
from ray import tune

from unfreeze.records import trial_spec_from_dict
from unfreeze.slots.outcome import Outcome

_POLL_S = 30.0


class SlotTrial(tune.Trainable):
    """One actor serves many trials (``reuse_actors``), so a trial costs a message, not a process."""

    _best: float
    _latest: dict[str, Any]

    def setup(self, config: dict[str, Any], board: Any = None) -> None:
        self._board = board
        self._start(config)

    def step(self) -> dict[str, Any]:
        """The next report. The last result of a trial repeats its final numbers, with ``done``."""
        reports: list[dict[str, Any]] = []
        outcome: Outcome | None = None
        while not reports and outcome is None:
            news = ray.get(self._board.follow.remote(self._job_id, self._seen, _POLL_S))
            if news is None:  # the board died, and another has its place
                self._submit()
                continue
            reports, outcome = news["reports"], news["outcome"]
        self._seen += len(reports)
        self._best = max(self._best, *(report["val_accuracy"] for report in reports), 0.0)
        if reports:
            self._latest = reports[-1]
        return {
            **self._latest,
            "best_val_accuracy": self._best,
            "done": outcome is not None,
            "outcome": outcome,
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        """Tune ended the trial, or this actor's part in it. A job that is over does not mind."""
        ray.get(self._board.leave.remote(self._job_id, self._follower))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the slot writes the trial's checkpoints to the ledger."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the slot resumes from the ledger."""

    def _start(self, config: dict[str, Any]) -> None:
        trial = trial_spec_from_dict(config["trial"])
        self._job_id = trial.trial_id
        self._follower = uuid.uuid4().hex
        self._seen = 0
        self._best = 0.0
        self._latest = {"images_seen": 0, "val_accuracy": 0.0}
        self._trial = config["trial"]
        self._submit()

    def _submit(self) -> None:
        ray.get(self._board.submit.remote(self._job_id, self._trial, self._follower))
