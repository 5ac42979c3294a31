"""Where a sweep keeps what must not be lost: a folder or an S3 prefix, behind one protocol."""
