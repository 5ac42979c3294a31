"""The exported model in a real registry: loaded as others load it, a version for each export, and the champion."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from finished_sweep import make_evidence, make_ledger
from mlflow.exceptions import MlflowException
from PIL import Image

from unfreeze.config import TrackingConfig
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.grey import White
from unfreeze.errors import DataError
from unfreeze.library import load
from unfreeze.models.export import write_export
from unfreeze.records import to_dict
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.gather import read_evidence
from unfreeze.tracking.mirror import MlflowMirror
from unfreeze.tracking.runs import RunTree
from unfreeze.tracking.server import connect

CLASSES = ("0", "<b>", "2")  # as the fixtures' data has them
NAME = "unfreeze-demo"
# In a process of its own, as whoever has MLflow and no checkout: the code comes with the model.
ELSEWHERE = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/unfreeze-demo@champion")
found = model.predict([open(path, "rb").read() for path in sys.argv[2:]])
import unfreeze
assert "/code/unfreeze/" in unfreeze.__file__, unfreeze.__file__
print(json.dumps(found.to_dict("list")))
"""


def fill_export(ledger: Ledger, *, seed: int, **changes: object) -> None:
    """A real export below the ledger, with final.json to match."""
    folder = Path(ledger.url("export"))
    module = timm.create_model("unfreeze_tiny", pretrained=True, num_classes=3)
    torch.nn.init.normal_(module.head.weight, generator=torch.Generator().manual_seed(seed))
    spec = InputSpec(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    reading = {"upright": True, "white": White()}
    write_export(folder, module, spec, classes=CLASSES, stored=40, crop_share=0.8, layer_norm_eps=None, **reading)
    picture().save(folder / "example.png")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    final = dataclasses.replace(read_evidence(ledger).final, export_sha256=digest, **changes)
    ledger.write_json("final.json", to_dict(final))


def picture(seed: int = 0) -> Image.Image:
    array = np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(array)


def champion_of(config: TrackingConfig) -> str:
    return str(connect(str(config.uri)).get_model_version_by_alias(NAME, "champion").version)


@pytest.fixture
def empty(config: TrackingConfig) -> TrackingConfig:
    """A registry without the model."""
    connect(str(config.uri)).delete_registered_model(NAME)
    return config


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, fresh_database: Path) -> tuple[str, Path]:
    """Database and export of a registered model, to be read alone."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(fresh_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    connect(uri).delete_registered_model(NAME)
    ledger = make_ledger(folder / "runs", make_evidence())
    fill_export(ledger, seed=0)
    MlflowMirror(TrackingConfig(uri=uri, experiment="tests"), ledger, read_evidence).sync()
    return uri, Path(ledger.url("export"))


@pytest.fixture
def here(registered: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the model, where MLflow looks in this process."""
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", registered[0])
    return f"models:/{NAME}@champion"


