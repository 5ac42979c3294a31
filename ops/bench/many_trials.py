"""What the last hundred of a thousand trials cost, against the first hundred, and how the driver's memory grew.

A whole sweep on one warm slot with trials of one step: Ray, Tune, board, ledger and checkpoints as in any other. Time
is from one trial's last report to that of the hundredth after it. The bars: 1.2 times, and a tenth. The last line of
output is one JSON object.

    python ops/bench/many_trials.py [--trials 300] [--samplers random model] [--save]
"""

import tempfile
import threading
import time
from typing import Any

import psutil
from figures.record import figure, hand_in, make_parser

from unfreeze.load import load_config
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.run import run_sweep

TIME_BAR, MEMORY_BAR = 1.2, 1.1
_SAMPLE_S = 1.0


class Watch(threading.Thread):
    """This process, which is the driver: CPU seconds and memory at times."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self._samples: list[tuple[float, float, int]] = []

    def run(self) -> None:
        own = psutil.Process()
        while not self.ended.wait(_SAMPLE_S):
            with own.oneshot():
                cpu = own.cpu_times()
                self._samples.append((time.time(), cpu.user + cpu.system, own.memory_info().rss))

    def at(self, when: float) -> tuple[float, int]:
        """CPU seconds so far, bytes."""
        _, cpu_s, rss = min(self._samples, key=lambda sample: abs(sample[0] - when))
        return cpu_s, rss


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--samplers", nargs="+", default=["random"])
    arguments = parser.parse_args()
    if arguments.trials < 250:
        parser.error(f"--trials must be at least 250, but got {arguments.trials}")
    results = [found for sampler in arguments.samplers for found in measure(sampler, arguments.trials)]
    hand_in("many_trials", results, arguments, trials=arguments.trials)


def measure(sampler: str, num_trials: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="unfreeze-bench-", ignore_cleanup_errors=True) as folder:
        config = load_config(settings(folder, sampler, num_trials))
        watch = Watch()
        watch.start()
        run_sweep(config)
        watch.ended.set()
        records = Ledger(config.storage, config.sweep.name).trials()
    ended = sorted(record.reports[-1].timestamp_ms / 1000 for record in records)
    at = [watch.at(when) for when in (ended[0], ended[100], ended[-101], ended[-1])]
    first_s, last_s = (ended[100] - ended[0]) / 100, (ended[-1] - ended[-101]) / 100
    first_cpu_s, last_cpu_s = (at[1][0] - at[0][0]) / 100, (at[3][0] - at[2][0]) / 100
    first, hundred = "of the first hundred's", "of that after a hundred"
    return [
        figure(f"{sampler}: time", last_s / first_s, TIME_BAR, first, first_s=first_s, last_s=last_s),
        figure(
            f"{sampler}: driver's CPU", last_cpu_s / first_cpu_s, None, first, first_s=first_cpu_s, last_s=last_cpu_s
        ),
        figure(f"{sampler}: memory", at[3][1] / at[1][1], MEMORY_BAR, hundred, mib=at[3][1] / 2**20),
    ]


def settings(folder: str, sampler: str, num_trials: int) -> dict[str, Any]:
    return {
        "sweep": {"name": "many"},
        "storage": f"{folder}/runs",
        "tracking": {"uri": None},
        "cluster": {"num_slots": 1},
        "plasticity": {"num_pairs": 64, "bounds": False},
        "data": {"max_train_images": 20, "max_val_images": 20, "cache_dir": f"{folder}/cache"},
        "finetune": {"steps": 1, "batch_size": 16, "num_reports": 1},
        "search": {"sampler": sampler, "num_trials": num_trials, "confirm_top": 0, "early_stopping": False},
    }


if __name__ == "__main__":
    main()
