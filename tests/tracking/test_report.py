"""The two reports: what a reader must find, and what must not be there."""

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from unfreeze.tracking.report import html_report, load_line, terminal_plasticity, terminal_report
from unfreeze.tracking.settings import flatten, redact


def test_terminal_report(evidence):
    text = terminal_report(evidence)
    assert "mha+fc1" in text.split("Plasticity")[0]
    assert "96.50% ± 0.70 (mean ± sd over 2 seeds)" in text
    assert "96.00% [93.15%, 97.70%] (95 % Wilson, n = 300)" in text
    assert "4.753 [4.703, 4.803]" in text
    assert re.search(r"ln1\+fc2 +│ stopped", text)
    assert "undecided" in text
    assert f"\n{load_line(evidence)}\n" in text
    assert "\x1b" not in text
    assert max(map(len, text.replace(load_line(evidence), "").splitlines())) <= 100


def test_plasticity_alone(evidence):
    text = terminal_plasticity(evidence.plasticity)
    assert text in terminal_report(evidence)
    assert text.index("ln1") < text.index("fc2")


@pytest.mark.parametrize("with_trials", [True, False])
def test_before_the_end(build_evidence, with_trials):
    evidence = build_evidence(None if with_trials else (), with_final=False)
    for text in (terminal_report(evidence), html_report(evidence)):
        assert "create_model" not in text
        assert with_trials or "no trial has finished" in text
    assert "sealed" in html_report(evidence)


class _Tags(HTMLParser):
    """Tags that must be closed, and the attributes seen."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_report_is_whole_and_loads_nothing(evidence):
    text = html_report(evidence)
    parser = _Tags()
    parser.feed(text)
    assert parser.open == []
    for name, value in parser.attributes:
        assert name not in ("src", "srcset", "data", "action")
        assert "href" not in name or value.startswith("#")
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert "<title>unfreeze: demo</title>" in text
    assert '<p class="answer">mha+fc1</p>' in text
    assert text.count("<figure>") == 6
    assert "prefers-color-scheme: dark" in text


def test_html_report_escapes(evidence):
    config = {**evidence.config, "storage": "<i>", "tracking": {"uri": "https://me:secret@host"}}
    text = html_report(dataclasses.replace(evidence, sweep="<script>alert(1)</script>", config=config))
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;b&gt;" in text  # a class of that name
    assert "out of &lt;memory&gt;" in text
    assert "<i>" not in text
    assert "secret" not in text
    assert "https://…@host" in text


def test_load_line_runs_where_the_file_is(evidence):
    assert load_line(evidence) == (
        "import timm, unfreeze.models.tiny; model = timm.create_model('unfreeze_tiny', "
        "checkpoint_path='./runs/demo/export/model.safetensors', num_classes=10)"
    )
    remote = dataclasses.replace(evidence, config={**evidence.config, "storage": "s3://bucket/runs"})
    assert load_line(remote).endswith("# after copying s3://bucket/runs/demo/export/model.safetensors here")
    compile(load_line(remote), "line", "exec")


def test_markup_in_names_is_text(build_trial, build_evidence, evidence):
    text = terminal_report(dataclasses.replace(evidence, sweep="[bold]x[/bold]"))
    assert "[bold]x[/bold]" in text


def test_importing_the_report_is_light():
    heavy = ("mlflow", "matplotlib", "scipy", "torch")
    code = f"import sys, unfreeze.tracking.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_flatten_and_redact():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, "x"], "e": None, "f": "t"}) == {
        "a.b": "1",
        "a.c": "{}",
        "d": '[1, "x"]',
        "e": "null",
        "f": "t",
    }
    assert redact("see http://u:p@h:1/x") == "see http://…@h:1/x"
    assert redact("user@host") == "user@host"
