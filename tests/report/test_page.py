"""The two reports: what a reader must find, and what must not be there."""

import dataclasses
import html
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from scipy import stats

from unfreeze.config import redact
from unfreeze.evidence.power import what_would_settle
from unfreeze.evidence.verdict import verdict
from unfreeze.records import (
    COMPONENTS,
    Contender,
    MlflowPlace,
    ScoreWorth,
    TrialState,
    Worth,
    final_result_from_dict,
    to_dict,
)
from unfreeze.report.answer import best_trials, load_lines, recommendation_rows
from unfreeze.report.links import run_link
from unfreeze.report.page import html_report, terminal_report
from unfreeze.report.plasticity import agreement_rows, terminal_plasticity
from unfreeze.report.settings import flatten


def test_terminal_report(evidence):
    text = terminal_report(evidence)
    assert "mha+fc1" in text.split("Plasticity")[0]
    assert "96.50% ± 0.70 (mean ± sd over 2 seeds)" in text
    assert "96.00% [93.15%, 97.70%] (95 % Wilson, n = 300)" in text
    assert "4.753 [4.703, 4.803]" in text
    assert re.search(r"ln1\+fc2 +│ stopped", text)
    assert "no number, since 7 finished trials of components are too few" in " ".join(text.split())
    assert f"\n{load_lines(evidence)}\n" in text
    assert "\x1b" not in text
    assert max(map(len, text.replace(load_lines(evidence), "").splitlines())) <= 100


def test_what_told_the_best_from_the_others(evidence):
    assert "PED-ANOVA" not in terminal_report(evidence) + prose(html_report(evidence))
    shares = {"learning_rate": 0.6, "mha": 0.3, **{f"fc1@{block}": 0.01 for block in range(10)}}
    told = dataclasses.replace(evidence, importances=shares)
    text, page = terminal_report(told), prose(html_report(told))
    assert cells(text, "learning_rate") == [["60%"]]
    assert "Importance of each parameter" in text
    assert "fc1@7" in text
    assert "fc1@8" not in text.split("PED-ANOVA")[1].split("as description")[0]
    assert page.index("PED-ANOVA") < page.index("learning_rate</td>") < page.index("60%")


def prose(page: str) -> str:
    """A page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def line_with(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def cells(text: str, name: str) -> list[list[str]]:
    """The rows of tables whose first cell is ``name``."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]
    return [row[1:] for row in rows if row[0] == name]


