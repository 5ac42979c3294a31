"""What MLflow shows above its tables, in Markdown: what the experiment is, and the sweep's answer."""

from collections.abc import Mapping

from unfreeze.evidence.verdict import verdict
from unfreeze.records import Evidence
from unfreeze.report.answer import load_lines, recommendation_rows
from unfreeze.report.markdown import code, plain, table

EXPERIMENT = """\
Sweeps that ask **which components of a pretrained Vision Transformer to unfreeze**, and whether *plasticity* \
predicts it ([Odonnat et al., ICML 2026](https://arxiv.org/abs/2602.06883)).

- A run is a sweep; its description is the answer so far. Below it lie the pre-pass and one run for each trial, named \
`selection · learning rate · seed`.
- To compare trials: columns `best_val_accuracy`, `trainable_share`, `flops_share`, `seconds`, and the parameters \
`train.ln1` … `train.fc2`, the share of each component's blocks that is trained.
- A sweep's charts `verdict/…` and `correlation/…` have one point for each finished trial.
- The full report is the sweep's artifact `report.html`; the model is registered as `unfreeze-SWEEP`, its best \
version on validation as `@champion`.
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
        table(recommendation_rows(evidence)),
        f"**Does plasticity predict accuracy here?** {plain(verdict(evidence.worths))}",
    ]
    if evidence.final is not None:
        loading = [
            "import mlflow",
            f'model = mlflow.pyfunc.load_model("models:/unfreeze-{evidence.sweep}@champion")',
            'model.predict([open("photo.jpg", "rb").read()])  # class, probability, probabilities',
        ]
        parts += ["**Load the model** from MLflow, or from the sweep's folder:", code("\n".join(loading), "python")]
        parts.append(code(load_lines(evidence), "python"))
    again = "**Resume** by running the same command again; what finished is not run twice."
    parts.append(again if not command else f"{again}\n\n{code(command, 'sh')}")
    return "\n\n".join(parts)


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
