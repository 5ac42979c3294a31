"""The script of the backup and restore jobs against an S3 server, as its pods run it; pg_dump's part is any file."""

import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from manifests import K8S


@pytest.fixture
def bucket(s3_environment: None) -> str:
    boto3.client("s3").create_bucket(Bucket="dumps")
    return "s3://dumps/mlflow"


def run(url: str, verb: str, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(K8S / "base/backup.py"), verb, str(path)],
        env={**os.environ, "BACKUP_URL": url, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_newest_dump_comes_back_and_an_older_one_by_name(bucket: str, tmp_path: Path) -> None:
    dump, back = tmp_path / "mlflow.dump", tmp_path / "back.dump"
    older = "mlflow/2020-01-01T021700Z.dump"
    boto3.client("s3").put_object(Bucket="dumps", Key=older, Body=b"older")
    boto3.client("s3").put_object(Bucket="dumps", Key="mlflow-other/9999.dump", Body=b"somebody else's")
    dump.write_bytes(b"tonight's")
    assert run(bucket, "put", dump).returncode == 0
    assert run(bucket, "get", back).returncode == 0
    assert back.read_bytes() == b"tonight's"
    assert run(bucket, "get", back, BACKUP_KEY=older).returncode == 0
    assert back.read_bytes() == b"older"


def test_no_dump_is_an_error_that_says_where(bucket: str, tmp_path: Path) -> None:
    done = run(f"{bucket}/none", "get", tmp_path / "back.dump")
    assert done.returncode == 1
    assert done.stderr == "no dump lies below s3://dumps/mlflow/none\n"
    assert not (tmp_path / "back.dump").exists()
