"""The Slurm job script with plain processes in the scheduler's place: what starts where, and how it ends."""

import os
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ops/slurm/sweep.sbatch"
JOB = "4711"
# A node is a process: its name in SLURMD_NODENAME, its number in SLURM_NODEID.
STUBS = {
    "scontrol": """
        if [[ $1 == show ]]; then printf 'node-a\\nnode-b\\nnode-c\\n'; else echo "scontrol $*" >>"$LOG"; fi
        """,
    "srun": """
        nodes=(node-a)
        while [[ $1 == --* ]]; do [[ $1 != --exclude ]] || nodes=(node-b node-c); shift 2; done
        trap 'kill $(jobs -p)' TERM
        for node in "${nodes[@]}"; do
          case $node in node-a) id=0 ;; node-b) id=1 ;; *) id=2 ;; esac
          SLURMD_NODENAME=$node SLURM_NODEID=$id "$@" &
        done
        wait
        """,
    "ray": """
        echo "$SLURMD_NODENAME: ray $* RAY_ADDRESS=${RAY_ADDRESS:-} token=$(wc -c <"$RAY_AUTH_TOKEN_PATH")" >>"$LOG"
        [[ ! ${HEAD_FAILS:-} ]] || { echo "no port"; exit 1; }
        echo 'Ray runtime started.'
        exec sleep 60
        """,
    "python": """
        echo "driver: $* RAY_ADDRESS=$RAY_ADDRESS" >>"$LOG"
        trap 'echo "driver: TERM" >>"$LOG"; kill $(jobs -p); exit 130' TERM
        [[ ! ${LONG:-} ]] || { sleep 60 & wait; }
        exit ${DRIVER_ENDS:-0}
        """,
}


class Job:
    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "bin").mkdir()
        for name, text in STUBS.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{textwrap.dedent(text)}")
            (folder / "bin" / name).chmod(0o755)
        (folder / "sweeps").mkdir()
        (folder / "sweeps/vit_components.py").write_text("")
        self.log.write_text("")

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        own = {
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "node-[a-c]",
            "SLURM_JOB_NUM_NODES": "3",
            "LOG": str(self.log),
        }
        own |= {"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(self.folder)}
        own["PATH"] = f"{self.folder}/bin:{os.environ['PATH']}"
        # A copy from somewhere else, as the scheduler's spool is.
        script = self.folder / "slurm_script"
        script.write_text(SCRIPT.read_text())
        return subprocess.Popen(
            ["bash", str(script), *arguments], env={**os.environ, **own, **variables}, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, list[str]]:
        """Exit code, what was said, what was started in order of the log."""
        process = self.start(*arguments, **variables)
        said = process.communicate(timeout=60)[1]
        return process.returncode, said, self.log.read_text().splitlines()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_head_workers_and_the_driver(job: Job) -> None:
    code, _, log = job.run("experiment=demo", "storage=/shared/runs")
    assert code == 0
    (head,) = (line for line in log if line.startswith("node-a: ray start"))
    workers = sorted(line for line in log if line.startswith(("node-b", "node-c")))
    (driver,) = (line for line in log if line.startswith("driver: "))
    port = 20000 + int(JOB) % 1200 * 10
    address = f"RAY_ADDRESS=node-a:{port}"
    assert f"--head --port {port} " in head
    assert "RAY_ADDRESS= token=64" in head
    assert [f"--address node-a:{port} {address} token=64" in line for line in workers] == [True, True]
    assert all("--num-cpus 8 --num-gpus 4" in line for line in (head, *workers))
    ports = [line.split("--dashboard-agent-listen-port ")[1].split()[0] for line in (head, *workers)]
    assert ports == [str(port + 2), str(port + 3), str(port + 4)]  # several nodes may be one machine
    assert driver == f"driver: {job.folder}/sweeps/vit_components.py experiment=demo storage=/shared/runs {address}"
    assert not list(job.folder.glob(".slurm/*/token"))
    assert not Path(f"/tmp/ray-{JOB}").exists()


@pytest.mark.parametrize("storage", [[], ["storage=./runs"], ["storage="], ["storage=runs"]])
def test_storage_that_would_not_be_shared_starts_nothing(storage: list[str], job: Job) -> None:
    code, said, log = job.run("experiment=demo", *storage)
    assert (code, log) == (2, [])
    assert said.startswith("sweep.sbatch: storage= must be s3:// or the absolute path of a folder that all nodes share")


@pytest.mark.parametrize(("code", "is_queued"), [(0, False), (2, False), (75, True)])
def test_what_broke_down_under_it_is_queued_again(code: int, is_queued: bool, job: Job) -> None:
    ended, _, log = job.run("storage=s3://bucket/runs", DRIVER_ENDS=str(code))
    assert ended == code
    assert (f"scontrol requeue {JOB}" in log) == is_queued


def test_the_scheduler_s_notice_reaches_the_driver(job: Job) -> None:
    process = job.start("storage=/shared/runs", LONG="yes")
    deadline = time.monotonic() + 30
    while "driver: " not in job.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130, said
    assert job.log.read_text().splitlines()[-2:] == ["driver: TERM", f"scontrol requeue {JOB}"]


def test_a_head_that_does_not_start_is_shown(job: Job) -> None:
    code, said, log = job.run("storage=/shared/runs", HEAD_FAILS="yes")
    assert code == 2
    assert "no port" in said
    assert "the Ray head did not start" in said
    assert not any(line.startswith("driver") for line in log)
