"""The secrets that the manifests name: made by the README's own commands, with keys that S3 gave and may take back."""

import base64
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import boto3
from podman import RehearsalError

BUCKET = "unfreeze"
REGION = "us-east-1"
# Requests that S3 answers without a key after its start: those that make the first one.
NUM_OPEN = 3
# Secret → the folders of the bucket that its key opens.
FOLDERS = {"unfreeze-s3": ("sweeps",), "unfreeze-s3-artifacts": ("mlflow", "backups")}
_ADMIN = "rehearsal"

Key = dict[str, str]  # the variables that AWS's clients read


def documented_secrets(readme: str, s3: dict[str, str]) -> dict[str, dict[str, str]]:
    """The secrets that the README's own commands create, by `kubectl --dry-run`; ``s3``: what is written to s3.env."""
    lines = re.findall(r"(?m)^    ((?=password=|kubectl create secret generic )(?:.*\\\n)*.*)", readme)
    if not lines:
        raise RehearsalError("k8s/README.md has no `kubectl create secret generic …` to follow")
    wrapped = 'kubectl() { command kubectl "$@" --dry-run=client --output=json; }'
    with tempfile.TemporaryDirectory(prefix="rehearse-") as folder:
        (Path(folder) / "s3.env").write_text("".join(f"{name}={value}\n" for name, value in s3.items()))
        script = "\n".join(["set -euo pipefail", wrapped, *lines])
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RehearsalError(f"the README's commands for secrets fail: {done.stderr.strip()}")
    found, decoder, text = {}, json.JSONDecoder(), done.stdout.strip()
    while text:
        secret, end = decoder.raw_decode(text)
        found[secret["metadata"]["name"]] = {
            key: base64.b64decode(value).decode() for key, value in secret["data"].items()
        }
        text = text[end:].strip()
    return found


class Keys:
    """The accounts of one S3 server, by its own IAM."""

    def __init__(self, url: str) -> None:
        """Make the first key; ``url``: of a server that has just started."""
        nobody = boto3.client("iam", **_place(url), aws_access_key_id="none", aws_secret_access_key="none")
        nobody.create_user(UserName=_ADMIN)
        nobody.put_user_policy(UserName=_ADMIN, PolicyName="all", PolicyDocument=_policy([_allow("*", "*")]))
        self.admin = _key(nobody.create_access_key(UserName=_ADMIN))
        self.client("s3", url).create_bucket(Bucket=BUCKET)
        for secret, folders in FOLDERS.items():
            whole = f"arn:aws:s3:::{BUCKET}"
            rights = [_allow("s3:ListBucket", whole), *(_allow("s3:*", f"{whole}/{folder}/*") for folder in folders)]
            self.client("iam", url).create_user(UserName=secret)
            self.client("iam", url).put_user_policy(
                UserName=secret, PolicyName="own-folders", PolicyDocument=_policy(rights)
            )

    def client(self, service: str, url: str, key: Key | None = None) -> Any:
        """Of boto3, by the first key unless another is given."""
        key = key or self.admin
        return boto3.client(
            service,
            **_place(url),
            aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
        )

    def make(self, secret: str, url: str) -> Key:
        """One more key of the account behind a secret."""
        return _key(self.client("iam", url).create_access_key(UserName=secret))

    def remove(self, secret: str, url: str, key: Key) -> None:
        """Switch it off.

        Raises:
            RehearsalError: it opens the bucket still.
        """
        self.client("iam", url).delete_access_key(UserName=secret, AccessKeyId=key["AWS_ACCESS_KEY_ID"])
        if self.opens(FOLDERS[secret][0], url, key):
            raise RehearsalError(f"S3 takes the key of {secret!r} that was switched off")

    def opens(self, folder: str, url: str, key: Key) -> bool:
        client = self.client("s3", url, key)
        try:
            client.put_object(Bucket=BUCKET, Key=f"{folder}/rehearsal-key", Body=b"")
        except client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
                raise
            return False
        client.delete_object(Bucket=BUCKET, Key=f"{folder}/rehearsal-key")
        return True


def _place(url: str) -> dict[str, str]:
    return {"endpoint_url": url, "region_name": REGION}


def _allow(action: str, resource: str) -> dict[str, str]:
    return {"Effect": "Allow", "Action": action, "Resource": resource}


def _policy(statements: list[dict[str, str]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _key(created: Any) -> Key:
    made = created["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}