class TestPlasticity:
    def test_of_an_old_table(self, evidence):
        """Of before rankings, quantiles, bounds and scores: no part that would need them."""
        text = terminal_plasticity(evidence.plasticity)
        assert text.index("ln1") < text.index("fc2")
        assert "Plasticity, mean [95 % interval]" in text
        assert "\nmeasured in 1.5 s\n" in text
        assert not re.search(r">|≈|bound|pairs|skipped", text)
        assert text.partition("measured")[0] in terminal_report(evidence)
        page = prose(html_report(evidence))
        assert "bands are 95 % intervals of the mean over pairs.</figcaption>" in page
        assert not re.search(r"≈|published|quantiles", page)

    def test_order_and_what_it_took(self, full_table):
        text = terminal_plasticity(full_table)
        assert line_with(text, "reference: ln1") == (
            "reference: ln1 > mha ≈ ln2 > fc1 > fc2 after 512 pairs: the order is settled at 90 % confidence"
        )
        assert line_with(text, "in_situ: fc2") == (
            "in_situ: fc2 > fc1 > ln2 > mha > ln1 after 512 pairs: standard errors are below 0.50% of every"
        )
        assert "\n≈: cannot be told apart at 90 % confidence\n" in text
        assert "Plasticity, mean [90 % interval]" in text
        assert "\nmeasured in 1.5 s; 3 pairs of equal images were left out\n" in text
        assert max(map(len, text.splitlines())) <= 100

    def test_no_tie_no_explanation(self, full_table):
        settled = tuple(dataclasses.replace(r, ties=(False,) * 4) for r in full_table.rankings)
        assert "≈" not in terminal_plasticity(dataclasses.replace(full_table, rankings=settled))

    def test_where_the_published_bound_is_exceeded(self, full_table):
        text = " ".join(terminal_plasticity(full_table).split())
        assert "reference: the largest rate exceeds the published bound in ln1 (3 of 4 blocks); the valid" in text
        assert "the valid bound holds everywhere (20 checked) " in text
        assert text.count("published") == 1  # in_situ has no bounds
        assert "ERROR" not in text
        high = tuple(dataclasses.replace(b, as_published=99.0) for b in full_table.bounds)
        text = terminal_plasticity(dataclasses.replace(full_table, bounds=high))
        assert "exceeds the published bound in no block;" in text

    def test_rates_above_the_valid_bound_are_loud(self, full_table):
        low = tuple(
            dataclasses.replace(b, valid=1.0) if (b.component, b.block) == ("fc1", 2) else b for b in full_table.bounds
        )
        table = dataclasses.replace(full_table, bounds=low)
        rate = next(r.maximum for r in table.rows if (r.mode, r.component, r.block) == ("reference", "fc1", 2))
        assert f"ABOVE THE VALID BOUND in 2.fc1 ({rate:.6g} > 1)\n" in terminal_plasticity(table)
        assert "bound holds" not in " ".join(terminal_plasticity(table).split())

    def test_rounding_is_no_excess(self, full_table):
        rates = {(r.block, r.component): r.maximum for r in full_table.rows if r.mode == "reference"}
        for factor, settings, loud in (
            (1 - 5e-6, {}, False),
            (1 - 1e-4, {}, True),
            (1 - 1e-4, {"precision": "bfloat16"}, False),
        ):
            bounds = tuple(
                dataclasses.replace(b, valid=factor * rates[b.block, b.component]) for b in full_table.bounds
            )
            table = dataclasses.replace(full_table, bounds=bounds, settings={**full_table.settings, **settings})
            assert ("ERROR" in terminal_plasticity(table)) == loud

    def test_scores_side_by_side(self, full_table):
        text = terminal_plasticity(full_table)
        means, fisher = full_table.component_means("reference"), {}
        for name in COMPONENTS:
            values = [value for group, value in full_table.scores["fisher"].items() if group.endswith(name)]
            fisher[name] = sum(values) / 4
        assert cells(text, "reference")[0] == [f"{means[name]:.3g} ({i})" for i, name in enumerate(COMPONENTS, 1)]
        assert cells(text, "fisher")[0] == [f"{fisher[name]:.3g} ({i})" for i, name in enumerate(COMPONENTS, 1)]
        assert [cell[-3:] for cell in cells(text, "in_situ")[0]] == ["(5)", "(4)", "(3)", "(2)", "(1)"]

    def test_rank_agreement_is_kendalls(self, full_table):
        rows = [row for row in full_table.rows if row.mode == "reference" and row.block is not None]
        first = {f"{row.block}.{row.component}": row.mean for row in rows}
        other = full_table.scores["gradient_norm"]

        def over_blocks(groups):
            return [sum(groups[f"{block}.{name}"] for block in range(4)) / 4 for name in COMPONENTS]

        expected = []
        for x, y in (
            (over_blocks(first), over_blocks(other)),
            (list(first.values()), [other[group] for group in first]),
        ):
            tau = f"{stats.kendalltau(x, y).statistic:.2f}".replace("-", "−")
            expected += [tau, str(len(x))]
        found = {name: rest for name, *rest in agreement_rows(full_table)}
        assert list(found) == ["in_situ", "gradient_norm", "fisher"]
        assert [cell.partition(",")[0] for cell in found["gradient_norm"]] == expected
        assert expected[1::2] == ["5", "20"]
        assert found["in_situ"][0] == "−1.00, p = 0.017"
        assert found["fisher"][2] == "1.00, p = 0.008"
        assert cells(terminal_plasticity(full_table), "gradient_norm")[1] == found["gradient_norm"]

    def test_one_mode_alone_has_nothing_to_compare(self, evidence):
        table = evidence.plasticity
        one = dataclasses.replace(table, rows=tuple(row for row in table.rows if row.mode == "in_situ"))
        assert "side by side" not in terminal_plasticity(one)
        assert "Kendall" not in terminal_plasticity(one)

    def test_every_score_at_once_fits(self, full_table):
        groups = full_table.scores["fisher"]
        names = ("gradient_norm", "sensitivity", "forward_only", "fisher", "parameters")
        scores = {name: {group: 4_198_400.0 + i for i, group in enumerate(groups)} for name in names}
        text = terminal_plasticity(dataclasses.replace(full_table, scores=scores))
        assert "4,198,402 (5)" in text
        assert max(map(len, text.splitlines())) <= 100

    def test_the_sweeps_report_adds_two_lines(self, full_evidence):
        text = terminal_report(full_evidence)
        assert "reference: ln1 > mha ≈ ln2" in text
        assert "the published bound in ln1 (3 of 4 blocks)" in text
        assert "side by side" not in text

    def test_page(self, full_table, full_evidence):
        page = html_report(full_evidence)
        section = page.partition("<h2>Plasticity of each component</h2>")[2].partition("</section>")[0]
        assert '<th scope="col">reference [90 %]</th>' in section
        assert '<p class="line">reference: ln1 &gt; mha ≈ ln2 &gt; fc1' in section
        assert '<p class="line">reference: the largest rate exceeds the published bound in ln1 (3 of 4 ' in section
        assert section.count("<figure") == 5
        assert prose(page).count('<div class="chart"') == 14
        assert "90 % intervals of the mean over pairs, valid whenever the measurement stopped." in section
        assert "whiskers end at the 5 and 95 % quantiles" in section
        assert section.count('<td class="whole">gradient_norm</td>') == 2
        assert all(f'<td class="whole">{cell}</td>' in section for cell in agreement_rows(full_table)[1])
        parser = _Tags()
        parser.feed(page)
        assert parser.open == []


