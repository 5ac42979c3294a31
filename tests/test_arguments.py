"""What is typed: any path is a path, and what cannot be read is answered by us, all of it at once."""

from pathlib import Path

import pytest
from arguments import read_arguments
from configuring import CONF, composed, run_entry

from unfreeze.report.help import find_groups

GROUPS = find_groups(CONF)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data=folders"], "data=folders: did you mean data=folder?"),
        (["model=nope"], "model=nope: model is one of tiny, vit_base"),
        (["swep=3"], "swep=3: unknown option; did you mean sweep.name=3?"),
        (["epochs=5"], "epochs=5: unknown option; did you mean finetune.epochs=5?"),
        (["--epochs", "5"], "--epochs 5: options are written NAME=VALUE; did you mean finetune.epochs=5?"),
        (
            ["--finetune.epochs=5"],
            "--finetune.epochs=5: options are written NAME=VALUE; did you mean finetune.epochs=5?",
        ),
        (["--data", "folder"], "--data folder: options are written NAME=VALUE; did you mean data=folder?"),
        (["data.path", "/x"], "data.path: options are written NAME=VALUE; did you mean data.path=…?"),
        (["finetune.epochs=["], "finetune.epochs=[: the value cannot be read (no viable alternative at input '[')"),
        (["zzzzz=1"], "zzzzz=1: unknown option; --help lists them all"),
    ],
)
def test_what_cannot_be_read_is_answered_with_what_was_meant(arguments: list[str], says: str) -> None:
    given, problems = read_arguments([*arguments[:2], "model=tiny"], GROUPS)
    assert problems[0].startswith(says)
    assert given == ["model=tiny"]


def test_hydras_own_flags_are_its_own() -> None:
    arguments = ["--cfg", "job", "-m", "--config-dir", "x", "hydra.run.dir=.", "~data", "++finetune.epochs=3"]
    assert read_arguments(arguments, GROUPS) == (arguments, [])


@pytest.mark.parametrize("text", ["[mha:lora(8)]", "[all, mha@0-1+fc1:lora(4) ,none]", "['mha:lora(8)',all]", "[]"])
def test_selections_need_no_quotes(text: str) -> None:
    given, problems = read_arguments([f"search.baselines={text}"], GROUPS)
    assert not problems
    inner = text[1:-1].replace("'", "")
    assert composed(*given).search.baselines == [part.strip() for part in inner.split(",") if part]


def test_all_of_a_command_line_is_said_at_once(tmp_path: Path) -> None:
    done = run_entry(tmp_path, "data=folders", "--epochs", "5", "finetune.batch=3", "search.num_trials=many")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "error: the configuration has problems, nothing was started:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "data=folders",
        "--epochs 5",
        "finetune.batch",
        "search.num_trials",
    ]
