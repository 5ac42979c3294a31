"""The report for other programs: the same words and digits as for people."""

import dataclasses
import io
import json

import pyarrow.parquet as pq
import pytest

from unfreeze.evidence.verdict import verdict
from unfreeze.records import ScoreWorth, Worth
from unfreeze.report.answer import recommendation_rows
from unfreeze.report.formats import evidence_json, markdown_report, trials_csv, trials_parquet

ENDLESS = Worth(mean=0.012, low=-float("inf"), high=0.026, positive=0.94, p=0.058, bayes_factor=2.1)


@pytest.fixture
def found(full_evidence):
    config = {**full_evidence.config, "tracking": {"uri": "https://me:secret@host"}}
    worths = (ScoreWorth(score="reference", num_trials=32, worth=ENDLESS),)
    return dataclasses.replace(full_evidence, worths=worths, config=config)


def test_json_is_all_of_it_and_no_secret(found):
    text = evidence_json({"demo": found})
    read = json.loads(text)["demo"]
    assert read["recommendation"]["selection"] == "mha+fc1"
    assert len(read["trials"]) == 13
    assert read["trials"][8]["reports"][-1]["val_accuracy"] == found.trials[8].best_val_accuracy
    assert read["worths"][0]["worth"]["low"] is None
    assert read["verdict"] == verdict(found.worths)
    assert "secret" not in text


def test_markdown_has_the_terminals_words(found):
    text = markdown_report(found)
    assert text.startswith("# demo: unfreeze mha+fc1\n")
    for what, value in recommendation_rows(found)[1:]:
        assert f"| {what} | {value} |" in text
    assert verdict(found.worths) in text
    assert "```python\nimport timm.data" in text
    widths = [line.count(" | ") for line in text.splitlines() if line.startswith("| reference | 32")]
    assert len(set(widths)) <= 1


def test_markdown_before_the_first_trial_finished(build_evidence):
    text = markdown_report(build_evidence((), with_final=False))
    assert text.startswith("# demo: unfreeze nothing yet: no trial has finished\n")


def test_parquet_is_the_csv_with_types(found):
    table = pq.read_table(io.BytesIO(trials_parquet([found])))
    lines = trials_csv([found]).splitlines()
    assert table.column_names == lines[0].split(",")
    assert [str(value) for value in table.column("selection").to_pylist()] == [line.split(",")[2] for line in lines[1:]]
    assert str(table.schema.field("val_accuracy").type) == "double"
    assert str(table.schema.field("seed").type) == "int64"