class TestLoading:
    @pytest.mark.slow
    def test_ten_image_files_as_the_export_itself(self, registered, tmp_path):
        uri, export = registered
        paths = [tmp_path / f"{index}.{kind}" for index in range(5) for kind in ("png", "jpg")]
        for index, path in enumerate(paths):
            picture(index).save(path)
        command = [sys.executable, "-c", ELSEWHERE, uri, *map(str, paths)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        found = json.loads(out.splitlines()[-1])
        expected = load(export).predict(paths)
        assert found["class"] == [each.label for each in expected]
        assert found["probability"] == pytest.approx([each.probability for each in expected], abs=1e-6)
        for mine, theirs in zip(found["probabilities"], expected, strict=True):
            assert mine == pytest.approx(theirs.probabilities, abs=1e-6)

    @pytest.mark.slow
    def test_from_the_command_line(self, registered, tmp_path):
        uri, export = registered
        paths = [tmp_path / "0.png", tmp_path / "1.jpg"]
        for index, path in enumerate(paths):
            picture(index).save(path)
        images = [base64.b64encode(path.read_bytes()).decode() for path in paths]
        (tmp_path / "images.json").write_text(json.dumps({"inputs": images}))
        command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local"]
        places = ["-m", f"models:/{NAME}@champion", "-i", "images.json", "-o", "found.json", "-t", "json"]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        subprocess.run([*command, *places], check=True, cwd=tmp_path, env=environment)
        found = json.loads((tmp_path / "found.json").read_text())["predictions"]
        expected = load(export).predict(paths)
        assert [each["class"] for each in found] == [each.label for each in expected]
        for mine, theirs in zip(found, expected, strict=True):
            assert mine["probabilities"] == pytest.approx(theirs.probabilities, abs=1e-6)

    def test_whatever_holds_images(self, here):
        model = mlflow.pyfunc.load_model(here)
        image = picture()
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        content, array = stream.getvalue(), np.asarray(image)
        expected = model.predict([content])
        tables = (pd.DataFrame({"photo": [content]}), pd.Series([content]))
        for given in (content, image, [image], array, array[None], [array], *tables):
            pd.testing.assert_frame_equal(model.predict(given), expected)
        turned = Image.Exif()
        turned[0x0112] = 6
        stream = io.BytesIO()
        image.save(stream, format="PNG", exif=turned)
        upright = model.predict(image.transpose(Image.Transpose.ROTATE_270))
        assert model.predict([stream.getvalue()]).probability[0] == pytest.approx(upright.probability[0], abs=1e-6)
        for broken in ([b"no image"], ["/etc/hostname"], [np.zeros((4, 4), np.uint8)], []):
            with pytest.raises(DataError):
                model.predict(broken)

    def test_what_the_model_says_of_itself(self, registered, here):
        model = mlflow.pyfunc.load_model(here)
        assert [column.name for column in model.metadata.signature.outputs] == ["class", "probability", "probabilities"]
        assert len(model.predict(model.input_example)) == 1
        client = connect(registered[0])
        logged = client.get_logged_model(model.model_id)
        metrics = {metric.key: (metric.value, metric.dataset_name) for metric in logged.metrics}
        assert metrics["test_accuracy"] == (pytest.approx(0.96), "digits/test")
        assert metrics["validation_accuracy"] == (pytest.approx(290 / 300), "digits/validation")
        assert logged.params["selection"] == "mha+fc1"
        assert str(logged.status) == "READY"
        run = client.get_run(logged.source_run_id)
        assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
        (version,) = client.search_model_versions(f"name='{NAME}'")
        for part in ("mha+fc1", "96.00% \\[93.15%, 97.70%]", "apache-2.0", "Intended use", "@champion"):
            assert part in version.description

    def test_the_network_alone_and_nothing_pickled(self, registered, here, monkeypatch):
        monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        network = mlflow.pytorch.load_model(here)
        exported = load(registered[1])
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(network(images), exported.module(images), rtol=1e-4, atol=1e-5)


def test_an_export_that_is_gone_is_named_with_the_way_out(empty, ledger, caplog):
    ledger.delete("export/config.json")
    MlflowMirror(empty, ledger, read_evidence).sync()
    (record,) = [record for record in caplog.records if record.name.startswith("unfreeze")]
    assert f"from here: {ledger.url('export/config.json')}, a part of the export, is not there" in record.getMessage()
    assert "`python sweeps/report.py sweep.name=demo sync=true` registers the model" in record.getMessage()


@pytest.mark.slow
class TestVersions:
    def test_one_for_each_export_and_the_better_one_is_champion(self, empty, ledger):
        for change, champion in (
            ({}, "1"),
            ({"val_correct": 280, "test_correct": 299}, "1"),  # better on test alone
            ({"val_correct": 295, "test_correct": 200}, "3"),
        ):
            fill_export(ledger, seed=change.get("val_correct", 0), **change)
            for _ in range(2):
                MlflowMirror(empty, ledger, read_evidence).sync()
            assert champion_of(empty) == champion
        assert len(connect(str(empty.uri)).search_model_versions(f"name='{NAME}'")) == 3

    def test_other_images_are_no_comparison_and_a_person_s_choice_stays(self, empty, ledger):
        fill_export(ledger, seed=0)
        MlflowMirror(empty, ledger, read_evidence).sync()
        facts = ledger.read_json("facts.json")
        ledger.write_json("facts.json", {**facts, "data": {**facts["data"], "digest": "e" * 64}})
        fill_export(ledger, seed=1, val_correct=299)
        MlflowMirror(empty, ledger, read_evidence).sync()
        assert champion_of(empty) == "1"
        connect(str(empty.uri)).set_registered_model_alias(NAME, "champion", "2")
        MlflowMirror(empty, ledger, read_evidence).sync()
        assert champion_of(empty) == "2"

    def test_an_upload_that_broke_off_is_taken_up_again(self, empty, ledger, monkeypatch, caplog):
        fill_export(ledger, seed=0)
        with monkeypatch.context() as broken:
            broken.setattr(RunTree, "finish_model", _refuse)
            MlflowMirror(empty, ledger, read_evidence).sync()
        (record,) = [record for record in caplog.records if record.name.startswith("unfreeze")]
        assert record.getMessage().startswith("MLflow has the sweep, but its model cannot be registered from here: ")
        assert "PERMISSION_DENIED: no models here" in record.getMessage()
        MlflowMirror(empty, ledger, read_evidence).sync()
        client = connect(str(empty.uri))
        experiment = client.get_experiment_by_name(empty.experiment)
        assert len(client.search_logged_models([experiment.experiment_id])) == 1
        assert champion_of(empty) == "1"


def _refuse(*_: object) -> None:
    raise MlflowException("PERMISSION_DENIED: no models here")
