import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from threading import Event, Thread

import pytest

from rewarm.resume.channel import Hub, Line


@pytest.fixture
def hub():
    with closing(Hub('127.0.0.1', range(1, 3))) as hub:
        yield hub


@pytest.fixture
def serve(hub) -> Iterator[Callable[[], None]]:
    """Begins to answer in a thread; not before, so that a test can see a hub that is frozen."""
    end = Event()

    def talk() -> None:
        while not end.is_set():
            hub.exchange({'number': 7}, 0.02)

    thread = Thread(target=talk)

    yield thread.start
    end.set()
    if thread.is_alive():
        thread.join()


def line_to(hub: Hub | int) -> Line:
    port, token = (hub, '') if isinstance(hub, int) else (hub.port, hub.token)
    return Line('127.0.0.1', port, token, 0.3)


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_rank_is_heard_and_gets_the_reply(hub, serve):
    serve()
    with closing(line_to(hub)) as line:
        assert line.exchange({'rank': 1, 'where': 'here'}) == {'number': 7}
        assert hub.peers[1].message == {'rank': 1, 'where': 'here'}  # the token is nobody's business
        assert hub.peers[2].message == {}
        first = hub.peers[1].heard_at
        line.exchange({'rank': 1, 'where': 'there'})
        assert hub.peers[1].message['where'] == 'there'
        assert hub.peers[1].heard_at > first
        assert hub.peers[1].closed_at is None


def test_a_closed_connection_is_known_until_it_is_opened_again(hub, serve):
    serve()
    with closing(line_to(hub)) as line:
        line.exchange({'rank': 1})
        line.close()
        wait(lambda: hub.peers[1].closed_at is not None)
        line.exchange({'rank': 1})
        assert hub.peers[1].closed_at is None


def test_a_late_reply_neither_closes_the_connection_nor_is_lost(hub, serve):
    with closing(line_to(hub)) as line:
        for where in ('a', 'b'):
            with pytest.raises(TimeoutError):
                line.exchange({'rank': 1, 'where': where})
        connection = line._socket
        serve()
        assert line.exchange({'rank': 1, 'where': 'c'}) == {'number': 7}
        assert line._socket is connection is not None
        wait(lambda: hub.peers[1].message.get('where') == 'c')
        assert hub.peers[1].closed_at is None


def test_of_several_replies_the_newest_counts():
    with socket.create_server(('127.0.0.1', 0)) as server, closing(line_to(server.getsockname()[1])) as line:
        with pytest.raises(TimeoutError):
            line.exchange({'rank': 1})
        connection, _ = server.accept()
        with connection:
            connection.sendall(b'{"number": 1}\n{"number": 2}\n')
            assert line.exchange({'rank': 1}) == {'number': 2}


def test_a_hub_that_is_gone_is_an_error_of_the_connection(hub, serve):
    with closing(line_to(hub)) as line:
        hub.close()
        for _ in range(2):
            with pytest.raises(ConnectionError):
                line.exchange({'rank': 1})


@pytest.mark.parametrize(
    'said',
    [
        b'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
        b'{"rank": 1, "token": "wrong"}\n',
        b'{"rank": 1}\n',
        b'[1, 2]\n',
        b'\xff\xfe\n',
        b'x' * 200_000,
    ],
)
def test_strangers_are_not_heard(hub, serve, said):
    serve()
    with socket.create_connection(('127.0.0.1', hub.port), timeout=5) as stranger:
        try:
            stranger.sendall(said)
            assert stranger.recv(100) == b''  # hung up on, without a word
        except ConnectionError:
            pass  # hung up on in the middle of it
    assert all(peer.message == {} and peer.closed_at is None for peer in hub.peers.values())


def test_a_rank_that_does_not_exist_is_not_heard(hub, serve):
    serve()
    with closing(line_to(hub)) as line, pytest.raises(ConnectionError):
        line.exchange({'rank': 9})
    assert set(hub.peers) == {1, 2}


def test_a_hub_on_the_loopback_listens_there_alone(hub):
    local = Hub('localhost', range(0))
    with closing(local):
        assert local._server.getsockname()[0] in ('127.0.0.1', '::1')
    assert hub._server.getsockname()[0] == '127.0.0.1'


def test_messages_in_pieces_are_put_together(hub, serve):
    serve()
    with socket.create_connection(('127.0.0.1', hub.port), timeout=5) as slow:
        for piece in (b'{"rank": 2, "tok', f'en": "{hub.token}"}}'.encode(), b'\n'):
            slow.sendall(piece)
            time.sleep(0.05)
        assert json.loads(slow.recv(100)) == {'number': 7}
    assert hub.peers[2].message == {'rank': 2}
