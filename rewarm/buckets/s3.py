"""S3 and what speaks its protocol, through boto3. Endpoint, keys and region come from the environment.

Every object and part goes up with its MD5 (``Content-MD5``), which each server of the protocol checks; boto3's newer
checksums are left out, since not all servers know them, and rclone's fails on a range of an object that has one.
"""

import base64
import functools
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rewarm.buckets.bucket import LARGEST_READ_BYTES, Bucket, Entry, split_url
from rewarm.buckets.errors import BucketError, CutShort, Damaged, Declined, Unreachable
from rewarm.buckets.parallel import in_parallel
from rewarm.config.errors import UserError

__all__ = ['S3Bucket']

SINGLE_BYTES = 64 << 20
"""Files up to this size, such as a shard, go up in one request; larger ones in parts, of which none is sent twice."""

PART_BYTES = 16 << 20
MAX_PARTS = 10_000
UPLOAD_THREADS = 4

_KEYS = 'Endpoint and keys are read from S3_ENDPOINT_URL and the AWS variables'
_REFUSED = {
    'InvalidAccessKeyId', 'SignatureDoesNotMatch', 'AccessDenied', 'InvalidToken', 'ExpiredToken', '401', '403',
}  # fmt: skip
_REGION = {'PermanentRedirect', 'AuthorizationHeaderMalformed', 'IllegalLocationConstraintException', '301'}
# Also a bare 400, with no error of S3's: what a server says of a connection that is out of step. A HEAD has never more.
_LATER = {'SlowDown', 'RequestTimeout', 'OperationAborted', 'ConditionalRequestConflict'}
# What botocore's parsers raise of an answer that is none of S3's, such as a web page, or a date that is none.
_NO_ANSWER = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
# Of listing broken-off uploads: it is not allowed, not known, or (rclone) there are none.
_NONE_LISTED = {'AccessDenied', '403', 'NotImplemented', 'MethodNotAllowed', '405', '501', 'NoSuchUpload'}


@functools.cache
def _client(endpoint: str | None) -> Any:
    import boto3.session
    from botocore.config import Config

    config = Config(
        retries={'mode': 'standard', 'max_attempts': 5},
        connect_timeout=15,
        read_timeout=60,
        max_pool_connections=16,
        tcp_keepalive=True,
        request_checksum_calculation='when_required',
        response_checksum_validation='when_required',
    )
    try:
        return boto3.session.Session().client('s3', endpoint_url=endpoint, config=config)
    except ValueError as error:
        words = re.sub(r'\S*@', '***@', str(error))  # what should be a URL may be user:password@host alone
        raise BucketError(f'S3_ENDPOINT_URL: {words}; write it as http://host:port or https://host') from None


