"""A pre-pass that found what it is told."""

from collections.abc import Mapping

from unfreeze.records import PlasticityRow, PlasticityTable


def plasticity_table(scores: Mapping[str, Mapping[str, float]], *, data_digest: str = "") -> PlasticityTable:
    """``scores``: mode → "block.component" → plasticity, known without error."""
    rows = [
        PlasticityRow(
            mode=mode,
            block=int(block),
            component=component,
            mean=value,
            sd=0.0,
            num_pairs=1,
            low=0.0,
            high=0.0,
        )
        for mode, groups in scores.items()
        for (block, _, component), value in ((group.partition("."), value) for group, value in groups.items())
    ]
    return PlasticityTable(rows=tuple(rows), skipped_pairs=0, seconds=0.0, model_digest="", data_digest=data_digest)
