"""A grid's table of selections, and what is said where the test images chose."""

import dataclasses

import pytest

from unfreeze.records import Evidence, Recommendation
from unfreeze.report.choices import CHOICE_HEADINGS, choice_rows
from unfreeze.report.page import html_report, terminal_report

LABEL = "learning rate chosen on test accuracy, as the paper's code does; optimistic"


def choice(selection: str, *, test: float | None, trial_ids: tuple[str, ...], num_rates: int = 4) -> Recommendation:
    return Recommendation(
        selection=selection,
        learning_rate=0.01,
        val_accuracy=0.965,
        val_accuracy_sd=0.007,
        num_seeds=2,
        trainable_parameters=133_898,
        trial_ids=trial_ids,
        num_rates=num_rates,
        test_accuracy=test,
        test_accuracy_sd=None if test is None else 0.0123,
    )


@pytest.fixture
def grid(evidence: Evidence) -> Evidence:
    choices = (
        choice("mha+fc1", test=None, trial_ids=("trial-00008", "trial-00007")),
        choice("mha", test=None, trial_ids=("trial-00000",), num_rates=2),
    )
    config = {**evidence.config, "search": {**evidence.config["search"], "space": "grid"}}
    return dataclasses.replace(evidence, config=config, choices=choices)


@pytest.fixture
def published(grid: Evidence) -> Evidence:
    choices = tuple(
        dataclasses.replace(c, test_accuracy=value, test_accuracy_sd=0.0123)
        for c, value in zip(grid.choices, (0.955, 0.9), strict=True)
    )
    assert grid.final is not None
    final = dataclasses.replace(grid.final, select_on="test")
    return dataclasses.replace(grid, choices=choices, recommendation=choices[0], final=final)


def test_only_a_grid_has_the_table(evidence: Evidence, grid: Evidence) -> None:
    assert choice_rows(evidence) == []
    rows = choice_rows(grid)
    assert [len(row) for row in rows] == [len(CHOICE_HEADINGS)] * 2
    assert rows[0][:5] == ("mha+fc1", "0.01", "96.50% ± 0.70", "96.00% (1 run)", "2")
    assert rows[1][3] == "–"  # its test images stay sealed


def test_validation_chooses_by_default_and_the_reports_say_so(grid: Evidence) -> None:
    text, page = " ".join(terminal_report(grid).split()), html_report(grid)
    assert (
        "Each selection at its own best of 2 to 4 learning rates: learning rate chosen on validation accuracy" in text
    )
    assert "<h3>Each selection at its own best of 2 to 4 learning rates: learning rate chosen on validation" in page
    assert "Chosen on validation data only; the test images were opened once, after the choice." in page
    assert "optimistic" not in text + page


def test_of_one_rate_nothing_was_chosen(grid: Evidence) -> None:
    alone = dataclasses.replace(grid, choices=tuple(dataclasses.replace(own, num_rates=1) for own in grid.choices))
    text = " ".join(terminal_report(alone).split())
    assert "Each selection at the one learning rate it was tried at" in text
    assert "best of" not in text + html_report(alone)
    three = dataclasses.replace(grid, choices=tuple(dataclasses.replace(own, num_rates=3) for own in grid.choices))
    assert "selection at its own best of 3 learning rates" in html_report(three)


def test_a_test_that_was_opened_before_is_no_sealed_one(grid: Evidence) -> None:
    page = html_report(dataclasses.replace(grid, num_tested=84))
    assert "Chosen on validation data only; yet an earlier run with search.select_on=test opened the test" in page
    assert "opened once" not in page


def test_a_choice_on_test_accuracy_is_labelled_wherever_it_shows(published: Evidence) -> None:
    assert choice_rows(published)[1][3] == "90.00% ± 1.23"
    text, page = terminal_report(published), html_report(published).replace("&#39;", "'")
    flat = " ".join(text.split())
    assert f"Each selection at its own best of 2 to 4 learning rates: {LABEL}" in flat
    assert "95.50% ± 1.23 (mean ± sd over 2 seeds)" in flat
    assert page.count(LABEL) == 3  # among the recommendation's rows, below them, and below the table
    assert "Chosen on validation data only" not in page
    assert "of the exported run" in text
    assert max(len(line) for line in text.splitlines() if "timm.create_model" not in line) <= 100
