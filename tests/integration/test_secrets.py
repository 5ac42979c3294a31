"""No secret that a sweep is given is in anything that it writes, logs, uploads or shows to `ps`."""

import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import psutil
import pytest
from processes import Processes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
OPTIONS = (
    *("experiment=demo", "sweep.name=canary", "storage=s3://canary/runs", "data.max_train_images=100"),
    *("finetune.epochs=2", "search.num_trials=2", "search.start_learning_rates=[0.1]", "search.confirm_top=0"),
)


@contextmanager
def command_lines(mark: str) -> Iterator[set[str]]:
    """Of all processes whose environment holds ``mark``, as long as this lasts: what `ps` shows."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.3):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if mark in process.environ().values():
                        seen.add(" ".join(process.cmdline()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_no_secret_is_left_anywhere(
    processes: Processes, environment: Callable[..., dict[str, str]], s3_environment: None, tmp_path: Path
) -> None:
    canaries = {
        name: f"canary{number}{secrets.token_hex(16)}"
        for number, name in enumerate(
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "password")
        )
    }
    boto3.resource("s3").create_bucket(Bucket="canary")
    (home := tmp_path / "home").mkdir()
    variables = {**environment(home), **{name: value for name, value in canaries.items() if name.isupper()}}
    with socket.socket() as nobody:  # MLflow is down, so that all it could say of its address is said
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://user:{canaries['password']}@127.0.0.1:{nobody.getsockname()[1]}"
        command = [sys.executable, ROOT / "sweeps/vit_components.py", *OPTIONS]
        variables["MLFLOW_TRACKING_URI"] = uri  # where `ps` does not show it, as it would the command line
        with command_lines(canaries["AWS_SESSION_TOKEN"]) as lines:
            done = processes.run(command, cwd=tmp_path, quiet_s=300, env=variables)
    assert done.returncode == 0, done.stderr
    found = {"said": (done.stdout + done.stderr).encode(), "ps": "\n".join(lines).encode()}
    for folder in (tmp_path, Path(variables["RAY_TMPDIR"])):
        found |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for item in boto3.resource("s3").Bucket("canary").objects.all():
        found[f"s3:{item.key}"] = item.get()["Body"].read()
    assert any("raylet" in line for line in lines)
    assert any(name.endswith("final.json") for name in found)
    assert any("session_" in name and name.endswith(".log") for name in found)
    leaks = [
        f"{secret} in {place} after {content.partition(value.encode())[0][-100:]!r}"
        for place, content in found.items()
        for secret, value in canaries.items()
        if value.encode() in content
    ]
    assert not leaks, "\n".join(leaks)
