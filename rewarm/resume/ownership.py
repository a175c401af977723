"""Which start of a run may write to its folder in a bucket: the newest one.

A bucket has no lock that a dead machine lets go of. So each start writes its name into ``owner.json``, and looks there
before each write that others see; one that finds another name has been replaced, and stops.

What remains: between that look and the write, milliseconds, an older start may still write once more. It then publishes
a checkpoint of the same run, whole by its own manifest unless the newer start uploads the same batch in that very moment
with other bits (another number of ranks); hashes tell then, and the checkpoint before it is taken.
"""

import os
import socket
import uuid
from datetime import UTC, datetime

from rewarm.buckets.bucket import Bucket
from rewarm.buckets.errors import Damaged
from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.owner import LARGEST_OWNER_BYTES, Claim, parse_claim

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
        try:
            owner = parse_claim(self._bucket.read(self._url, largest_bytes=LARGEST_OWNER_BYTES) or b'', self._url)
        except (Damaged, DamagedFile):  # deleted or damaged by somebody: nobody else's either
            self._write()
            return
        if owner.id != self._id:
            raise TakenOver(
                f'{self._run}: host {owner.host} (process {owner.pid}) took this run over at '
                f'{owner.since.isoformat()}; this process stops. Nothing that is in the bucket is lost'
            )

    def _write(self) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        claim = Claim(id=self._id, host=socket.gethostname(), pid=os.getpid(), since=now)
        self._bucket.write(self._url, claim.model_dump_json().encode())