@pytest.mark.parametrize("with_trials", [True, False])
def test_before_the_end(build_evidence, with_trials):
    evidence = build_evidence(None if with_trials else (), with_final=False)
    for text in (terminal_report(evidence), html_report(evidence)):
        assert "create_model" not in text
        assert with_trials or "no trial has finished" in text
    assert "sealed" in html_report(evidence)


class _Tags(HTMLParser):
    """Tags that must be closed, and the attributes seen; within scripts there are none."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in ("meta", "br", "link", "input"):
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
        assert "href" not in name or value.startswith("#") or value == "data:,"
    assert not re.search(r"url\((?!#)|@import", prose(text))
    assert "<title>unfreeze: demo</title>" in text
    assert '<p class="answer">mha+fc1</p>' in text
    assert prose(text).count('<div class="chart"') == 11
    assert len(text) < 1_100_000  # of it 0.9 MB of Vega
    assert "prefers-color-scheme: dark" in text


def test_each_trial_that_has_ended_leads_to_its_run_in_mlflow(evidence):
    assert "<a href=" not in html_report(evidence).partition('id="trials"')[2]
    place = MlflowPlace(id="1a", page="http://mlflow:5000", experiment_id="3")
    rows = html_report(dataclasses.replace(evidence, mlflow=place)).partition('id="trials"')[2]
    links = re.findall(r'<a href="(\S+?)" target="_blank" rel="noopener" title="its run in MLflow">(\S+?)</a>', rows)
    assert [name for _, name in links] == [t.spec.trial_id for t in evidence.trials if t.state.is_final]
    assert all(html.unescape(link) == run_link(place, name) for link, name in links)


def test_html_report_escapes(evidence):
    config = {**evidence.config, "storage": "<i>", "tracking": {"uri": "https://me:secret@host"}}
    text = html_report(dataclasses.replace(evidence, sweep="<script>alert(1)</script>", config=config))
    assert "<script>alert" not in text
    assert "<b>" not in prose(text)
    assert "&lt;b&gt;" in text  # a class of that name
    assert "out of &lt;memory&gt;" in text
    assert "<i>" not in prose(text)
    assert "secret" not in text
    assert "https://…@host" in text


def test_load_lines_run_where_the_folder_is(evidence):
    assert load_lines(evidence).splitlines() == [
        "import timm.data, unfreeze.models.tiny",
        "model = timm.create_model('local-dir:./runs/demo/export', pretrained=True).eval()",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]
    remote = dataclasses.replace(evidence, config={**evidence.config, "storage": "s3://bucket/runs"})
    assert "'local-dir:export'" in load_lines(remote)
    assert "# after copying s3://bucket/runs/demo/export here\n" in load_lines(remote)
    compile(load_lines(remote), "lines", "exec")


def test_an_eps_that_timm_cannot_set_is_said(evidence):
    config = {**evidence.config, "model": {**evidence.config["model"], "layer_norm_eps": 1e-12}}
    assert "LayerNorm eps 1e-12" in load_lines(dataclasses.replace(evidence, config=config))


def test_markup_in_names_is_text(build_trial, build_evidence, evidence):
    text = terminal_report(dataclasses.replace(evidence, sweep="[bold]x[/bold]"))
    assert "[bold]x[/bold]" in text


def test_importing_the_report_is_light():
    heavy = ("mlflow", "matplotlib", "scipy", "torch", "vl_convert")
    code = f"import sys, unfreeze.report.page; print([name for name in {heavy} if name in sys.modules])"
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


@pytest.mark.parametrize(
    ("rate", "grows", "words"),
    [
        (0.03, True, ""),
        (0.097, True, ""),
        (0.2, True, " (the range, 0.001 to 0.1, grew: its end did best)"),
        (0.95, True, " (at the end of what is tried, 0.0001 to 1; see search.learning_rate_high)"),
        (0.097, False, " (at the end of what is tried, 0.001 to 0.1; see search.learning_rate_high)"),
        (0.001, False, " (at the end of what is tried, 0.001 to 0.1; see search.learning_rate_low)"),
    ],
)
def test_a_rate_at_an_end_of_the_range_is_said(evidence, rate, grows, words):
    search = {**evidence.config["search"], "extend_rates": grows, "learning_rate_low": 1e-3, "learning_rate_high": 0.1}
    chosen = dataclasses.replace(evidence.recommendation, learning_rate=rate)
    found = dataclasses.replace(evidence, config={**evidence.config, "search": search}, recommendation=chosen)
    assert dict(recommendation_rows(found))["learning rate"] == f"{rate:.3g}{words}"


@pytest.mark.parametrize(
    ("near_best", "words"),
    [
        (0.93, "settled: within 0.5 points of the best with probability 93%; 0.10 points given away"),
        (
            0.6,
            "undecided: within 0.5 points of the best with probability 60%; next is fc1 (95.00%, cheaper); 0.10 points",
        ),
    ],
)
def test_the_choice_says_how_sure_it_is(evidence, near_best, words):
    own, other = (
        Contender(
            selection=name, learning_rate=0.01, expected=value, low=value - 0.01, high=0.98, near_best=sure, loss=0.001
        )
        for name, value, sure in (("mha+fc1", 0.955, near_best), ("fc1", 0.95, 1 - near_best))
    )
    rows = dict(recommendation_rows(dataclasses.replace(evidence, contenders=(own, other))))
    assert rows["choice"].startswith(words)
    assert rows["expected accuracy"] == "95.50% [94.50%, 98.00%] (by all trials; 95 %)"
    assert "choice" not in dict(recommendation_rows(evidence))  # another sampler, or a grid


WORTHS = (
    ScoreWorth(
        score="reference",
        num_trials=32,
        worth=Worth(mean=0.012, low=-0.003, high=0.026, positive=0.94, p=0.058, bayes_factor=2.1),
    ),
    ScoreWorth(score="fisher", num_trials=32, trouble="the score is the same everywhere"),
)


@pytest.mark.parametrize("report", [terminal_report, html_report])
def test_the_verdict_and_what_each_score_is_worth(evidence, report):
    text = " ".join(html.unescape(report(dataclasses.replace(evidence, worths=WORTHS))).split())
    assert verdict(WORTHS) in text
    assert "no number: the score is the same everywhere" in text
    assert "+1.2 [−0.3, 2.6]" in text
    assert what_would_settle() in text
    assert not re.search("(supported|contradicted):", text, re.IGNORECASE)
    assert "What would settle it" not in report(evidence)  # no number, and the reason why


def test_a_sweep_that_ended_before_exports_were_validated(evidence):
    raw = {name: value for name, value in to_dict(evidence.final).items() if name not in ("val_correct", "num_val")}
    rows = dict(recommendation_rows(dataclasses.replace(evidence, final=final_result_from_dict(raw))))
    assert "test accuracy" in rows
    assert "exported, validation" not in rows


def test_a_finished_trial_comes_before_what_was_stopped(build_trial, build_evidence):
    stopped = build_trial(0, "mha", 0.95, state=TrialState.STOPPED)
    finished = build_trial(1, "mha", 0.76)
    alone = build_trial(2, "fc1", 0.99, state=TrialState.DIVERGED)
    assert best_trials(build_evidence((stopped, alone, finished))) == [finished, alone]
