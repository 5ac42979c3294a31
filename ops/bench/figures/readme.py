"""The figures of `ops/bench/results/*.json` as Markdown: `ops/bench/README.md`, and the six that matter in `README.md`.

No figure is typed by hand: the sentences between the tables are in `speed.py` and `accuracy.py`, which take their
numbers from the JSON.

    python ops/bench/figures/readme.py
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import accuracy
import outcomes
import search
import speed
import verdicts
from cells import Record, Records, duration, figures, generic, number, origin, table, times

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "ops" / "bench" / "results"
BENCH_README, ROOT_README = ROOT / "ops" / "bench" / "README.md", ROOT / "README.md"
BEGIN, END = "<!-- figures: make bench-readme -->", "<!-- /figures -->"
HEAD = """# What was measured

Written by `make bench-readme` from [`results/`](results/); a test compares the two. `make bench` runs every script here
with small settings that need nothing from outside, and goes on past one that fails. `--save` writes a script's JSON to
`results/`; `--help` says what a fuller run takes: `--weights deit_tiny_patch16_224.safetensors`, and folders of images.

Each script's last line is one JSON object: `ours`, `theirs`, `unit`, and `ratio`, above 1 where ours is better, both
sides measured in one run. Several figures are a list under `results`. "Read from a log" marks what no JSON was kept of.
What needs a GPU is not measured, unless its machine names one.
"""

Render = Callable[[Records], str]
SECTIONS: tuple[tuple[str, tuple[str, ...], Render], ...] = (
    ("The whole", ("demo", "tests"), speed.whole),
    ("A trial beyond its training", ("trial_overhead", "turnaround", "turnaround_deit"), speed.overhead),
    ("Finetuning", ("finetune",), speed.finetuning),
    ("The training pipeline alone", ("pipeline_32px", "pipeline_256px"), speed.pipeline),
    ("The pre-pass", ("prepass", "prepass_log"), speed.prepass),
    ("The stopping rule", ("stopping_rule",), speed.stopping),
    ("Searches replayed", ("search_replay",), search.replay),
    ("What a suggestion takes", ("suggestion",), lambda records: generic(records["suggestion"])),
    ("What a person gets", ("outcome",), outcomes.outcome),
    ("How sure the search is", ("calibration",), outcomes.calibration),
    ("What the verdict claims", ("verdict",), verdicts.verdict),
    ("Plasticity of DeiT-Tiny", ("plasticity_tables",), accuracy.plasticity),
    ("Accuracy of the embedded model on the embedded digits", ("digits_table",), accuracy.digits),
    ("DeiT-Tiny finetuned on 12 flower species", ("flowers12_table",), accuracy.flowers),
    ("The same model at three learning rates and three seeds", ("finetune_table",), accuracy.three_rates),
    ("Probes at every output", ("probe",), accuracy.probe),
    ("The paper's whole table", ("paper_dry_run",), accuracy.paper),
)


def read_records(folder: Path = RESULTS) -> dict[str, Record]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def bench_readme(records: dict[str, Record]) -> str:
    """Known records in the order of `SECTIONS`, whatever else is there as a plain table."""
    parts, shown = [HEAD], set()
    for title, names, render in SECTIONS:
        there = [records[name] for name in names if name in records]
        if there:
            shown |= set(names)
            parts.append(f"## {title}\n\n{render({record['name']: record for record in there}).strip()}\n")
            parts.append("".join(f"- {origin(record)}\n" for record in there))
    for name in sorted(records.keys() - shown):
        parts.append(f"## {name}\n\n{generic(records[name])}\n")
        parts.append(f"- {origin(records[name])}\n")
    return "\n".join(parts)


def root_readme(text: str, records: dict[str, Record]) -> str:
    """The README with what stands between the markers made anew."""
    before, *between, after = re.split(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, flags=re.S)
    assert not between, f"README.md has more than one place between {BEGIN!r} and {END!r}"
    return f"{before}{BEGIN}\n{key_figures(records)}\n{END}{after}"


def key_figures(records: Records) -> str:
    """The six that matter, for the README at the root."""
    clone = figures(records["demo"])["fresh clone to report"]
    trial, prepass_found = records["trial_overhead"], figures(records["prepass"])
    pair, settled = prepass_found["prepass_per_pair"], prepass_found["prepass_settled"]
    mha, cached = (figures(records["finetune"])[name] for name in ("mha", "mha@9-11_cached"))
    verdict = records["verdict"]
    nulls = [100 * found["claim_rate"] for name, found in figures(verdict).items() if name.startswith("null/")]
    rows = [
        ["fresh clone to report, 30 trials", duration(clone["ours"]), clone],
        [
            "a trial beyond its training, against Tune → TorchTrainer per trial",
            f"{number(trial['ours'], 2)} s against {number(trial['theirs'], 1)} s: {times(trial['ratio'])}",
            trial,
        ],
        [
            "finetuning DeiT-Tiny against the paper's loop training everything: `mha`; `mha@9-11`, prefix cached",
            f"{number(mha['ratio'], 2)} ×; {number(cached['ratio'], 1)} ×",
            records["finetune"],
        ],
        ["the pre-pass against the paper's algorithm, a pair", f"{number(pair['ratio'], 1)} ×", records["prepass"]],
        [
            "the same, to a settled order against the paper's 12,800 pairs",
            f"{number(settled['ours'], 2)} s against {number(settled['theirs'])} s",
            records["prepass"],
        ],
        [
            "does the verdict claim without a cause? Simulated sweeps without an effect, at most 5 % asked",
            f"{number(min(nulls), 1)} to {number(max(nulls), 1)} % of them, over {len(nulls)} kinds",
            verdict,
        ],
    ]
    lines = [[what, figure, f"`{short(r['command'])}`", r["date"]] for what, figure, r in rows]
    return table(["what", "figure", "command", "date"], lines)


def short(command: str) -> str:
    """The script and its first options, for a narrow column."""
    words = command.split()
    return command if len(words) <= 3 else " ".join([*words[:3], "…"])


def main() -> None:
    records = read_records()
    BENCH_README.write_text(bench_readme(records), encoding="utf-8")
    ROOT_README.write_text(root_readme(ROOT_README.read_text(encoding="utf-8"), records), encoding="utf-8")


if __name__ == "__main__":
    main()
