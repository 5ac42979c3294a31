"""What MLflow shows above its tables, in Markdown: what the experiment is, and the sweep's answer."""

from collections.abc import Mapping

from unfreeze.evidence.verdict import verdict
from unfreeze.records import Evidence
from unfreeze.report.answer import against_all, load_lines, recommendation_rows

EXPERIMENT = """\
Sweeps that ask **which components of a pretrained Vision Transformer to unfreeze**, and whether *plasticity* \
predicts it ([Odonnat et al., ICML 2026](https://arxiv.org/abs/2602.06883)).

- A run is a sweep; its description is the answer so far. Below it lie the pre-pass and one run for each trial, named \
`selection · learning rate · seed`.
- To compare trials: columns `best_val_accuracy`, `trainable_share`, `flops_share`, `seconds`, and the parameters \
`train.ln1` … `train.fc2`, the share of each component's blocks that is trained.
- A sweep's charts `verdict/…` and `correlation/…` have one point for each finished trial.
- The full report is the sweep's artifact `report.html`; the model is registered as `unfreeze-SWEEP`.
"""


def describe_sweep(evidence: Evidence, *, command: str) -> str:
    """The answer as it stands: the rows and the sentence of the report, how to load the model and how to resume.

    ``command``: what started the sweep; empty: not known.
    """
    states = [trial.state for trial in evidence.trials]
    final = sum(state.is_final for state in states)
    parts = [
        f"### {evidence.sweep}: what to unfreeze",
        f"{final} of {len(states)} trials begun have ended.",
        _table([*recommendation_rows(evidence), *against_all(evidence)]),
        f"**Does plasticity predict accuracy here?** {_plain(verdict(evidence.worths))}",
    ]
    if evidence.final is not None:
        parts.append("**Load the model:**")
        parts.append(_code(load_lines(evidence), "python"))
    again = "**Resume** by running the same command again; what finished is not run twice."
    parts.append(again if not command else f"{again}\n\n{_code(command, 'sh')}")
    return "\n\n".join(parts)


def _table(rows: list[tuple[str, str]]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """As it stands: what Markdown would read as markup is escaped."""
    for char in "\\`*_<[":
        text = text.replace(char, f"\\{char}")
    return text


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def source_tags(source: Mapping[str, str]) -> dict[str, str]:
    """MLflow's own tags of where a run comes from; ``source``: as the ledger's ``environment.json`` has it."""
    kind = "NOTEBOOK" if source.get("kind") == "notebook" else "JOB" if "job" in source else "LOCAL"
    tags = {
        "mlflow.source.type": kind if source else None,
        "mlflow.source.name": source.get("name"),
        "mlflow.user": source.get("user"),
        "mlflow.source.git.commit": source.get("commit"),
        "mlflow.source.git.branch": source.get("branch"),
        "mlflow.source.git.dirty": source.get("dirty"),
        "ray.job_id": source.get("job") or source.get("ray_job"),
        "ray.dashboard": source.get("dashboard"),
    }
    return {name: text for name, text in tags.items() if text}
