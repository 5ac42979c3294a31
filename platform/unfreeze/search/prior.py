"""From the pre-pass to a score per component, which orders the first points."""

from unfreeze.records import COMPONENTS, PlasticityTable


def prior_scores(score: str, table: PlasticityTable) -> dict[str, float]:
    """Component → score. ``reference`` and ``in_situ``: mean plasticity; ``reversed``: minus the reference one, the
    adversary that a search must survive; ``uniform``: no opinion."""
    if score == "uniform":
        return dict.fromkeys(COMPONENTS, 0.0)
    means = table.component_means("reference" if score == "reversed" else score)
    return {name: -means[name] if score == "reversed" else means[name] for name in COMPONENTS}
