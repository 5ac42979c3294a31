"""MODEL_CARD.md: what whoever loads the exported model should know of it."""

from collections.abc import Mapping
from typing import Any

from unfreeze.records import Evidence
from unfreeze.report.answer import load_lines, recommendation_rows, seal_line
from unfreeze.report.markdown import code, plain, table

CARD = "MODEL_CARD.md"
EXAMPLE = "example.png"  # beside it: a validation image, for MLflow's input example


def model_card(evidence: Evidence, export: Mapping[str, Any]) -> str:
    """The card in Markdown. ``export``: the exported config.json, which names the licence of the base weights."""
    final, data, model = evidence.final, evidence.data, evidence.model
    assert final is not None, "there is no exported model before finalize"
    licence = export.get("pretrained_cfg", {}).get("license") or "not stated with the weights: see where they come from"
    registered = f"unfreeze-{evidence.sweep}"
    loading = (
        f'import mlflow\nmodel = mlflow.pyfunc.load_model("models:/{registered}@champion")\n'
        f'model.predict([open("photo.jpg", "rb").read()])  # class, probability, probabilities'
    )
    images = [
        ("data", f"{data.name}, {len(data.classes)} classes"),
        ("images", f"{data.num_train:,} training, {data.num_val:,} validation, {data.num_test:,} test"),
        ("digest", data.digest),
    ]
    parts = [
        f"# {registered}",
        f"{model.name}, of which `{final.selection}` and the head were finetuned on {plain(data.name)}. "
        f"{model.num_parameters:,} parameters, input {model.image_size} × {model.image_size} px.",
        "## How good it is",
        table(recommendation_rows(evidence)),
        plain(seal_line(evidence)),
        "## Data",
        table(images),
        "## Intended use",
        f"To tell apart the {len(data.classes)} classes of {plain(data.name)} in images like those it was trained on. "
        "It answers with one of them whatever it is shown; of other images, and of groups of people the data does not "
        "name, nothing was measured.",
        "## Licence",
        f"Of the base weights: {plain(str(licence))}. The finetuned weights are derived from them and from the data.",
        "## Loading",
        "With MLflow, preprocessing inside: file bytes, PIL images or uint8 arrays.",
        code(loading, "python"),
        "With timm:",
        code(load_lines(evidence), "python"),
        "`mlflow.pyfunc` and timm read the weights from safetensors and unpickle nothing; the code that MLflow imports "
        "lies in the model's folder `code/`.",
        "`mlflow.pytorch.load_model` gives the network alone, as torch.export wrote "
        f"it, for normalised float images (N, 3, {model.image_size}, {model.image_size}). With "
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLflow checks first that its archive holds tensors alone.",
        "MLflow's input example is one of the validation images.",
    ]
    return "\n\n".join(parts) + "\n"
