"""Two real servers: objects come back as they went, what was sent is not sent again, and errors are words."""

import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rewarm.buckets import bucket as bucket_module
from rewarm.buckets import s3
from rewarm.buckets.bucket import open_bucket, split_url
from rewarm.buckets.errors import BucketError, Damaged, Unreachable
from rewarm.config.errors import UserError
from tests.buckets.servers import BUCKET, free_port
from tests.buckets.unkind import AnyKey

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 5 MiB, the smallest that S3 allows, so that a file of 20 MiB has several."""
    monkeypatch.setattr(s3, 'SINGLE_BYTES', 6 * MIB)
    monkeypatch.setattr(s3, 'PART_BYTES', 5 * MIB)


def file_of(path, size, seed=0):
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def body(server, key):
    return server.client().get_object(Bucket=BUCKET, Key=key)['Body'].read()


def test_objects_come_back_as_they_went(server, tmp_path):
    bucket = open_bucket('s3://data')
    bucket.write('s3://data/run/a', b'hello')
    bucket.write('s3://data/run/b/c', b'')
    bucket.write('s3://data/run-2/a', b'a sibling')
    assert body(server, 'run/a') == b'hello'
    assert [entry[:2] for entry in bucket.list('s3://data/run')] == [('a', 5), ('b/c', 0)]
    assert bucket.read('s3://data/run/a') == b'hello'
    assert bucket.read('s3://data/run/none') is None
    found = bucket.find('s3://data/run/a')
    assert found is not None
    assert bucket.read_range('s3://data/run/a', 1, 3, found.version) == b'el'
    assert bucket.find('s3://data/run') is None
    bucket.delete('s3://data/run/a')
    bucket.delete('s3://data/run/a')
    assert [entry.name for entry in bucket.list('s3://data/run')] == ['b/c']


@pytest.mark.parametrize('size', [0, 1, 5 * MIB, 6 * MIB + 1, 21 * MIB])
def test_a_file_of_any_size_goes_up_and_comes_back(server, tmp_path, small_parts, size):
    path, bucket = file_of(tmp_path / 'f', size), open_bucket('s3://data')
    bucket.upload(path, 's3://data/f', sha256(path))
    assert body(server, 'f') == path.read_bytes()
    assert bucket.bytes_sent == size
    bucket.upload(path, 's3://data/f', sha256(path))
    assert bucket.bytes_sent == size  # it is there
    bucket.download('s3://data/f', tmp_path / 'g', size=size, sha256=sha256(path))
    assert (tmp_path / 'g').read_bytes() == path.read_bytes()
    file_of(path, size, seed=1)
    bucket.upload(path, 's3://data/f', sha256(path))
    assert body(server, 'f') == path.read_bytes()


UPLOAD = """
import sys
from pathlib import Path
from rewarm.buckets import s3
s3.SINGLE_BYTES, s3.PART_BYTES, s3.UPLOAD_THREADS = 6 << 20, 5 << 20, 1
bucket, count = s3.S3Bucket(), s3.S3Bucket._count
def told(self, size):
    count(self, size)
    print(self.bytes_sent, flush=True)
