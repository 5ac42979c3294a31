"""What ops/README.md promises to survive, each played in the middle of a sweep of its own.

A drill brings its fault about, mends what a person or a controller would mend, and returns when the sweep has ended,
with what it saw. What must hold after every one of them is not said here: the ledger is that of an undisturbed sweep,
and MLflow shows all of it.
"""

import time
from collections.abc import Callable

from checks import check_tracking, status
from deployment import S3, Deployment
from podman import RehearsalError

# MLflow before some migrations of the locked one's; a database of this one's is what an upgrade finds.
OLDER_MLFLOW = "unfreeze-rehearsal-mlflow"
_AWAY_S = 60.0


def worker_killed(deployment: Deployment, sweep: str) -> str:
    job = deployment.submit(sweep)
    job.wait_under_way()
    deployment.remove_worker(deployment.busy_worker())
    job.wait_end()
    deployment.start_worker()
    return "the other worker took over"


def head_killed(deployment: Deployment, sweep: str) -> str:
    """KubeRay's next attempt is a new cluster and the same command, which waits for the lost driver's lease."""
    job = deployment.submit(sweep)
    job.wait_under_way()
    job.forget()
    deployment.remove_cluster()
    deployment.start_cluster()
    deployment.submit(sweep).wait_end()
    return "a new cluster went on"


def tracking_restarted(deployment: Deployment, sweep: str) -> str:
    job = deployment.submit(sweep)
    job.wait_under_way()
    deployment.stop_mlflow()
    deployment.stage.remove("postgres-0")
    deployment.start_tracking()
    job.wait_end()
    return catch_up(deployment, sweep)


def storage_away(deployment: Deployment, sweep: str) -> str:
    job = deployment.submit(sweep)
    job.wait_under_way()
    with deployment.stage.cut_off(S3):
        time.sleep(_AWAY_S)
    deployment.use_storage()
    job.wait_end()
    return f"unreachable for {_AWAY_S:.0f} s"


def database_lost(deployment: Deployment, sweep: str) -> str:
    """Its volume too. What was dumped comes from the dump, what came after it from the ledger."""
    deployment.stage.run_job("postgres-backup")
    dumped = _digests(deployment)
    job = deployment.submit(sweep)
    job.wait_under_way()
    deployment.destroy_database()
    deployment.start_database()
    deployment.stop_mlflow()
    deployment.stage.run_job("postgres-restore")
    deployment.start_mlflow()
    if not dumped <= _digests(deployment):
        raise RehearsalError("the restored database lacks runs that were dumped")
    job.wait_end()
    return f"{len(dumped)} runs from the dump, {catch_up(deployment, sweep)}"


def mlflow_upgraded(deployment: Deployment, sweep: str) -> str:
    """As `strategy: Recreate` has it: the older MLflow is gone before the init container migrates its database."""
    deployment.stop_mlflow()
    deployment.destroy_database()
    deployment.start_database()
    deployment.start_mlflow(f"localhost/{OLDER_MLFLOW}")
    job = deployment.submit(sweep)
    job.wait_under_way()
    ((before,),) = deployment.query("SELECT version_num FROM alembic_version")
    deployment.stop_mlflow()
    deployment.start_mlflow()
    ((after,),) = deployment.query("SELECT version_num FROM alembic_version")
    if before == after:
        raise RehearsalError(f"nothing was migrated: the older MLflow's database is of version {before} already")
    job.wait_end()
    return f"schema {before} → {after}, {catch_up(deployment, sweep)}"


def keys_rotated(deployment: Deployment, sweep: str) -> str:
    """Both keys of S3 and PostgreSQL's password, by the runbook's order; a new cluster brings a token of its own."""
    job = deployment.submit(sweep)
    job.wait_under_way()
    old = {name: dict(deployment.secrets[name]) for name in ("unfreeze-s3", "unfreeze-s3-artifacts")}
    for name in old:
        deployment.secrets[name] |= deployment.keys.make(name, deployment.s3_url)
    old_password, new_password = deployment.change_password()
    deployment.stop_mlflow()
    deployment.start_mlflow()
    login = deployment.login
    job.forget()
    deployment.remove_cluster(grace_s=30)
    deployment.start_cluster()
    for name, key in old.items():
        deployment.keys.remove(name, deployment.s3_url, key)
    if deployment.takes_password(old_password) or not deployment.takes_password(new_password):
        raise RehearsalError("PostgreSQL takes the old password still, or the new one not")
    if (code := status(f"{deployment.dashboard}/api/jobs/", login)) not in (401, 403):
        raise RehearsalError(f"the new cluster answers {code} to the old one's token")
    deployment.submit(sweep).wait_end()
    return "the old keys, password and token are refused"


def catch_up(deployment: Deployment, sweep: str) -> str:
    """Where the sweep ended before MLflow was back: the same command again, as the runbook says."""
    try:
        check_tracking(deployment, sweep)
    except RehearsalError:
        deployment.submit(sweep).wait_end()
        return "MLflow caught up by the same command again"
    return "MLflow caught up by itself"


def _digests(deployment: Deployment) -> set[tuple[str, ...]]:
    """What tells the tracked runs and their content apart."""
    found = deployment.query("SELECT run_uuid, value FROM tags WHERE key = 'unfreeze.digest'")
    return {tuple(row) for row in found}


# In this order: a drill leaves what the next one needs.
DRILLS: dict[str, tuple[str, Callable[[Deployment, str], str]]] = {
    "worker": ("a worker's pod is killed", worker_killed),
    "head": ("the head's pod is killed", head_killed),
    "tracking": ("MLflow and PostgreSQL are restarted", tracking_restarted),
    "storage": ("S3 is away", storage_away),
    "database": ("PostgreSQL is destroyed and restored", database_lost),
    "upgrade": ("MLflow is upgraded", mlflow_upgraded),
    "keys": ("keys are rotated", keys_rotated),
}
