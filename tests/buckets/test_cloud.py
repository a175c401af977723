"""gs:// and az:// against the stores' emulators, where packages and emulators are installed:

pip install gcsfs gcp-storage-emulator
pip install adlfs; npm install azurite   (AZURITE=node_modules/.bin/azurite-blob)
"""

import hashlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rewarm.buckets.bucket import open_bucket
from rewarm.buckets.errors import BucketError, Damaged
from rewarm.config.errors import UserError
from tests.buckets.servers import free_port, wait_for
from tests.resume.mirrored import Run, files, name

# aiohttp, about how gcsfs and adlfs hand it a file's bytes.
pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')

AZURE_KEY = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=='
"""The account's key that Azurite documents."""


@pytest.fixture(scope='module', params=['gs', 'az'])
def store(request, tmp_path_factory):
    """An emulator with a bucket ``data``; yields the scheme."""
    scheme, port = request.param, free_port()
    folder = tmp_path_factory.mktemp(scheme)
    if scheme == 'gs':
        package, program = 'gcsfs', Path(sys.executable).with_name('gcp-storage-emulator')
        command = [str(program), 'start', '--host', '127.0.0.1', '--port', str(port), '--in-memory']
        variables = {'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{port}'}
    else:
        package, program = 'adlfs', Path(os.environ.get('AZURITE') or shutil.which('azurite-blob') or 'azurite-blob')
        where = ['--blobHost', '127.0.0.1', '--blobPort', str(port), '--location', str(folder)]
        command = [str(program), *where, '--silent', '--skipApiVersionCheck', '--disableTelemetry']
        endpoint = f'http://127.0.0.1:{port}/devstoreaccount1'
        account = f'DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={AZURE_KEY}'
        variables = {'AZURE_STORAGE_CONNECTION_STRING': f'{account};BlobEndpoint={endpoint};'}
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    if not program.exists():
        pytest.skip(f'no emulator: {program.name}')
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen(command, **quiet) as emulator:
        for key, value in variables.items():
            patch.setenv(key, value)
        try:
            wait_for(lambda: _makes_bucket(scheme, port), 60, 'the start of the emulator')
            yield scheme
        finally:
            emulator.terminate()


def _makes_bucket(scheme, port):
    import socket

    with socket.socket() as probe:
        if probe.connect_ex(('127.0.0.1', port)):
            return False
    open_bucket(f'{scheme}://data')._files.mkdir('data')
    return True


def test_objects_come_back_as_they_went(store, tmp_path):
    bucket, top = open_bucket(f'{store}://data'), f'{store}://data/run'
    bucket.write(f'{top}/a', b'hello')
    bucket.write(f'{top}/b/c', b'1')
    bucket.write(f'{top}-2/a', b'a sibling')
    assert [entry[:2] for entry in bucket.list(top)] == [('a', 5), ('b/c', 1)]
    assert [entry[:2] for entry in bucket.list(f'{top}/a')] == [('', 5)]
    assert bucket.list(f'{store}://data/none') == []
    assert bucket.read(f'{top}/a') == b'hello'
    assert bucket.read(f'{top}/none') is None
    assert bucket.find(top) is None
    found = bucket.find(f'{top}/a')
    assert found is not None
    assert bucket.read_range(f'{top}/a', 1, 3, found.version) == b'el'
    bucket.write(f'{top}/a', b'HELLO')
    with pytest.raises(BucketError, match='was replaced while it was read'):
        bucket.read_range(f'{top}/a', 1, 3, found.version)
    for _ in range(2):
        bucket.delete(f'{top}/a')
    assert [entry.name for entry in bucket.list(top)] == ['b/c']


def test_a_file_goes_up_once_and_comes_back_verified(store, tmp_path):
    path, bucket, url = tmp_path / 'f', open_bucket(f'{store}://data'), f'{store}://data/big'
    path.write_bytes(random.Random(0).randbytes(20_000_001))
    for _ in range(2):
        bucket.upload(path, url)
    assert bucket.bytes_sent == 20_000_001
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    bucket.download(url, tmp_path / 'g', size=20_000_001, sha256=digest)
    assert (tmp_path / 'g').read_bytes() == path.read_bytes()
    with pytest.raises(Damaged, match='does not hash'):
        bucket.download(url, tmp_path / 'h', sha256='0' * 64)


def test_a_missing_bucket_is_said(store):
    with pytest.raises(
        BucketError, match=rf'{store}://nowhere/x: .*(no bucket nowhere|not exist).*Credentials|no bucket'
    ):
        open_bucket(f'{store}://nowhere').write(f'{store}://nowhere/x', b'1')


def test_a_run_comes_back_to_an_empty_disk_byte_for_byte(store, tmp_path):
    first, second = (Run(tmp_path / each, f'{store}://data/runs/tiny') for each in ('first', 'second'))
    first.mirror.start()
    for batch in (2, 4, 6):
        first.publish(batch, keep=1, stage_ends={2})
        assert first.mirror.flush(60)
    assert first.recorded('upload_failed') == []
    fetched = second.mirror.fetch()
    assert fetched is not None
    assert (fetched.name, fetched.where) == (name(6), 'bucket')
    assert files(second.root / name(6)) == files(first.root / name(6))
    assert (second.folder / 'metrics.jsonl').read_bytes() == (first.folder / 'metrics.jsonl').read_bytes()
    assert second.mirror._archive.names() == [name(2), name(6)]
    first.mirror.close()


@pytest.mark.parametrize(('scheme', 'package'), [('gs', 'gcsfs'), ('az', 'adlfs')])
def test_a_package_that_is_not_installed_is_named_with_its_command(scheme, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f'{package}.core', raising=False)
    with pytest.raises(UserError, match=f'{scheme}://b/x: {package} is not installed; write: pip install {package}'):
        open_bucket(f'{scheme}://b/x')
