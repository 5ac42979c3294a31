"""Storage below an S3 prefix. The only door to boto3."""

import time
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError

from unfreeze.errors import StorageError

_FAULTS = (BotoCoreError, Boto3Error, ClientError, ResponseParserError)
_THERE_ALREADY = {"PreconditionFailed", "412"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = _EXPIRED | {
    "BadDigest",  # it was damaged on the way there
    "ConditionalRequestConflict",  # two at once, and S3 could not say which
    "IncompleteBody",
    "RequestTimeout",
    "RequestTimeTooSkewed",  # a clock has jumped, and is being set right
}
# No answer, half of one, one that is damaged or a page of some proxy's.
_PASSING = (
    *(HTTPClientError, IncompleteReadError, FlexibleChecksumError, RetriesExceededError, ResponseParserError),
    CredentialRetrievalError,  # of a role, from a service that may be restarting
)
# A few tries for what a new connection mends; whoever can wait does so by `patience`. Of silence, s.
_CLIENT = BotoConfig(
    retries={"total_max_attempts": 3, "mode": "standard"}, connect_timeout=10, read_timeout=30, max_pool_connections=32
)
# An answer that trickles is given up after so many seconds and those it would take at so many bytes a second.
_SLOW_S, _SLOW_BYTES_S = 30.0, 2**16


class S3Storage:
    """Endpoint, region and credentials come the standard way (AWS_ENDPOINT_URL, AWS_REGION, profiles, roles)."""

    def __init__(self, location: str) -> None:
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(f"an S3 location reads s3://bucket/prefix, but got {location!r}")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._lazy_client: Any = None
        self._had_expired = False
        self._has_answered = False  # before, an endpoint that cannot be reached is taken for a wrong one

    @property
    def _client(self) -> Any:
        # Made on first use: a client cannot be pickled to a Ray worker, the location can.
        if self._lazy_client is None:
            try:
                # Boto3's own session keeps the credentials of its first use; another, half a second's work, reads them.
                session = boto3.Session() if self._had_expired else boto3
                self._lazy_client = session.client("s3", config=_CLIENT)
                self._lazy_client.meta.events.register("after-call.s3", self._note_answer)
            except (BotoCoreError, ValueError) as error:
                raise StorageError(f"cannot make an S3 client for {self.url('')}: {error}") from error
        return self._lazy_client

    def _note_answer(self, **_: Any) -> None:
        self._has_answered = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lazy_client": None}

    def read(self, key: str) -> bytes:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            return self._received(key, answer["Body"], answer["ContentLength"])
        except _FAULTS as error:
            if _code(error) in _MISSING:
                raise KeyError(key) from None
            raise self._explain("read", key, error) from error

    def _received(self, key: str, body: Any, size: int) -> bytes:
        """All of an answer: botocore compares length and, where the server keeps one, checksum."""
        until, chunks = time.monotonic() + _SLOW_S + size / _SLOW_BYTES_S, []
        for chunk in body.iter_chunks(max(64, size // 256)):
            chunks.append(chunk)
            if time.monotonic() > until:
                body.close()
                raise StorageError(
                    f"cannot read {self.url(key)}: of {size} bytes {sum(map(len, chunks))} arrived in time",
                    may_pass=True,
                )
        return b"".join(chunks)

    def write(self, key: str, data: bytes) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)
        except _FAULTS as error:
            raise self._explain("write", key, error) from error

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*")
            return True
        except _FAULTS as error:
            if _code(error) in _THERE_ALREADY:  # ours, where a lost answer was asked for again
                return self.read(key) == data
            raise self._explain("create", key, error) from error

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key, _ in self.fingerprints(prefix)]

    def delete(self, key: str) -> None:
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
        except _FAULTS as error:
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
        except _FAULTS as error:
            raise self._explain("list", prefix, error) from error
        return sorted((key.removeprefix(self._prefix), etag, size) for key, etag, size in found)

    def download(self, key: str, target: Path) -> None:
        """Fetch a large object to a file without holding it in memory. Raises `StorageError`."""
        try:
            self._client.download_file(self._bucket, self._prefix + key, str(target))
        except _FAULTS as error:
            raise self._explain("download", key, error) from error

    def _explain(self, verb: str, key: str, error: Exception) -> StorageError:
        code = _code(error)
        if code in _EXPIRED:  # there may be fresh ones where those came from
            self._lazy_client, self._had_expired = None, True
        is_away = self._has_answered and isinstance(error, NoConnectionError)
        return StorageError(
            f"cannot {verb} {self.url(key)}: {error}; check bucket, AWS_ENDPOINT_URL, region and credentials",
            may_pass=is_away
            or isinstance(error, _PASSING)
            or code in _PASSING_CODES
            or _status(error) in _PASSING_STATUS,
        )


def _code(error: Exception) -> str | None:
    """What S3 calls an error of its own; None of another."""
    return error.response["Error"]["Code"] if isinstance(error, ClientError) else None


def _status(error: Exception) -> int | None:
    """HTTP status of S3's answer; None where the error is no answer."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(error, ClientError) else None
