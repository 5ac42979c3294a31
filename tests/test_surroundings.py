"""The commands in the surroundings that people run them in: their shells, terminals, pipes, disks and variables.

None ends in a traceback, none exits 0 without its result in the place it named. What needs Ray is marked slow.
"""

import builtins
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from arguments import for_hydra
from configuring import SWEEPS, composed, problems_of
from finished_sweep import make_evidence, make_plasticity
from processes import Processes
from ray._private import services

from unfreeze.command import COMMANDS
from unfreeze.config import ClusterConfig, Config
from unfreeze.errors import ClusterError, ConfigError, StorageError
from unfreeze.library import Plasticity
from unfreeze.load import load_config, text_options
from unfreeze.records import COMPONENTS, to_dict
from unfreeze.report.streams import say, watch
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.address import check_address
from unfreeze.sweep.machine import check_train, count_cpus, find_token, provide_token, ray_folder
from unfreeze.sweep.package import PACKAGE, on_path, travelling
from unfreeze.sweep.resources import ray_cluster

ROOT = SWEEPS.parent
FULL = "standard output cannot be written: No space left on device"


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command, without what a terminal would set; its output as Latin-1, which reads any bytes."""
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, encoding="latin-1", timeout=60
    )


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of bash: ``$REPORT`` shows the sweep below ``folder``, ``$SHOW`` a line of which a copy is kept, ``$ONLY``
    one of which there is none, ``$UNFREEZE`` is the installed command.
    """
    code = "from unfreeze.report.streams import show, sound_streams\nwith sound_streams():\n    show('│ ü → é'"
    commands = {
        "$REPORT": [sys.executable, str(SWEEPS / "report.py"), "sweep.name=demo", f"storage={folder}/runs"],
        "$SHOW": [sys.executable, "-c", f"{code}, kept_at='report.html')"],
        "$UNFREEZE": [sys.executable, "-c", "from unfreeze.command import main; main()"],
        "$ONLY": [sys.executable, str(SWEEPS / "report.py"), "--help"],
    }
    for name, command in commands.items():
        script = script.replace(name, shlex.join(command))
    return run(["bash", "-c", script], folder, **variables)


