"""What a benchmark hands back: its options, its figures, and one JSON object as the last line of its output."""

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parents[1] / "results"


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write the JSON to ops/bench/results/ too")
    return parser


def figure(
    name: str, ours: float, theirs: float | None, unit: str, *, more_is_better: bool = False, **facts: Any
) -> dict[str, Any]:
    """One figure, numbers to four digits. ``ratio`` is above 1 where ours is better, None without another side."""
    sides = (ours, theirs) if more_is_better else (theirs, ours)
    ratio = sides[0] / sides[1] if sides[0] is not None and sides[1] else None
    numbers = {"ours": ours, "theirs": theirs, "unit": unit, "ratio": ratio}
    return {"name": name, **_rounded(numbers), "device": device(), **_rounded(facts)}


def hand_in(
    name: str, figures: Sequence[dict[str, Any]], arguments: argparse.Namespace, **settings: Any
) -> dict[str, Any]:
    """Print the record of a run, and save it if asked; a lone figure stands at the top, several under ``results``.

    What ran on a GPU has a name, and so a file, of its own.
    """
    name = f"{name}_gpu" if torch.cuda.is_available() else name
    body = {**figures[0], "name": name} if len(figures) == 1 else {"results": list(figures)}
    record = {"name": name, **origin(), **settings, **body}
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(record), flush=True)
    return record


def origin() -> dict[str, str]:
    """Where this run's figures come from; each has its own where a record keeps those of several runs."""
    today = datetime.date.today().isoformat()
    return {"command": command(), "machine": machine(), "device": device(), "date": today}


def command() -> str:
    """This run's, with the names of files and folders in place of where they lie here."""
    words = [word if word.startswith("-") else Path(word).name for word in sys.argv[1:] if word != "--save"]
    return " ".join(["python", f"ops/bench/{Path(sys.argv[0]).name}", *words])


def device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {gpu}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
