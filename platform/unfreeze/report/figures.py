"""A sweep's charts: for the page, and each as SVG that is the same bytes for the same evidence."""

from unfreeze.records import Evidence
from unfreeze.report.charts import trial_charts
from unfreeze.report.plasticity_charts import pre_pass_charts
from unfreeze.report.vega import Chart, to_svg


def all_charts(evidence: Evidence) -> list[Chart]:
    """Every chart that has something to show, in the order of the report."""
    return [*pre_pass_charts(evidence.plasticity), *trial_charts(evidence)]


def render_all(evidence: Evidence) -> dict[str, str]:
    """Every chart by name as SVG."""
    return {chart.name: to_svg(chart) for chart in all_charts(evidence)}