s3.S3Bucket._count = told
bucket.upload(Path(sys.argv[1]), sys.argv[2])
"""


def test_a_killed_upload_goes_on_with_the_part_it_was_at(server, tmp_path):
    path = file_of(tmp_path / 'f', 32 * MIB)
    command = [sys.executable, '-c', UPLOAD, str(path), 's3://data/f']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(3):  # as many parts are there
            sent = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    assert sent == 15 * MIB
    assert open_bucket('s3://data').find('s3://data/f') is None
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    resent = int(again.stdout.split()[-1])
    assert 12 * MIB <= resent <= 17 * MIB  # one more part may have arrived while it was killed
    assert body(server, 'f') == path.read_bytes()
    assert not server.client().list_multipart_uploads(Bucket=BUCKET).get('Uploads')


def test_parts_of_another_content_are_not_taken(server, tmp_path, small_parts):
    client = server.client()
    upload = client.create_multipart_upload(Bucket=BUCKET, Key='f')['UploadId']
    client.upload_part(Bucket=BUCKET, Key='f', UploadId=upload, PartNumber=1, Body=b'x' * 5 * MIB)
    path, bucket = file_of(tmp_path / 'f', 12 * MIB), open_bucket('s3://data')
    bucket.upload(path, 's3://data/f')
    assert body(server, 'f') == path.read_bytes()


def test_uploads_that_broke_off_can_be_forgotten(server):
    client = server.client()
    for key in ('run/a', 'run-2/a'):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    open_bucket('s3://data').forget_uploads('s3://data/run')
    assert [each['Key'] for each in client.list_multipart_uploads(Bucket=BUCKET)['Uploads']] == ['run-2/a']


def test_a_server_killed_and_started_again_costs_an_error_and_no_part(server, tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr(s3, 'UPLOAD_THREADS', 1)
    path, bucket, count = file_of(tmp_path / 'f', 32 * MIB), open_bucket('s3://data'), s3.S3Bucket._count

    def kill_after_three(self, size):
        count(self, size)
        if self.bytes_sent == 15 * MIB:
            server.kill()

    with monkeypatch.context() as patch:
        patch.setattr(s3.S3Bucket, '_count', kill_after_three)
        with pytest.raises(Unreachable, match=f's3://data/f: no answer from {server.endpoint}'):
            bucket.upload(path, 's3://data/f')
    server.start()
    bucket.upload(path, 's3://data/f')
    assert body(server, 'f') == path.read_bytes()
    # rclone keeps the list of parts in memory: all goes up again there.
    assert bucket.bytes_sent == (32 if server.kind == 'nanio' else 47) * MIB


def test_a_download_is_verified_and_leaves_nothing_when_it_fails(server, tmp_path):
    bucket = open_bucket('s3://data')
    bucket.write('s3://data/f', b'other bits')
    for size, digest, words in ((9, None, '10 bytes instead of 9'), (10, '0' * 64, 'does not hash')):
        with pytest.raises(Damaged, match=f's3://data/f: .*{words}'):
            bucket.download('s3://data/f', tmp_path / 'g', size=size, sha256=digest)
    with pytest.raises(Damaged, match='s3://data/none: is missing'):
        bucket.download('s3://data/none', tmp_path / 'g')
    assert [path.name for path in tmp_path.iterdir()] == ['s3']


def test_a_good_file_is_not_downloaded_again(server, tmp_path):
    path = file_of(tmp_path / 'f', 100)
    before = path.stat().st_ino
    open_bucket('s3://data').download('s3://data/none', path, size=100, sha256=sha256(path))
    assert path.stat().st_ino == before


def test_an_object_replaced_under_its_reader_is_an_error(server):
    bucket = open_bucket('s3://data')
    bucket.write('s3://data/x', b'1' * 9 * MIB)
    ((_, size, version),) = bucket.list('s3://data/x')
    with bucket.open('s3://data/x', size, version) as file:
        assert file.read(10) == b'1' * 10
        bucket.write('s3://data/x', b'2' * 9 * MIB)
        with pytest.raises(BucketError, match='s3://data/x'):
            file.read()


# ---------------------------------------------------------------- what a stranger's bucket may hold


@pytest.fixture
def anything(monkeypatch):
    """A store whose keys are what a test likes."""
    server = AnyKey()
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


def test_a_listing_gives_only_names_that_may_be_used_below_any_folder(anything):
    odd = ['../x', 'a/../../x', '/etc/x', 'a//x', './x', 'a/.', 'a\nb', 'n' * 300, '..']
    anything.objects = {f'data/run/{key}': b'1' for key in ['a', 'a/b', 'c.d', '.hidden', *odd]}
    with pytest.warns(UserWarning, match=f's3://data/run: {len(odd)} objects are left out') as caught:
        assert [entry.name for entry in open_bucket('s3://data').list('s3://data/run')] == [
            '.hidden',
            'a',
            'a/b',
            'c.d',
        ]
    assert all(text.isprintable() for text in [str(caught[0].message)])
    anything.objects = {'data//etc/x': b'1', 'data/a': b'22'}
    with pytest.warns(UserWarning, match="'/etc/x'"):
        assert [entry[:2] for entry in open_bucket('s3://data').list('s3://data')] == [('a', 2)]


def test_placeholders_of_folders_and_siblings_are_left_out_without_a_word(anything):
    anything.objects = {f'data/{key}': b'' for key in ['run/', 'run/sub/', 'run/sub/a', 'run-2/a', 'runs', 'other/']}
    assert [entry.name for entry in open_bucket('s3://data').list('s3://data/run')] == ['sub/a']
    assert [entry.name for entry in open_bucket('s3://data').list('s3://data/run/sub/a')] == ['']


def test_a_listing_without_end_is_an_error(anything, monkeypatch):
    monkeypatch.setattr(bucket_module, 'MOST_OBJECTS', 3)
    anything.objects = {f'data/run/{n}': b'' for n in range(4)}
    with pytest.raises(BucketError, match='s3://data/run: there are more than 3 objects; name a folder further down'):
        open_bucket('s3://data').list('s3://data/run')


def test_no_more_is_read_than_was_asked_for(anything, tmp_path):
    anything.objects = {'data/f': b'x' * 3 * MIB}
    bucket = open_bucket('s3://data')
    with pytest.raises(Damaged, match='s3://data/f: has more than 1,000 bytes'):
        bucket.read('s3://data/f', largest_bytes=1000)
    assert bucket.read('s3://data/f', largest_bytes=3 * MIB) == b'x' * 3 * MIB
    anything.longer = 100
    with pytest.raises(Damaged, match='bytes or more came instead of'):
        bucket.download('s3://data/f', tmp_path / 'f')
    assert list(tmp_path.iterdir()) == []
    with bucket.open('s3://data/f', 3 * MIB, bucket.list('s3://data/f')[0].version) as file:
        assert file.read(MIB) == b'x' * MIB


def test_a_download_follows_no_link(anything, tmp_path):
    anything.objects = {'data/f': b'new'}
    victim = tmp_path / 'victim'
    victim.write_bytes(b'mine')
    for name in ('f', 'f.part'):
        (tmp_path / name).symlink_to(victim)
    open_bucket('s3://data').download('s3://data/f', tmp_path / 'f', sha256=hashlib.sha256(b'new').hexdigest())
    assert (victim.read_bytes(), (tmp_path / 'f').read_bytes()) == (b'mine', b'new')
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_symlink()) == ['f', 'victim']


def garbled(draw, code, body, headers):
    """An answer with bytes changed, cut or put in, another status, or a header that is gone or odd."""
    which, body, headers = draw.random(), bytearray(body), dict(headers)
    if which < 0.5 and body:
        at = draw.randrange(len(body))
        body[at : at + draw.randrange(30)] = draw.choice(
            [b'', b'\x00', b'\xff', b'</Contents>', b'9' * 30, b'<Key>', b'<']
        )
    elif which < 0.6:
        code = draw.choice([204, 206, 301, 307, 400, 404, 412, 416, 429, 500, 503])
    elif headers and which < 0.8:
        del headers[draw.choice(list(headers))]
    elif which < 0.95:
        headers[draw.choice(['ETag', 'Last-Modified', 'Content-Range', 'x-amz-bucket-region'])] = draw.choice(
            ['', '"', '-1', '9' * 40, 'us-west-2', 'http://127.0.0.1:1/']
        )
    return code, bytes(body), headers


@pytest.mark.filterwarnings('ignore:.* objects are left out')
def test_an_answer_that_is_none_of_s3s_is_an_error_in_words(anything, tmp_path, monkeypatch):
    monkeypatch.setattr('botocore.retries.standard.ExponentialBackoff.delay_amount', lambda self, context: 0)
    monkeypatch.setattr(bucket_module, 'READ_ATTEMPTS', 1)
    draw, bucket = random.Random(11), open_bucket('s3://data')
    anything.objects = {'data/run/a': b'hello', 'data/run/b/c': b'x' * 100}
    anything.garble = lambda *answer: garbled(draw, *answer)
    etag = hashlib.md5(b'hello').hexdigest()
    asked = [
        lambda: bucket.list('s3://data/run'),
        lambda: bucket.read('s3://data/run/a'),
        lambda: bucket.find('s3://data/run/a'),
        lambda: bucket.read_range('s3://data/run/a', 1, 3, etag),
        lambda: bucket.download('s3://data/run/b/c', tmp_path / 'c', size=100),
    ]
    words = 0
    for number in range(150):
        try:
            asked[number % len(asked)]()
        except BucketError:
            words += 1
    assert 20 < words < 130
    assert list(tmp_path.glob('*.part')) == []


# ---------------------------------------------------------------- what goes wrong, in words


@pytest.fixture
def fresh_clients(monkeypatch):
    """Clients that read the environment anew."""
    monkeypatch.setattr(s3, '_client', s3._client.__wrapped__)


@pytest.mark.parametrize(
    ('variable', 'value'), [('AWS_SECRET_ACCESS_KEY', 'wrong'), ('AWS_ACCESS_KEY_ID', 'AKOTHEROTHEROTHER12')]
)
def test_wrong_keys(server, monkeypatch, fresh_clients, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(BucketError, match=r's3://data/x: .* does not accept the keys.*AWS variables') as caught:
        open_bucket('s3://data').write('s3://data/x', b'1')
    assert not isinstance(caught.value, Unreachable)


def test_no_keys(server, monkeypatch, fresh_clients, tmp_path):
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.delenv(name)
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(tmp_path / 'none'))
    with pytest.raises(BucketError, match=r'does not accept the keys.*Unable to locate credentials'):
        open_bucket('s3://data').read('s3://data/x')


@pytest.mark.parametrize(
    'ask',
    [
        lambda bucket: bucket.write('s3://nowhere/x', b'1'),
        lambda bucket: bucket.list('s3://nowhere'),
        lambda bucket: bucket.read('s3://nowhere/x'),
    ],
)
def test_a_missing_bucket(server, ask):
    with pytest.raises(BucketError, match=f'there is no bucket nowhere at {server.endpoint}; make it'):
        ask(open_bucket('s3://nowhere'))


def test_a_wrong_clock(server, monkeypatch):
    import botocore.auth
    from botocore.compat import get_current_datetime

    def late(*args, **kwargs):
        return get_current_datetime(*args, **kwargs).replace(year=2020)

    monkeypatch.setattr(botocore.auth, 'get_current_datetime', late)
    with pytest.raises(BucketError, match=r'clock of this machine is off.*set it'):
        open_bucket('s3://data').write('s3://data/x', b'1')


def test_no_server(monkeypatch, fresh_clients):
    monkeypatch.setenv('S3_ENDPOINT_URL', f'http://127.0.0.1:{free_port()}')
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'x')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'x')
    with pytest.raises(Unreachable, match=r's3://data/x: no answer from http://127.0.0.1:\d+ .*S3_ENDPOINT_URL'):
        open_bucket('s3://data').read('s3://data/x')


def test_an_endpoint_that_is_no_url(monkeypatch, fresh_clients):
    monkeypatch.setenv('S3_ENDPOINT_URL', 'myserver')
    with pytest.raises(UserError, match='S3_ENDPOINT_URL: Invalid endpoint: myserver; write it as http://host:port'):
        open_bucket('s3://data')


def test_a_password_in_the_endpoint_is_not_told(monkeypatch, fresh_clients):
    monkeypatch.setenv('S3_ENDPOINT_URL', f'http://user:pass-word@127.0.0.1:{free_port()}')
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'x')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'x')
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
    with pytest.raises(BucketError) as caught:
        open_bucket('s3://data').read('s3://data/x')
    assert 'http://REDACTED@127.0.0.1' in str(caught.value)
    assert 'pass-word' not in str(caught.value)
    monkeypatch.setenv('S3_ENDPOINT_URL', 'user:pass-word@server')
    with pytest.raises(UserError, match='S3_ENDPOINT_URL') as caught:
        open_bucket('s3://data')
    assert 'pass-word' not in str(caught.value)


@pytest.mark.parametrize(
    'url', ['s3://key:sec@bucket/a', 's3://key:se/cret@bucket/a', 'gs://key@bucket', 's3://host:9000/b']
)
def test_a_url_with_keys_or_a_server_is_refused_without_being_shown(url):
    with pytest.raises(
        UserError, match=r'\*\*\*: a bucket is given by its name alone.*write (s3|gs)://bucket'
    ) as caught:
        open_bucket(url)
    assert not any(word in str(caught.value) for word in ('sec', 'cret', 'key@', 'key:'))


def test_urls():
    assert split_url('s3://bucket/a/b/') == ('bucket', 'a/b')
    assert split_url('az://container') == ('container', '')
    with pytest.raises(UserError, match='names no bucket; write gs://bucket/prefix'):
        split_url('gs:///x')
    with pytest.raises(UserError, match='http://x/y: no bucket; write s3://bucket/prefix, gs://'):
        open_bucket('http://x/y')
