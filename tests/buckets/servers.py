"""Real S3 servers on this machine, which a test may kill and start again on the same port and files."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ACCESS_KEY, SECRET_KEY = 'AKTESTAKTESTAKTEST12', 'secretsecretsecretsecretsecret12'
BUCKET = 'data'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds=30.0, what='it'):
    """Polls until the condition is true, and fails when it takes too long."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f'{what} did not happen within {seconds} s'
        time.sleep(0.05)
    return result


class S3Server:
    """nanio or rclone, as a process with a folder; with a bucket ``data`` in it."""

    def __init__(self, folder: Path, kind: str = 'nanio', *, host: str = '127.0.0.1', within: tuple[str, ...] = ()):
        self.folder, self.kind, self.host, self.port = folder, kind, host, free_port()
        self.within = within  # such as ip netns exec NAME
        self.process: subprocess.Popen | None = None
        (folder / BUCKET).mkdir(parents=True)
        self.start()

    @property
    def endpoint(self) -> str:
        return f'http://{self.host}:{self.port}'

    @property
    def variables(self) -> dict[str, str]:
        return {
            'S3_ENDPOINT_URL': self.endpoint,
            'AWS_ACCESS_KEY_ID': ACCESS_KEY,
            'AWS_SECRET_ACCESS_KEY': SECRET_KEY,
            'AWS_DEFAULT_REGION': 'us-east-1',
        }

    @property
    def command(self) -> list[str]:
        program = Path(sys.executable).with_name(self.kind)
        if not program.exists():
            pytest.skip(f'no {self.kind} (pip install "rewarm[s3]")')
        if self.kind == 'nanio':
            where = ['--host', self.host, '--port', str(self.port)]
            return [str(program), 'serve', '--data-dir', str(self.folder), *where, '--no-access-log']
        where = ['--addr', f'{self.host}:{self.port}', '--auth-key', f'{ACCESS_KEY},{SECRET_KEY}']
        return [str(program), 'serve', 's3', *where, '--vfs-cache-mode', 'off', str(self.folder)]

    def start(self) -> None:
        self._mend()
        keys = {'NANIO_ACCESS_KEY': ACCESS_KEY, 'NANIO_SECRET_KEY': SECRET_KEY}
        quiet = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
        self.process = subprocess.Popen([*self.within, *self.command], env={**os.environ, **keys}, **quiet)
        client = self.client()
        wait_for(lambda: self._answers(client), 120, what=f'the start of {self.kind}')

    def _mend(self) -> None:
        """Removes what nanio, killed in a PUT, leaves of it: it would answer InternalError to each later PUT of that key."""
        for path in (self.folder / BUCKET / '.nanio-meta').rglob('*.json.tmp'):
            path.unlink()

    def client(self):
        """A client of the test's own, with its own keys and no retries."""
        import boto3.session
        from botocore.config import Config

        session = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name='us-east-1')
        config = Config(retries={'total_max_attempts': 1}, connect_timeout=5, read_timeout=20)
        return session.client('s3', endpoint_url=self.endpoint, config=config)

    def _answers(self, client) -> bool:
        from botocore.exceptions import BotoCoreError

        assert self.process is not None
        assert self.process.poll() is None, f'{self.kind} ended with {self.process.returncode}'
        try:
            client.head_bucket(Bucket=BUCKET)
        except BotoCoreError:
            return False
        return True

    def empty(self) -> None:
        """Forgets all objects and uploads: nanio keeps nothing but files. For a test that does not want a server of its own."""
        assert self.kind == 'nanio'
        for folder in (self.folder / BUCKET, self.folder / '.nanio' / 'multipart'):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.process is None:
            self.start()

    def kill(self) -> None:
        """As a power cut does it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Connections are taken and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None
