"""How long the next trial takes to be chosen, after 200 and 1,000 finished ones: `search.sampler=model` against `tpe`.

    python ops/bench/suggestion.py [--trials 200 1000] [--save]

Trials are drawn at random with made-up accuracies; four are in flight. CPU time, the least of five suggestions: both
sides compute on one thread, where nothing else runs it is what one waits.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from figures.record import figure, hand_in, make_parser

from unfreeze.config import FinetuneConfig, SearchConfig
from unfreeze.cost.model import CostModel
from unfreeze.records import COMPONENTS, ModelFacts, TrialRecord, TrialReport, TrialSpec, TrialState
from unfreeze.search.proposals import ModelSampler
from unfreeze.search.sampler import draw_uniformly, sample_point
from unfreeze.search.space import SearchSpace, make_space

NUM_BLOCKS = 12
IN_FLIGHT = 4
SIZES = {"ln1": 384, "mha": 148_224, "ln2": 384, "fc1": 148_224, "fc2": 147_648}  # DeiT-Tiny


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--trials", nargs="+", type=int, default=[200])
    arguments = parser.parse_args()
    results = [measure(space, count) for space in ("components", "blocks") for count in arguments.trials]
    hand_in("suggestion", results, arguments)


def measure(kind: str, count: int) -> dict[str, Any]:
    parameters = {f"{b}.{c}": SIZES[c] for b in range(NUM_BLOCKS) for c in COMPONENTS} | {"embed": 185_000, "head": 384}
    model = ModelFacts(
        name="deit_tiny", digest="", num_blocks=NUM_BLOCKS, parameters=parameters, image_size=224, create_kwargs={}
    )
    space = make_space(SearchConfig(space=kind), CostModel(model, FinetuneConfig()))
    planned, known = finished(space, count)
    scores = {(block, name): float(place) for block in range(NUM_BLOCKS) for place, name in enumerate(COMPONENTS)}
    sampler = ModelSampler(space, scores, seed=0)
    settings = {"sampler": "tpe", "num_random": 7, "pareto": False, "seed": 0}
    ours = least(lambda: sampler.propose(planned, known))
    theirs = least(lambda: sample_point(space, planned, known, **settings))
    return figure(f"{kind}/{count}", ours, theirs, "CPU s a suggestion")


def finished(space: SearchSpace, count: int) -> tuple[list[TrialSpec], dict[int, TrialRecord]]:
    rng = np.random.default_rng(0)
    planned: list[TrialSpec] = []
    known: dict[int, TrialRecord] = {}
    for index in range(count + IN_FLIGHT):
        selection, rate = draw_uniformly(space, rng)
        spec = TrialSpec(index=index, selection=str(selection), learning_rate=rate, seed=0, origin="search")
        planned.append(spec)
        if index < count:
            accuracy = float(np.clip(0.8 - 0.1 * (np.log10(rate) + 1.8) ** 2 + rng.normal(0, 0.02), 0, 1))
            report = TrialReport(
                images_seen=100, train_loss=1.0, val_loss=1.0, val_accuracy=accuracy, seconds=1.0, timestamp_ms=0
            )
            known[index] = TrialRecord(spec=spec, state=TrialState.FINISHED, reports=(report,))
    return planned, known


def least(suggest: Callable[[], Any]) -> float:
    taken = []
    for _ in range(5):
        started = time.process_time()
        suggest()
        taken.append(time.process_time() - started)
    return min(taken)


if __name__ == "__main__":
    main()