class S3Bucket(Bucket):
    """A client that turns what goes wrong into words.

    ``S3_ENDPOINT_URL`` (as Streaming reads it) or AWS's own variables and files say which server, keys and region.
    """

    def __init__(self) -> None:
        super().__init__()
        self._client: Any = _client(os.environ.get('S3_ENDPOINT_URL') or None)
        self._lock = threading.Lock()

    def _list(self, url: str) -> Iterator[tuple[str, int, str]]:
        bucket, key = split_url(url)
        with self._in_words(url):
            for page in self._client.get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix=key):
                for item in page.get('Contents', ()):
                    yield item['Key'], int(item['Size']), _etag(item)

    def find(self, url: str) -> Entry | None:
        """The object at ``url``, or None."""
        head = self._head(url)
        with self._in_words(url):
            return None if head is None else Entry('', int(head['ContentLength']), _etag(head))

    def read(self, url: str, *, largest_bytes: int = LARGEST_READ_BYTES) -> bytes | None:
        """The bytes of a small object, or None if there is none."""
        bucket, key = split_url(url)
        with self._in_words(url):
            try:
                body = self._client.get_object(Bucket=bucket, Key=key)['Body']
            except self._client.exceptions.NoSuchKey:
                return None
            data = _read_at_most(body, largest_bytes)
        if len(data) > largest_bytes:
            raise Damaged(f'{url}: has more than {largest_bytes:,} bytes')
        return data

    def read_range(self, url: str, begin: int, end: int, version: str) -> bytes:
        """Bytes ``begin`` to ``end`` (exclusive) of an object."""
        bucket, key = split_url(url)
        with self._in_words(url):
            reply = self._client.get_object(Bucket=bucket, Key=key, Range=f'bytes={begin}-{end - 1}', IfMatch=version)
            data, found = _read_at_most(reply['Body'], end - begin), _etag(reply)
        if found != version:  # not every server heeds IfMatch
            raise BucketError(f'{url}: was replaced while it was read; start again when it is at rest')
        return data

    def write(self, url: str, data: bytes) -> None:
        """Writes a small object whole."""
        self._put(url, data, {})

    def upload(self, path: Path, url: str, sha256: str | None = None) -> None:
        """Uploads a file unless the object is there with the same content; parts that are there are not sent again.

        What is there is recognised by its MD5, or by ``sha256`` where it went up in one piece. A bucket that encrypts
        with KMS gives no MD5, and there parts are sent again.
        """
        size = path.stat().st_size
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        head = self._head(url)
        if head is not None and head.get('ContentLength') == size:
            metadata = {key.lower(): value for key, value in head.get('Metadata', {}).items()}
            known = sha256 is not None and metadata.get('sha256') == sha256
            if known or str(head.get('ETag', '')).strip('"') in _etags(path, part_bytes):
                return
        if size <= SINGLE_BYTES:
            self._put(url, path.read_bytes(), {'sha256': sha256} if sha256 else {})
        else:
            self._send_parts(path, url, size, part_bytes)

    def delete(self, url: str) -> None:
        """Deletes an object, if it is there."""
        bucket, key = split_url(url)
        with self._in_words(url):
            self._client.delete_object(Bucket=bucket, Key=key)

    def forget_uploads(self, url: str) -> None:
        """Frees the parts of broken-off uploads at or under ``url``."""
        bucket, _ = split_url(url)
        for each in self._unfinished(url):
            with self._in_words(url):
                self._client.abort_multipart_upload(Bucket=bucket, Key=each['Key'], UploadId=each['UploadId'])

    def _put(self, url: str, data: bytes, metadata: dict[str, str]) -> None:
        bucket, key = split_url(url)
        with self._in_words(url):
            # A file-like body leaves in small pieces; of one block, all must leave within a single time-out.
            self._client.put_object(
                Bucket=bucket, Key=key, Body=io.BytesIO(data), ContentMD5=_md5(data)[1], Metadata=metadata
            )
        self._count(len(data))

    def _send_parts(self, path: Path, url: str, size: int, part_bytes: int) -> None:
        bucket, key = split_url(url)
        where = {'Bucket': bucket, 'Key': key}
        with path.open('rb') as file, self._in_words(url):

            def part(number: int) -> bytes:
                begin = (number - 1) * part_bytes
                return _slice(file, begin, max(0, min(part_bytes, size - begin)))

            upload, there = self._go_on(url, where, lambda number: _md5(part(number))[0])

            def send(number: int) -> dict[str, Any]:
                self._refuse_if_closed(url)
                tag = there.get(number)
                if tag is None:
                    data = part(number)
                    numbered = {**where, 'UploadId': upload, 'PartNumber': number}
                    reply = self._client.upload_part(**numbered, Body=io.BytesIO(data), ContentMD5=_md5(data)[1])
                    self._count(len(data))
                    tag = reply['ETag']
                return {'PartNumber': number, 'ETag': tag}

            parts = in_parallel(send, range(1, -(-size // part_bytes) + 1), UPLOAD_THREADS)
            self._client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={'Parts': parts})

    def _go_on(self, url: str, where: dict[str, str], md5: Callable[[int], str]) -> tuple[str, dict[int, str]]:
        """An upload that broke off, if all its parts are of this file, with their ETags; otherwise a new one."""
        for upload in [each['UploadId'] for each in self._unfinished(url) if each['Key'] == where['Key']]:
            pages = self._client.get_paginator('list_parts').paginate(**where, UploadId=upload)
            there = {part['PartNumber']: part['ETag'].strip('"') for page in pages for part in page.get('Parts', ())}
            if all(tag == md5(number) for number, tag in there.items()):
                return upload, there
            self._client.abort_multipart_upload(**where, UploadId=upload)
        return self._client.create_multipart_upload(**where)['UploadId'], {}

    def _unfinished(self, url: str) -> Sequence[dict[str, Any]]:
        """Broken-off uploads at or under ``url``, the latest first; none where the store does not list them."""
        from botocore.exceptions import ClientError

        bucket, key = split_url(url)
        found: list[dict[str, Any]] = []
        with self._in_words(url):
            try:
                for page in self._client.get_paginator('list_multipart_uploads').paginate(Bucket=bucket, Prefix=key):
                    found += page.get('Uploads', ())
            except ClientError as error:
                if error.response['Error']['Code'] not in _NONE_LISTED:
                    raise
        ours = [each for each in found if each['Key'] == key or each['Key'].startswith(f'{key}/')]
        return sorted(ours, key=lambda each: each['Initiated'], reverse=True)

    def _head(self, url: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        bucket, key = split_url(url)
        with self._in_words(url):
            try:
                return self._client.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if error.response['ResponseMetadata']['HTTPStatusCode'] != 404:
                    raise
                return None

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_sent += size

    @contextmanager
    def _in_words(self, url: str) -> Iterator[None]:
        """Turns errors of the S3 client into a BucketError that names the URL."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        self._refuse_if_closed(url)
        try:
            yield
        except UserError:
            raise
        except (ResponseParserError, *_NO_ANSWER) as error:
            endpoint = self._client.meta.endpoint_url
            reason = f'{type(error).__name__}: {error}'
            raise Unreachable(
                f'{url}: what {endpoint} answers is not the protocol of S3 ({reason}). {_KEYS}'
            ) from error
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise _explain(error, url, self._client.meta.endpoint_url) from error


def _explain(error: Exception, url: str, endpoint: str) -> BucketError:
    """The error in words: what is wrong, and what to do."""
    from botocore import exceptions

    reply: dict[str, Any] = getattr(error, 'response', None) or {}
    code = str(reply.get('Error', {}).get('Code', ''))
    status = int(reply.get('ResponseMetadata', {}).get('HTTPStatusCode', 0))
    bucket, _ = split_url(url)
    kind: type[BucketError] = BucketError
    if code == 'RequestTimeTooSkewed' or 'difference between the request time' in str(error):  # rclone: AccessDenied
        words = 'the clock of this machine is off by more than the server allows; set it (chrony, ntpd)'
    elif code == 'NoSuchBucket':
        words = f'there is no bucket {bucket} at {endpoint}; make it, or write the right one'
    elif code in _REFUSED or isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        words = f'{endpoint} does not accept the keys, or they do not allow this ({error})'
    elif code in _REGION or status == 301:
        words = f'the bucket is in another region ({error}); set AWS_DEFAULT_REGION'
    elif isinstance(error, (exceptions.ResponseStreamingError, exceptions.IncompleteReadError)):
        kind, words = CutShort, f'the answer of {endpoint} broke off ({error})'
    elif isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError)):
        kind, words = Unreachable, f'no answer from {endpoint} ({error})'
    elif status >= 500 or code in _LATER or (code == '400' and getattr(error, 'operation_name', '') != 'HeadObject'):
        kind, words = Declined, f'{endpoint} cannot serve now ({error})'
    else:
        words = str(error).rstrip('.')
    return kind(f'{url}: {words}. {_KEYS}')


def _etag(reply: dict[str, Any]) -> str:
    return str(reply['ETag']).strip('"')


def _read_at_most(body: Any, size: int) -> bytes:
    """Reads an answer to its end, where botocore checks its length, or until it has more than ``size`` bytes."""
    data = bytearray()
    while len(data) <= size and (piece := body.read(min(1 << 20, size + 1 - len(data)))):
        data += piece
    if len(data) > size:
        body.close()
    return bytes(data)


def _slice(file: BinaryIO, begin: int, size: int) -> bytes:
    data = os.pread(file.fileno(), size, begin)
    if len(data) != size:
        raise OSError(f'{file.name} was cut while it was uploaded')
    return data


def _md5(data: bytes) -> tuple[str, str]:
    """The MD5 as S3 shows it in an ETag, and as it takes it in ``Content-MD5``."""
    digest = hashlib.md5(data, usedforsecurity=False)
    return digest.hexdigest(), base64.b64encode(digest.digest()).decode()


def _etags(path: Path, part_bytes: int) -> set[str]:
    """The ETags that a store may give a file: its MD5, or that of its parts' MD5s with their number."""
    whole, parts, count = hashlib.md5(usedforsecurity=False), hashlib.md5(usedforsecurity=False), 0
    with path.open('rb') as file:
        while data := file.read(part_bytes):
            whole.update(data)
            parts.update(hashlib.md5(data, usedforsecurity=False).digest())
            count += 1
    return {whole.hexdigest(), f'{parts.hexdigest()}-{count}'}
