"""Storage below an S3 prefix. The only door to boto3."""

from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from unfreeze.errors import StorageError

_THERE_ALREADY = {"PreconditionFailed", "412"}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_MISSING = {"NoSuchKey", "404", "NotFound"}


class S3Storage:
    """Endpoint, region and credentials come the standard way (AWS_ENDPOINT_URL, AWS_REGION, profiles, roles)."""

    def __init__(self, location: str) -> None:
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(f"an S3 location reads s3://bucket/prefix, but got {location!r}")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._lazy_client: Any = None

    @property
    def _client(self) -> Any:
        # Made on first use: a client cannot be pickled to a Ray worker, the location can.
        if self._lazy_client is None:
            try:
                self._lazy_client = boto3.client(
                    "s3", config=BotoConfig(retries={"max_attempts": 8, "mode": "adaptive"}, connect_timeout=10)
                )
            except (BotoCoreError, ValueError) as error:
                raise StorageError(f"cannot make an S3 client for {self.url('')}: {error}") from error
        return self._lazy_client

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lazy_client": None}

    def read(self, key: str) -> bytes:
        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                raise KeyError(key) from None
            raise self._explain("read", key, error) from error
        except BotoCoreError as error:
            raise self._explain("read", key, error) from error

    def write(self, key: str, data: bytes) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)
        except (BotoCoreError, ClientError) as error:
            raise self._explain("write", key, error) from error

    def create(self, key: str, data: bytes) -> bool:
        while True:
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in _THERE_ALREADY:  # ours, where a lost answer was asked for again
                    return self.read(key) == data
                if code != "ConditionalRequestConflict":  # two at once, and S3 could not say which
                    raise self._explain("create", key, error) from error
            except BotoCoreError as error:
                raise self._explain("create", key, error) from error

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key, _ in self.fingerprints(prefix)]

    def delete(self, key: str) -> None:
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
        except (BotoCoreError, ClientError) as error:
            raise self._explain("delete", key, error) from error

    def url(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def fingerprints(self, prefix: str = "") -> list[tuple[str, str]]:
        """(key, ETag) of the objects that start with ``prefix``, sorted: tells a changed tree without reading it."""
        return [(key, etag) for key, etag, _ in self.objects(prefix)]

    def objects(self, prefix: str = "") -> list[tuple[str, str, int]]:
        """(key, ETag, size in bytes) of the objects that start with ``prefix``, sorted."""
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            found = [(item["Key"], item["ETag"], item["Size"]) for page in pages for item in page.get("Contents", ())]
        except (BotoCoreError, ClientError) as error:
            raise self._explain("list", prefix, error) from error
        return sorted((key.removeprefix(self._prefix), etag, size) for key, etag, size in found)

    def download(self, key: str, target: Path) -> None:
        """Fetch a large object to a file without holding it in memory. Raises `StorageError`."""
        try:
            self._client.download_file(self._bucket, self._prefix + key, str(target))
        except (BotoCoreError, ClientError, Boto3Error) as error:  # the last: cut off more often than it is tried
            raise self._explain("download", key, error) from error

    def _explain(self, verb: str, key: str, error: Exception) -> StorageError:
        if isinstance(error, ClientError):
            may_pass = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) in _PASSING_STATUS
        else:
            may_pass = isinstance(error, HTTPClientError | IncompleteReadError)  # no answer, or half of one
        return StorageError(
            f"cannot {verb} {self.url(key)}: {error}; check bucket, AWS_ENDPOINT_URL, region and credentials",
            may_pass=may_pass,
        )
