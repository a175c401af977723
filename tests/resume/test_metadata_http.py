import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.message import Message
from threading import Event, Thread

import pytest

from rewarm.config.errors import UserError
from rewarm.resume import metadata_http
from rewarm.resume.clouds import CLOUDS
from rewarm.resume.metadata_http import Answer, ask
from rewarm.resume.notice import find_cloud

TIMEOUT_SECONDS = 0.5


class Service:
    """Answers each connection with pieces of bytes, and pauses between them."""

    def __init__(self, server: socket.socket, pieces: Callable[[], Iterator[bytes]], pause_seconds: float) -> None:
        self.server = server
        self.pieces = pieces
        self.pause_seconds = pause_seconds
        self.asked: list[bytes] = []
        self.over = Event()
        self.url = f'http://127.0.0.1:{server.getsockname()[1]}'
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the test is over
            while True:
                Thread(target=self._answer, args=(self.server.accept()[0],), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # it is hung up on
            self.asked.append(connection.recv(4096))
            for piece in self.pieces():
                connection.sendall(piece)
                if self.over.wait(self.pause_seconds):
                    break


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:

        def start(*pieces: bytes, again: bytes = b'', pause_seconds: float = 0.0) -> Service:
            def all_pieces() -> Iterator[bytes]:
                yield from pieces
                while again:
                    yield again

            server = stack.enter_context(socket.create_server(('127.0.0.1', 0)))
            service = Service(server, all_pieces, pause_seconds)
            stack.callback(service.over.set)
            stack.callback(server.shutdown, socket.SHUT_RDWR)
            return service

        yield start


def get(url: str, **settings: float) -> Answer:
    return ask(f'{url}/here?a=b', {'X-Y': 'z'}, method='GET', **{'timeout_seconds': TIMEOUT_SECONDS, **settings})


def test_an_answer_is_read_to_the_end_that_it_names_although_the_connection_stays_open(serve):
    service = serve(b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\nA: b\r\n\r\nTRUE', b'', pause_seconds=5)
    answer = get(service.url)
    assert (answer.status, answer.text, answer.headers['A']) == (200, 'TRUE', 'b')
    assert service.asked[0].startswith(b'GET /here?a=b HTTP/1.1\r\n')
    assert b'X-Y: z\r\n' in service.asked[0]


def test_an_answer_in_chunks_or_up_to_the_end_of_the_connection_is_read_too(serve):
    chunks = serve(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nTRUE\r\n0\r\n\r\n')
    to_the_end = serve(b'HTTP/1.0 200 OK\r\n\r\nTRUE')
    assert get(chunks.url).text == get(to_the_end.url).text == 'TRUE'


HEAD = b'HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n'
SLOW = {
    'nothing': ([], b''),
    'headers byte by byte': ([HEAD], b'X'),
    'header after header': ([HEAD], b'A: b\r\n'),
    'body byte by byte': ([HEAD + b'Content-Length: 1000000\r\n\r\n'], b'F'),
    'body without an end, byte by byte': ([HEAD + b'\r\n'], b'F'),
    'chunk after chunk': ([HEAD + b'Transfer-Encoding: chunked\r\n\r\n'], b'1\r\nF\r\n'),
    'continue after continue': ([], b'HTTP/1.1 100 Continue\r\n\r\n'),
}


@pytest.mark.parametrize('pieces', SLOW.values(), ids=SLOW)
def test_one_deadline_holds_for_the_whole_answer_however_slowly_it_drips(serve, pieces):
    first, again = pieces
    service = serve(*first, again=again or b'', pause_seconds=0.05) if first or again else serve(b'', pause_seconds=9)
    began = time.monotonic()
    with pytest.raises(OSError, match='timed out'):
        get(service.url)
    assert TIMEOUT_SECONDS - 0.05 < time.monotonic() - began < TIMEOUT_SECONDS + 0.5


def test_a_service_may_be_silent_at_first_if_it_is_said_so_but_then_it_has_to_be_quick(serve):
    awaken = serve(b'', b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nTRUE', pause_seconds=0.4)
    assert get(awaken.url, timeout_seconds=0.2, silence_seconds=5).text == 'TRUE'
    slow = serve(b'', HEAD + b'\r\n', again=b'F', pause_seconds=0.1)
    began = time.monotonic()
    with pytest.raises(OSError, match='timed out'):
        get(slow.url, timeout_seconds=0.3, silence_seconds=5)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ('pieces', 'words'),
    [
        ([HEAD + b'Content-Length: 99999999999\r\n\r\n'], 'larger than'),
        ([HEAD + b'\r\n'], 'larger than'),
        ([HEAD[:-2]], 'HTTP'),  # a header line without end
        ([HEAD, b'A: b\r\n' * 200], 'HTTP'),
    ],
)
def test_endless_answers_are_cut_at_a_bound(serve, pieces, words, monkeypatch):
    monkeypatch.setattr(metadata_http, 'LARGEST_ANSWER_BYTES', 100_000)
    with pytest.raises(OSError, match=words):
        get(serve(*pieces, again=b'F' * 65536).url, timeout_seconds=5)


@pytest.mark.parametrize(
    'said',
    [b'', b'hello', b'\x00' * 100, b'HTTP/1.1 OK\r\n\r\n', b'HTTP/9 200 x\r\n\r\n', b'HTTP/1.1 999999 x\r\n\r\n'],
)
def test_what_speaks_no_http_is_an_error_of_the_connection(serve, said):
    with pytest.raises(OSError, match=r'HTTP|reset'):
        get(serve(said).url)


def test_an_answer_that_breaks_off_is_no_answer(serve):
    for said in (b'Content-Length: 10\r\n\r\nTRUE', b'Transfer-Encoding: chunked\r\n\r\n9\r\nTRUE'):
        with pytest.raises(OSError, match=r'breaks off|HTTP'):
            get(serve(HEAD + said).url)


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(serve, status):
    inside = serve(HEAD + b'Content-Length: 4\r\n\r\nTRUE')
    service = serve(f'HTTP/1.1 {status} X\r\nLocation: {inside.url}/admin\r\nContent-Length: 0\r\n\r\n'.encode())
    assert get(service.url).status == status
    for cloud in CLOUDS:
        with pytest.raises(UserError, match=f'HTTP status {status}'):
            find_cloud(cloud, service.url)
    assert inside.asked == []


def test_no_proxy_of_the_environment_is_asked(serve, monkeypatch):
    proxy = serve(HEAD + b'Content-Length: 0\r\n\r\n')
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.setenv(name, proxy.url)
    assert get(serve(HEAD + b'Content-Length: 4\r\n\r\nTRUE').url).text == 'TRUE'
    assert proxy.asked == []


@pytest.mark.parametrize(
    'url', ['file:///etc', 'https://127.0.0.1', 'ftp://h', 'http://', 'http://u:secret@127.0.0.1', 'http://h:port', '']
)
def test_addresses_that_no_metadata_service_has_are_refused(url):
    with pytest.raises(ValueError) as error:
        get(url)
    assert 'secret' not in str(error.value)


@pytest.mark.parametrize('host', ['no-such-host.invalid', 'a' * 300, 'a..b', '\u2603.invalid'])
def test_a_name_that_cannot_be_found_is_an_error(host):
    with pytest.raises((OSError, ValueError)):
        get(f'http://{host}', timeout_seconds=5)


def test_the_lookup_of_a_name_is_not_waited_for_longer_than_the_time_out(monkeypatch):
    over = Event()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: over.wait(20) and [])
    began = time.monotonic()
    with pytest.raises(OSError, match='not found in time'):
        get('http://metadata.invalid')
    assert time.monotonic() - began < TIMEOUT_SECONDS + 0.5
    over.set()


def test_auto_waits_for_all_clouds_no_longer_than_for_one(serve, tmp_path):
    service = serve(HEAD + b'Content-Length: 1000000\r\n\r\n', again=b'F', pause_seconds=0.1)
    began = time.monotonic()
    found, why = find_cloud('auto', service.url, dmi=tmp_path)
    assert time.monotonic() - began < 3.5
    assert found is None
    assert why.count('timed out') == 3


DEEP = b'[' * 100_000
ANSWERS = {
    'deep': DEEP,
    'empty': b'',
    'no UTF-8': b'\xff\xfe',
    'a number': b'7',
    'NaN': b'{"action": NaN, "noticeTime": NaN, "Events": NaN}',
    'other types': b'{"action": 7, "noticeTime": [], "Events": {}}',
    'null events': b'{"action": null, "noticeTime": null, "Events": [null]}',
    'steering a terminal': b'{"action": "\\u001b[2J", "noticeTime": "\\u001b", "Events": [{"EventId": "\\u001b", '
    b'"EventType": "Preempt", "Resources": [], "NotBefore": ""}]}',
    'no time': b'{"action": "stop", "time": "9999-99-99T00:00:00Z", "noticeTime": "", "Events": [{"EventId": "1", '
    b'"EventType": "Preempt", "Resources": ["name"], "NotBefore": "Mon, 99 Foo 99999 99:99:99 GMT"}]}',
}


@pytest.mark.parametrize('cloud', ['aws', 'azure'])
@pytest.mark.parametrize('body', ANSWERS.values(), ids=ANSWERS)
def test_an_answer_in_no_documented_form_is_an_error_in_words(serve, cloud, body):
    service = serve(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
    asking = CLOUDS[cloud](service.url)
    asking._machine = asking._token = 'name'
    asking._token_until = time.monotonic() + 60
    with pytest.raises(ValueError) as error:
        list(asking.notices())
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    'headers', [b'X-aws-ec2-metadata-token-ttl-seconds: ' + b'9x\x1b[2J' * 5000, b'A: ' + b'b' * 70_000, b'\x1b[2J' * 9]
)
def test_what_a_service_says_is_neither_long_nor_steers_a_terminal_in_the_words_about_it(serve, headers):
    service = serve(b'HTTP/1.1 200 OK\r\n' + headers + b'\r\nContent-Length: 1\r\n\r\nt')
    with pytest.raises(UserError) as error:
        find_cloud('gcp', service.url)
    with contextlib.suppress(UserError):
        find_cloud('aws', service.url)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800


def test_a_password_in_a_variable_is_not_repeated(monkeypatch, tmp_path):
    monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', 'http://user:hidden@127.0.0.1:9')
    monkeypatch.delenv('GCE_METADATA_HOST', raising=False)
    found, why = find_cloud('auto', dmi=tmp_path)
    assert found is None
    assert 'hidden' not in why


def answer(date: str | None) -> Answer:
    headers = Message()
    if date is not None:
        headers['Date'] = date
    return Answer(200, b'', headers, 1000.0)


@pytest.mark.parametrize('date', [None, '', 'yesterday', 'Mon, 99 Foo 99999 99:99:99 GMT', '0', '\x00'])
def test_without_a_date_that_can_be_read_this_machines_clock_is_taken(date):
    moment = datetime.now(UTC) + timedelta(seconds=60)
    assert answer(date).deadline(moment, 120) == pytest.approx(1060, abs=2)
    assert answer(date).deadline(moment, 30) == 1030


def test_times_without_a_zone_are_in_utc():
    moment = datetime(2026, 1, 2, 3, 4, 5)
    assert answer('Fri, 02 Jan 2026 03:03:05 -0000').deadline(moment, 30) == 1059
    assert answer('Fri, 02 Jan 2026 03:03:05 GMT').deadline(moment.replace(tzinfo=UTC), 30) == 1059
