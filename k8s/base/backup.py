"""Dumps of MLflow's database in S3, of which the newest is restored.

backup.py put FILE    upload a dump that pg_dump has just written
backup.py get FILE    download BACKUP_KEY, or the newest

BACKUP_URL names the place: s3://bucket/prefix. How long dumps are kept is a rule of the bucket's.
"""

import os
import sys
import time
from urllib.parse import urlsplit

import boto3


def main(verb: str, path: str) -> str:
    """The key that was written or read."""
    place = urlsplit(os.environ["BACKUP_URL"])
    bucket, prefix = place.netloc, place.path.strip("/") + "/"
    s3 = boto3.client("s3")
    if verb == "put":
        # Sorted by name they are sorted by age.
        key = prefix + time.strftime("%Y-%m-%dT%H%M%SZ.dump", time.gmtime())
        s3.upload_file(path, bucket, key)
        return key
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    if not keys:
        sys.exit(f"no dump lies below {os.environ['BACKUP_URL']}")
    key = os.environ.get("BACKUP_KEY") or max(keys)
    s3.download_file(bucket, key, path)
    return key


if __name__ == "__main__":
    print(*sys.argv[1:], main(*sys.argv[1:]))
