"""Addresses of a sweep's runs in MLflow."""

from urllib.parse import quote

from unfreeze.records import MlflowPlace


def run_link(place: MlflowPlace, trial_id: str) -> str:
    """MLflow's table of runs with this trial's alone: by its tags, since one that was deleted comes back as another."""
    found = f"tags.\"unfreeze.id\" = '{place.id}' AND tags.\"unfreeze.run\" = '{trial_id}'"
    return (
        f"{place.page}/#/experiments/{place.experiment_id}/runs?workflowType=machine_learning"
        f"&searchFilter={quote(found, safe='')}"
    )
