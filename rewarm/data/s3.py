"""Buckets for the converter: list, read anywhere in an object, upload. Endpoint and keys come from the environment."""

import functools
import io
import os
from pathlib import Path
from typing import Any, BinaryIO

from rewarm.config.errors import UserError

_READ_BYTES = 8 << 20
"""Bytes of one GET: large enough that a round trip hardly counts, small beside the memory bound."""


def is_s3(path: str) -> bool:
    """Whether ``path`` names a bucket rather than a folder."""
    return path.startswith('s3://')


def split_url(url: str) -> tuple[str, str]:
    """Splits ``s3://bucket/a/b`` into ``('bucket', 'a/b')``.

    Raises:
        UserError: If the URL names no bucket.
    """
    bucket, _, key = url.removeprefix('s3://').partition('/')
    if not bucket:
        raise UserError(f'{url}: names no bucket; write s3://bucket/prefix')
    return bucket, key.strip('/')


@functools.cache
def _client(endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client('s3', endpoint_url=endpoint, config=Config(retries={'mode': 'standard', 'max_attempts': 5}))


class Bucket:
    """A client that turns what goes wrong into words.

    ``S3_ENDPOINT_URL`` (as Streaming reads it) or AWS's own variables and files say which server, keys and region.
    """

    def __init__(self) -> None:
        self._client: Any = _client(os.environ.get('S3_ENDPOINT_URL') or None)

    def list(self, url: str) -> list[tuple[str, int, str]]:
        """Objects at or under ``url``.

        Returns:
            list[tuple[str, int, str]]: Key relative to ``url`` (empty for the object itself), bytes, ETag; sorted.

        Raises:
            UserError: If the bucket cannot be listed.
        """
        bucket, key = split_url(url)
        found: list[tuple[str, int, str]] = []
        with _in_words(url):
            for page in self._client.get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix=key):
                for item in page.get('Contents', ()):
                    rest = item['Key'][len(key) :]
                    if item['Key'].endswith('/') or (key and rest and not rest.startswith('/')):
                        continue  # a folder marker, or a sibling such as corpus-2 beside corpus
                    found.append((rest.lstrip('/'), int(item['Size']), str(item['ETag']).strip('"')))
        return sorted(found)

    def open(self, url: str, size: int, etag: str) -> BinaryIO:
        """Opens an object for reading anywhere; an object replaced meanwhile is an error, not a mixture."""
        return io.BufferedReader(_Object(self._client, url, size, etag), _READ_BYTES)

    def read(self, url: str) -> bytes | None:
        """The bytes of a small object, or None if there is none."""
        bucket, key = split_url(url)
        with _in_words(url):
            try:
                return self._client.get_object(Bucket=bucket, Key=key)['Body'].read()
            except self._client.exceptions.NoSuchKey:
                return None

    def upload(self, path: Path, url: str, sha256: str) -> None:
        """Uploads a file unless the object is already there with the same content."""
        from botocore.exceptions import ClientError

        bucket, key = split_url(url)
        with _in_words(url):
            try:
                head = self._client.head_object(Bucket=bucket, Key=key)
                if head['ContentLength'] == path.stat().st_size and head['Metadata'].get('sha256') == sha256:
                    return
            except ClientError as error:
                if error.response['ResponseMetadata']['HTTPStatusCode'] != 404:
                    raise
            self._client.upload_file(str(path), bucket, key, ExtraArgs={'Metadata': {'sha256': sha256}})


class _Object(io.RawIOBase):
    """One object as a seekable file, read by range requests."""

    def __init__(self, client: Any, url: str, size: int, etag: str) -> None:
        self._client, self._url, self._size, self._etag = client, url, size, etag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if self._position >= end:
            return 0
        bucket, key = split_url(self._url)
        with _in_words(self._url):
            reply = self._client.get_object(
                Bucket=bucket, Key=key, Range=f'bytes={self._position}-{end - 1}', IfMatch=self._etag
            )
            data = reply['Body'].read()
        if reply['ETag'].strip('"') != self._etag:  # not every server heeds IfMatch
            raise UserError(f'{self._url}: was replaced while it was read; start again when it is at rest')
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _in_words:
    """Turns errors of the S3 client into a UserError that names the URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, (Boto3Error, BotoCoreError, ClientError)):
            raise UserError(
                f'{self._url}: {error}. Endpoint and keys are read from S3_ENDPOINT_URL and the AWS variables'
            ) from error