def copy_checkout(folder: Path) -> Path:
    for name in ("platform", "sweeps"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


# --- terminals, pipes and disks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "output", "errors"),
    [
        ("$SHOW", 0, "| ü -> é\n", ""),
        ("PYTHONIOENCODING=ascii $SHOW", 0, "| ? -> ?\n", ""),
        ("$SHOW | true; exit ${PIPESTATUS[0]}", 0, "", ""),
        ("$SHOW >/dev/full", 0, "", f"{FULL}; the result is in report.html\n"),
        ("$SHOW >/dev/full 2>&1", 0, "", ""),
        ("$SHOW >&- 2>&- <&-", 0, "", ""),
        ("$ONLY | true; exit ${PIPESTATUS[0]}", 141, "", ""),
        ("$ONLY >/dev/full", 2, "", f"error: {FULL}; send it elsewhere\n"),
        ("$ONLY 2>&- >/dev/null", 0, "", ""),
        ("$UNFREEZE | true; exit ${PIPESTATUS[0]}", 141, "", ""),
        ("$UNFREEZE >/dev/full", 2, "", f"error: {FULL}; send it elsewhere\n"),
    ],
)
def test_what_is_printed(script: str, code: int, output: str, errors: str, tmp_path: Path) -> None:
    result = shell(script, tmp_path, PYTHONIOENCODING="latin-1")
    assert (result.returncode, result.stdout, result.stderr) == (code, output, errors)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a finished sweep."""
    sweep = make_evidence()
    ledger = Ledger(str(tmp_path / "runs"), "demo")
    ledger.claim(Config())
    ledger.write_json("facts.json", {"model": to_dict(sweep.model), "data": to_dict(sweep.data)})
    ledger.write_json("plasticity.json", to_dict(sweep.plasticity))
    for trial in sweep.trials:
        ledger.write_trial(trial)
    return tmp_path / "runs/demo"


@pytest.mark.slow
def test_a_report_of_storage_that_may_only_be_read_on_a_terminal_without_lines(finished: Path, tmp_path: Path) -> None:
    (finished / "report.html").mkdir()  # no permission stops root, whom the tests may run as
    result = shell("$REPORT", tmp_path, PYTHONIOENCODING="latin-1", TERM="dumb", COLUMNS="7")
    assert result.returncode == 0
    assert "| unfreeze " in result.stdout
    assert "report: " not in result.stdout
    assert result.stderr.startswith("report.html is not written anew: cannot write ")
    assert result.stderr.count("\n") == 1


def test_progress_that_cannot_be_shown_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("one")
        say("another")
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    monkeypatch.setattr(sys, "stderr", None)
    say("without a stream")


# --- names and paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "20261127",
        "2026_11_27",
        "007",
        "1e5",
        "true",
        "nan",
        "ü ö",
        "a[b]{c}",
        "a,b=c#d",
        "it's",
        'say "x"',
        "\\",
        "\\'",
        "a\\b",
    ],
)
def test_a_text_on_the_command_line_is_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [for_hydra(f"{name}={text}") for name in ("storage", "trial.selection", "data.path")]
    raw = composed("data=folder", "data.source_path=/s", *arguments)
    assert (raw.storage, raw.trial.selection, raw.data.path) == (text, text, text)


@pytest.mark.parametrize(
    ("argument", "read"),
    [
        ("model.weights=null", None),
        ("model.weights='a b'", "a b"),
        ('model.weights="a:b(8)"', "a:b(8)"),
        ("model.weights=${storage}", "./runs"),
    ],
)
def test_null_quotes_and_references_are_what_they_are_in_hydra(argument: str, read: str | None) -> None:
    assert composed(for_hydra(argument)).model.weights == read


def test_what_is_no_text_is_left_to_hydra() -> None:
    for argument in ("--cfg", "job", "model=tiny", "hydra.run.dir=.", "experiment=demo", "+storage2=1"):
        assert for_hydra(argument) == argument
    assert for_hydra("finetune.epochs=3") == "++finetune.epochs=3"
    assert {"sweep.name", "storage", "data.path", "tracking.experiment"} <= text_options()
    assert not {"data.name", "finetune.epochs", "search.baselines", "cluster.num_slots"} & text_options()


@pytest.mark.parametrize("name", ["storage", "data.path", "data.cache_dir", "model.weights", "tracking.experiment"])
def test_an_unset_shell_variable_is_no_folder(name: str) -> None:
    section, _, option = name.rpartition(".")
    (problem,) = problems_of({section: {option: ""}} if section else {option: ""})
    assert problem.strip() == f"{name}: must not be empty, but got ''; an unset shell variable, perhaps"


@pytest.mark.parametrize(
    ("start", "variables"),
    [(["-m", "sweeps.report"], {}), (["sweeps/report.py"], {"PYTHONSAFEPATH": "1"}), (["-P", "sweeps/report.py"], {})],
)
def test_however_python_is_started(start: list[str], variables: dict[str, str]) -> None:
    result = run([sys.executable, *start, "--help", "storage"], ROOT, **variables)
    assert result.returncode == 0, result.stderr
    assert "storage = ./runs" in result.stdout


def test_a_folder_that_has_been_removed(tmp_path: Path) -> None:
    result = shell("mkdir gone && cd gone && rmdir ../gone && $REPORT", tmp_path)
    said = "error: the current folder has been removed; cd to one that is there\n"
    assert (result.returncode, result.stdout, result.stderr.splitlines(keepends=True)[-1]) == (2, "", said)


def test_a_checkout_in_an_odd_folder(tmp_path: Path) -> None:
    odd = copy_checkout(tmp_path / "ü [a] b=c,d # %20 'e'")
    result = run([sys.executable, "sweeps/report.py", "sweep.name=none"], odd)
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no sweep in ")


# --- variables, homes, folders, containers ----------------------------------------------------------------------------


def test_train_s_first_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "", "false"):
        monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", value)
        with pytest.raises(ClusterError, match="unset RAY_TRAIN_V2_ENABLED"):
            check_train()
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    check_train()


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (  # a batch system's: the step has no limit of its own, the job above it has
            {
                "proc/self/cgroup": "0::/slurm/job_1/step_0\n",
                "sys/fs/cgroup/slurm/job_1/step_0/cpu.max": "max 100000\n",
                "sys/fs/cgroup/slurm/job_1/cpu.max": "300000 100000\n",
            },
            3,
        ),
        (  # a container that sees the machine's path, and its own quota at the top
            {"proc/self/cgroup": "0::/../../docker/1f\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"},
            1,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_cpus_are_what_the_container_gives(
    files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert count_cpus(tmp_path) == cpus
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7}, raising=False)
    assert count_cpus(tmp_path) == 1


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="u-", dir="/tmp") as folder:
        yield Path(folder)


def test_ray_s_folder(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(**variables: str) -> str | None:
        for name in ("RAY_TMPDIR", "TMPDIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return ray_folder()

    (short / "file").write_text("")
    (short / "theirs").mkdir()
    (short / "theirs/ray").write_text("")  # another user's, which no permission keeps root from
    long = short / ("a-rather-long-temporary-directory-of-a-batch-system/" * 2)
    assert folder(TMPDIR=str(short)) is None
    assert folder(RAY_TMPDIR=str(short), TMPDIR=str(long)) is None
    assert folder(TMPDIR=str(short / "theirs")) == f"{short}/theirs/ray-{os.getuid()}"
    for unfit in (long, short / "file", Path("/proc/none")):
        found = folder(TMPDIR=str(unfit))
        assert found == f"/tmp/ray-{os.getuid()}"
        with pytest.raises(ClusterError, match=rf"^RAY_TMPDIR={re.escape(str(unfit))} (is longer|cannot be written)"):
            folder(RAY_TMPDIR=str(unfit))


@pytest.mark.parametrize(
    ("home", "is_own"),
    [(None, True), ("", True), ("/proc/nohome", True), ("file", True), ("empty", False), ("has", False)],
)
def test_a_token_for_a_ray_without_a_home(
    home: str | None, is_own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "has/.ray").mkdir(parents=True)
    (tmp_path / "has/.ray/auth_token").write_text("secret\n")
    monkeypatch.setattr(os, "environ", {} if home is None else {"HOME": str(tmp_path / home) if home else ""})
    provide_token()
    assert ("RAY_AUTH_TOKEN" in os.environ) == is_own
    assert find_token() == {True: os.environ.get("RAY_AUTH_TOKEN")}.get(is_own, "secret" if home == "has" else None)


def test_a_token_file_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "HOME": str(tmp_path)})
    with pytest.raises(ClusterError, match=rf"^RAY_AUTH_TOKEN_PATH={tmp_path}/token is no file with a token"):
        provide_token()


@pytest.mark.parametrize("address", ["ray://head:10001", "http://127.0.0.1:8265", "head", "", "127.0.0.1:1"])
def test_an_address_where_no_cluster_is(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    with pytest.raises(ClusterError, match=re.escape(repr(address))) as caught:
        check_address(address)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("found", "words"),
    [(set(), "no Ray runs on this machine"), ({"127.0.0.1:1"}, "no Ray cluster answers at '.*:1'")],
)
def test_a_ray_of_this_machine_that_is_gone(found: set[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": "auto"})
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: found)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    with pytest.raises(ClusterError, match=words), ray_cluster(ClusterConfig()):
        pass


def test_ray_client_is_refused_in_the_configuration() -> None:
    (problem,) = problems_of({"cluster": {"address": "ray://head:10001"}})
    assert "ray:// is Ray Client" in problem


@pytest.mark.parametrize("home", [None, "/proc/nohome"])
def test_a_user_id_without_a_home(home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", home) if home else monkeypatch.delenv("HOME")
    assert load_config({}).data.cache_dir == f"{tmp_path}/unfreeze-{os.getuid()}"
    if home is None:
        with pytest.raises(ConfigError, match=r"data\.path=~/images: this user has no home folder"):
            load_config({"data": {"name": "folder", "path": "~/images", "source_path": "/source"}})


# --- inside a job, and which code runs there --------------------------------------------------------------------------


def test_a_folder_that_would_be_gone_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for raw in ({}, {"storage": "here/runs"}):
        config = load_config(raw)
        assert config.tracking.uri is None
        with pytest.raises(StorageError, match=rf"storage={config.storage} is relative, .* give s3://bucket/prefix or"):
            Ledger(config.storage, "demo")
    assert list(tmp_path.iterdir()) == []
    assert Ledger(load_config({"storage": f"{tmp_path}/runs"}).storage, "demo").trials() == []


def test_the_package_goes_where_the_workers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "/theirs"):
        environment = {} if before is None else {"PYTHONPATH": before}
        monkeypatch.setattr(os, "environ", environment.copy())
        with on_path():
            assert os.environ["PYTHONPATH"].split(":") == [str(PACKAGE.parent), *([before] if before else [])]
        assert os.environ == environment


def test_what_a_job_brings_goes_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"runtime_env": {"py_modules": ["gcs://_ray_pkg_1.zip"], "working_dir": "gcs://_ray_pkg_2.zip"}}
    monkeypatch.setattr(os, "environ", {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)})
    assert travelling() == {"py_modules": [str(PACKAGE), "gcs://_ray_pkg_1.zip"]}
    assert os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] == "1"


# --- MLflow's variables -----------------------------------------------------------------------------------------------

VARIABLES = {"MLFLOW_TRACKING_URI": "http://m:5000", "MLFLOW_EXPERIMENT_NAME": "vits"}


@pytest.mark.parametrize(
    ("raw", "variables", "uri", "experiment"),
    [
        ({}, {}, "sqlite:///{here}/mlflow.db", "unfreeze"),
        ({}, {"MLFLOW_TRACKING_URI": ""}, "sqlite:///{here}/mlflow.db", "unfreeze"),
        ({}, VARIABLES, "http://m:5000", "vits"),
        ({}, {"MLFLOW_TRACKING_URI": "sqlite:///m.db"}, "sqlite:///{here}/m.db", "unfreeze"),
        ({"uri": None}, {"MLFLOW_TRACKING_URI": "http://m:5000"}, None, "unfreeze"),
        ({"uri": "http://o", "experiment": "o"}, VARIABLES, "http://o", "o"),
        # Which one that is only MLflow knows.
        ({}, {"MLFLOW_EXPERIMENT_ID": "7"}, "sqlite:///{here}/mlflow.db", "auto"),
        ({}, {**VARIABLES, "MLFLOW_EXPERIMENT_ID": "7"}, "http://m:5000", "vits"),
        ({}, {"MLFLOW_TRACKING_URI": "databricks"}, "databricks", "unfreeze"),
        ({}, {"MLFLOW_TRACKING_URI": "arn:aws:sagemaker:r:1:mlflow/x"}, "arn:aws:sagemaker:r:1:mlflow/x", "unfreeze"),
    ],
)
def test_tracking_follows_mlflow_s_variables(
    raw: dict[str, str],
    variables: dict[str, str],
    uri: str,
    experiment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracking = load_config({"tracking": raw}).tracking
    assert (tracking.uri, tracking.experiment) == (uri and uri.format(here=tmp_path), experiment)


@pytest.mark.parametrize("uri", ["file:///mlruns", "mlruns", " ", "sqlite://", "sqlite:///:memory:"])
def test_a_store_that_keeps_nothing_is_named_with_its_variable(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: .* tracking\.uri=… comes before it"):
        load_config({})


# --- notebooks and wheels ---------------------------------------------------------------------------------------------


class ZMQInteractiveShell:
    """What rich takes for a notebook."""


def test_in_a_notebook_the_text_is_what_it_is_in_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Plasticity(make_plasticity())
    text = str(found)
    assert len(text) > 300
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert str(found) == text
    html = found._repr_html_()
    assert html.startswith("<table")
    places = [html.index(f"<th>{name}</th>") for name in COMPONENTS]
    assert places == sorted(places)
    assert all(f"<th>{mode}</th>" in html for mode in found.table.modes)


def test_long_work_has_a_bar_in_a_notebook_and_none_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(watch(iter("ab"), total=2, what="letters")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert list(watch(iter("ab"), total=2, what="letters")) == ["a", "b"]
    said = capsys.readouterr()
    assert "letters: 100%" in said.out  # standard output keeps its place among what the cell prints
    assert said.err == ""
    taken = watch(iter("abc"), total=3, what="letters")
    assert next(taken) == "a"
    taken.close()
    assert "letters: 100%" in capsys.readouterr().out  # settled before the last: no bar that looks as after a failure
    say("a line that is no error")
    assert capsys.readouterr() == ("a line that is no error\n", "")


def test_a_notebook_draws_a_plot_without_pyplot() -> None:
    figure = Plasticity(make_plasticity()).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_wheel_has_the_command_and_its_configuration(tmp_path: Path) -> None:
    built = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    entry_points = next((tmp_path / "site").glob("*.dist-info/entry_points.txt")).read_text()
    assert "unfreeze = unfreeze.command:main" in entry_points
    command = [sys.executable, "-c", "from unfreeze.command import main; main()"]
    site = {"PYTHONPATH": str(tmp_path / "site")}
    shown = run([*command, "sweep", "--help"], tmp_path, **site)
    assert shown.stdout.startswith("usage: unfreeze sweep [GROUP=FILE ...]"), shown.stderr
    assert "demo, paper" in shown.stdout
    wrong = run([*command, "sweeps"], tmp_path, **site)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: there is no command 'sweeps'; did you mean sweep?\nusage: unfreeze {sweep,")
    listed = run(command, tmp_path, **site).stdout.splitlines()
    assert [line.split()[0] for line in listed[2:]] == list(COMMANDS)
    assert "  plasticity  The pre-pass alone: " in "\n".join(listed)
    assert run([*command, "--version"], tmp_path, **site).stdout == "unfreeze 0.1.0\n"


# --- with Ray ---------------------------------------------------------------------------------------------------------


def without_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}


@pytest.mark.ray
@pytest.mark.slow
def test_the_workers_run_this_checkout_and_not_the_installed_one(tmp_path: Path, processes: Processes) -> None:
    """In surroundings that would each have stopped it: a home and a TMPDIR that will not do, an empty RAY_ADDRESS."""
    copy_checkout(tmp_path)
    actor = tmp_path / "platform/unfreeze/plasticity/actor.py"
    planted = 'import torch\n\n        raise __import__("unfreeze.errors").errors.DataError("planted here")\n'
    actor.write_text(actor.read_text().replace("import torch\n", planted, 1))
    long = tmp_path / ("a-rather-long-temporary-directory-of-a-batch-system/" * 2)
    odd = {"HOME": "/proc/nohome", "TMPDIR": str(long), "RAY_ADDRESS": ""}
    command = [sys.executable, tmp_path / "sweeps/vit_components.py", "experiment=demo", "tracking.uri=null"]
    result = processes.run(command, cwd=tmp_path, quiet_s=90, env=without_ray() | odd)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1] == "error: planted here"
    assert "Traceback" not in result.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_notebook_in_an_event_loop_on_a_ray_that_runs(tmp_path: Path, processes: Processes) -> None:
    cells = json.loads((ROOT / "ops/demo/notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (tmp_path / "notebook.py").write_text(f"""
import asyncio, ray

async def run_cells():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    page = {{}}
    for cell in {code!r}:
        exec(cell, page)
    print("recommended", page["recommended"].selection, ray.is_initialized())

asyncio.run(run_cells())
""")
    result = processes.run([sys.executable, "notebook.py"], cwd=tmp_path, quiet_s=120, env=without_ray())
    assert result.returncode == 0, result.stderr
    final = Ledger(str(tmp_path / "runs"), "notebook").read_json("final.json")
    # Not the last line: the raylet of another's Ray says there that so many workers at once are many for one CPU.
    assert f"recommended {final['selection']} True" in result.stdout.splitlines()
