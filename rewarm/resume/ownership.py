"""Which start of a run may write to its folder in a bucket: the newest one.

A bucket has no lock that a dead machine lets go of. So each start writes its name into ``owner.json``, and looks there
before each write that others see; one that finds another name has been replaced, and stops.

What remains: between that look and the write, milliseconds, an older start may still write once more. It then publishes
a checkpoint of the same run, whole by its own manifest unless the newer start uploads the same batch in that very moment
with other bits (another number of ranks); hashes tell then, and the checkpoint before it is taken.
"""

import json
import os
import socket
import uuid
from datetime import UTC, datetime

from rewarm.buckets.bucket import Bucket
from rewarm.config.errors import UserError

__all__ = ['Ownership', 'TakenOver']


class TakenOver(UserError):
    """Another start has the run now."""


class Ownership:
    """This start's claim on a run folder in a bucket.

    Args:
        bucket (Bucket): The store.
        url (str): The run folder's URL.
    """

    def __init__(self, bucket: Bucket, url: str) -> None:
        self._bucket = bucket
        self._url = f'{url}/owner.json'
        self._run = url
        self._id = uuid.uuid4().hex

    def claim(self) -> None:
        """Takes the run over, which also proves that the bucket can be written and read.

        Raises:
            BucketError: If it cannot.
            TakenOver: If another start did so in the same moment.
        """
        self._write()
        self.check()

    def renew(self) -> None:
        """Writes the claim again, which proves that the bucket still takes something.

        Raises:
            BucketError: If it takes nothing.
            TakenOver: If another start has the run.
        """
        self.check()
        self._write()

    def check(self) -> None:
        """Looks whether the run is still this start's.

        Raises:
            BucketError: If the store fails.
            TakenOver: If another start has it.
        """
        data = self._bucket.read(self._url)
        try:
            owner = json.loads(data or b'null')
            other = None if owner is None or owner['id'] == self._id else owner
        except (ValueError, KeyError, TypeError):
            owner = other = None
        if other is not None:
            raise TakenOver(
                f'{self._run}: host {other.get("host")} (process {other.get("pid")}) took this run over at '
                f'{other.get("since")}; this process stops. Nothing that is in the bucket is lost'
            )
        if owner is None:  # deleted or damaged by somebody: nobody else's either
            self._write()

    def _write(self) -> None:
        since = datetime.now(UTC).isoformat(timespec='seconds')
        owner = {'id': self._id, 'host': socket.gethostname(), 'pid': os.getpid(), 'since': since}
        self._bucket.write(self._url, json.dumps(owner).encode())
