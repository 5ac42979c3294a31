"""Classes and probabilities of images by the model that a sweep exported.

python sweeps/predict.py model=runs/demo/export photo.jpg more/photos/
python sweeps/predict.py model=runs/demo/export more/photos/ out=predictions.csv

model=FOLDER  the export: model.safetensors beside config.json; local or s3://
out=FILE      as CSV: image, class, probability, and the probability of every class
Everything else is an image, or a folder that holds some.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # neither `python -m sweeps.…` nor PYTHONSAFEPATH=1 does

from entry import run


def main(arguments: list[str]) -> None:
    from unfreeze.errors import ConfigError
    from unfreeze.library import load
    from unfreeze.report.predictions import predictions_csv, predictions_text
    from unfreeze.report.streams import show

    if {"--help", "-h"}.intersection(arguments):
        show((__doc__ or "").rstrip())
        return
    given = [text for text in arguments if text.startswith(("model=", "out="))]
    settings = dict(text.split("=", 1) for text in given)
    if "model" not in settings:
        raise ConfigError(f"which model? model=FOLDER is lacking in {' '.join(arguments) or 'an empty command line'}")
    out = Path(settings["out"]) if "out" in settings else None
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"there is no folder for out={out}")
    found = load(settings["model"]).predict([text for text in arguments if text not in given])
    if out is None:
        show(predictions_text(found))
    else:
        out.write_text(predictions_csv(found), encoding="utf-8")
        show(f"{len(found)} images: {out}", kept_at=str(out))


if __name__ == "__main__":
    run(main)
