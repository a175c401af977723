import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from random import Random
from threading import Event, Thread

import pytest

from rewarm.resume import channel
from rewarm.resume.channel import Hub, Line
from rewarm.resume.messages import Reply, Report


def report(rank: int = 1, where: str = 'here') -> Report:
    return Report(rank=rank, host='h', pid=7, count=1, where=where, idle_seconds=0, patience=1, left=None, knows=False)


REPLY = Reply(cause=None, zero=report(0, 'zero'))


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
            hub.exchange(REPLY, 0.02)

    thread = Thread(target=talk)

    yield thread.start
    end.set()
    if thread.is_alive():
        thread.join()


def line_to(hub: Hub | int) -> Line:
    port, token = (hub, 't' * 32) if isinstance(hub, int) else (hub.port, hub.token)
    return Line('127.0.0.1', port, token, 0.3)


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def where(hub: Hub, rank: int) -> str | None:
    message = hub.peers[rank].message
    return message and message.where


def call(hub: Hub) -> socket.socket:
    return socket.create_connection(('127.0.0.1', hub.port), timeout=5)


def hung_up_on(stranger: socket.socket) -> bool:
    """Whether the hub hangs up, within five seconds and without a word."""
    try:
        return stranger.recv(100) == b''
    except ConnectionError:
        return True


def is_open(stranger: socket.socket) -> bool:
    """Whether the hub has not hung up so far."""
    stranger.setblocking(False)
    try:
        return stranger.recv(1) != b''
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_a_rank_is_heard_and_gets_the_reply(hub, serve):
    serve()
    with closing(line_to(hub)) as line:
        assert line.exchange(report(1, 'here')) == REPLY
        assert hub.peers[1].message == report(1, 'here')
        assert hub.peers[2].message is None
        first = hub.peers[1].heard_at
        line.exchange(report(1, 'there'))
        assert where(hub, 1) == 'there'
        assert hub.peers[1].heard_at > first
        assert hub.peers[1].closed_at is None


def test_a_closed_connection_is_known_until_it_is_opened_again(hub, serve):
    serve()
    with closing(line_to(hub)) as line:
        line.exchange(report())
        line.close()
        wait(lambda: hub.peers[1].closed_at is not None)
        line.exchange(report())
        assert hub.peers[1].closed_at is None


def test_the_end_of_a_connection_that_a_rank_has_replaced_is_not_the_end_of_the_rank(hub, serve):
    serve()
    with closing(line_to(hub)) as first, closing(line_to(hub)) as second:
        first.exchange(report())
        second.exchange(report())
        assert first._socket is not None
        assert hung_up_on(first._socket)
        second.exchange(report())
        assert hub.peers[1].closed_at is None


def test_a_late_reply_neither_closes_the_connection_nor_is_lost(hub, serve):
    with closing(line_to(hub)) as line:
        for place in ('a', 'b'):
            with pytest.raises(TimeoutError):
                line.exchange(report(1, place))
        connection = line._socket
        serve()
        assert line.exchange(report(1, 'c')) == REPLY
        assert line._socket is connection is not None
        wait(lambda: where(hub, 1) == 'c')
        assert hub.peers[1].closed_at is None


def test_of_several_replies_the_newest_counts():
    newer = Reply(cause=None, zero=report(0, 'newer'))
    with socket.create_server(('127.0.0.1', 0)) as server, closing(line_to(server.getsockname()[1])) as line:
        with pytest.raises(TimeoutError):
            line.exchange(report())
        connection, _ = server.accept()
        with connection:
            connection.sendall(f'{REPLY.model_dump_json()}\n{newer.model_dump_json()}\n'.encode())
            assert line.exchange(report()) == newer


@pytest.mark.parametrize('said', [b'[' * 5000 + b'\n', b'{"zero": 1}\n', b'x' * 200_000, b'\xff\n'])
def test_what_takes_the_place_of_rank_0_and_talks_nonsense_is_an_error_of_the_connection(said):
    with socket.create_server(('127.0.0.1', 0)) as server, closing(line_to(server.getsockname()[1])) as line:
        Thread(target=lambda: server.accept()[0].sendall(said)).start()
        with pytest.raises(ConnectionError):
            line.exchange(report())


def test_a_reply_that_comes_byte_by_byte_is_not_waited_for_longer_than_the_time_out():
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(('127.0.0.1', 0)))
        line = stack.enter_context(closing(line_to(server.getsockname()[1])))

        def drip() -> None:
            with server.accept()[0] as connection, contextlib.suppress(OSError):
                for _ in range(40):
                    connection.sendall(b'{')
                    time.sleep(0.05)

        thread = Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            line.exchange(report())
        assert time.monotonic() - began < 1.5
        line.close()
        thread.join()


def test_a_hub_that_is_gone_is_an_error_of_the_connection(hub, serve):
    with closing(line_to(hub)) as line:
        hub.close()
        for _ in range(2):
            with pytest.raises(ConnectionError):
                line.exchange(report())


NONSENSE = {
    'http': b'GET / HTTP/1.1\r\nHost: example.org\r\n\r\n',
    'deep': b'[' * 1500 + b'\n',
    'very deep': b'[' * 60_000 + b'\n',
    'deep keys': b'{"rank":' * 3000 + b'\n',
    'binary': bytes(range(256)) * 8 + b'\n',
    'no UTF-8': b'\xff\xfe' * 20 + b'\n',
    'empty lines': b'\n' * 5000,
    'endless': b'x' * 200_000,
    'no object': b'[1, 2, "' + b'x' * 40 + b'"]\n',
    'huge number': b'{"rank": ' + b'9' * 5000 + b'}\n',
}


@pytest.mark.parametrize('said', NONSENSE.values(), ids=NONSENSE)
def test_strangers_are_not_heard(hub, serve, said):
    serve()
    with closing(line_to(hub)) as line, call(hub) as stranger:
        line.exchange(report(2))
        with contextlib.suppress(ConnectionError):  # hung up on in the middle of it
            stranger.sendall(said)
        assert hung_up_on(stranger)
        line.exchange(report(2))
    assert hub.peers[1].message is None


WORDS = {
    **NONSENSE,
    'another rank': report(9).model_dump_json().encode() + b'\n',
    'rank 0': report(0).model_dump_json().encode() + b'\n',
    'true as a rank': report(1).model_dump_json().replace('"rank":1', '"rank":true').encode() + b'\n',
    'NaN': report(1).model_dump_json().replace('"patience":1.0', '"patience":NaN').encode() + b'\n',
    'a key less': report(1).model_dump_json().replace('"pid":7,', '').encode() + b'\n',
    'text as a number': report(1).model_dump_json().replace('"pid":7', '"pid":"7"').encode() + b'\n',
    'half a character': report(1, 'HERE').model_dump_json().replace('HERE', r'\ud800').encode() + b'\n',
    'two ranks': b''.join(report(rank).model_dump_json().encode() + b'\n' for rank in (1, 2)),
}


@pytest.mark.parametrize('said', WORDS.values(), ids=WORDS)
def test_nonsense_after_the_right_token_ends_its_own_connection_alone(hub, serve, said):
    serve()
    with closing(line_to(hub)) as line, call(hub) as insider:
        line.exchange(report(2))
        with contextlib.suppress(ConnectionError):
            insider.sendall(hub.token.encode() + said)
        assert hung_up_on(insider)
        assert line.exchange(report(2, 'there')) == REPLY
    assert set(hub.peers) == {1, 2}


def test_mutated_messages_end_their_own_connections_alone(hub, serve):
    random = Random(7)
    valid = report(1).model_dump_json().encode()
    serve()
    with closing(line_to(hub)) as line:
        line.exchange(report(2))
        for _ in range(300):
            said = bytearray(valid)
            for _ in range(random.randint(1, 4)):
                at = random.randrange(len(said))
                said[at : at + random.randint(0, 3)] = random.choice(
                    [b'', b'[', b'"', b'\xff', b'1e999', b'\\ud800', b'{}']
                )
            with call(hub) as insider:
                insider.sendall(hub.token.encode() + said + b'\n')
        line.exchange(report(2, 'there'))
    assert set(hub.peers) == {1, 2}


@pytest.mark.parametrize('length', [1, 31, 32, 33, 64])
def test_a_wrong_token_is_hung_up_on_as_soon_as_it_is_complete(hub, serve, length):
    serve()
    wrong = ('0' if hub.token[0] != '0' else '1') + hub.token[1:]
    with call(hub) as stranger:
        stranger.sendall((wrong * 2)[:length].encode())
        if length < 32:
            time.sleep(0.1)
            assert is_open(stranger)
        else:
            assert hung_up_on(stranger)
    assert all(peer.message is None and peer.closed_at is None for peer in hub.peers.values())


@pytest.mark.parametrize(
    'says', ['nothing', 'a byte at a time', 'the token and nothing', 'the token and half a message']
)
def test_a_stranger_that_does_not_become_a_rank_in_time_is_hung_up_on(hub, serve, monkeypatch, says):
    monkeypatch.setattr(channel, 'STRANGER_SECONDS', 0.4)
    serve()
    with call(hub) as stranger:
        began = time.monotonic()
        if says.startswith('the token'):
            stranger.sendall(hub.token.encode() + (b'{"rank": 1, ' if 'half' in says else b''))
        while is_open(stranger) and time.monotonic() < began + 4:
            if says == 'a byte at a time':
                with contextlib.suppress(OSError):
                    stranger.send(b'0')
            time.sleep(0.05)
        assert 0.3 < time.monotonic() - began < 2


def test_a_rank_may_be_silent_for_longer_than_a_stranger(hub, serve, monkeypatch):
    monkeypatch.setattr(channel, 'STRANGER_SECONDS', 0.1)
    serve()
    with closing(line_to(hub)) as line:
        line.exchange(report())
        time.sleep(0.4)
        assert hub.peers[1].closed_at is None
        line.exchange(report())


def test_hundreds_of_silent_strangers_neither_take_descriptors_nor_keep_a_rank_out(hub, serve):
    serve()
    with closing(line_to(hub)) as early, closing(line_to(hub)) as late, ExitStack() as stack:
        early.exchange(report(1))
        before = len(os.listdir('/proc/self/fd'))
        strangers = [stack.enter_context(call(hub)) for _ in range(300)]
        assert late.exchange(report(2)) == REPLY
        assert early.exchange(report(1)) == REPLY
        wait(lambda: sum(map(is_open, strangers)) <= channel.STRANGERS)
        ours = len(os.listdir('/proc/self/fd')) - before - 300
        assert ours <= channel.STRANGERS + 2  # both ends of the late one
        assert is_open(strangers[-1])  # the oldest had to go
        assert not is_open(strangers[0])
        assert hub.peers[1].closed_at is None


def test_ranks_that_all_come_at_once_are_not_taken_for_too_many_strangers():
    with closing(Hub('127.0.0.1', range(1, 60))) as hub, ExitStack() as stack:
        ranks = {rank: stack.enter_context(call(hub)) for rank in hub.peers}
        hub.exchange(REPLY, 0.05)  # all are connected before the first one speaks
        for rank, connection in ranks.items():
            connection.sendall(hub.token.encode() + report(rank).model_dump_json().encode() + b'\n')
        hub.exchange(REPLY, 0.3)
        assert all(peer.message is not None and peer.closed_at is None for peer in hub.peers.values())


def test_a_process_that_has_no_descriptor_left_goes_on_hearing_its_ranks(hub):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(line_to(hub)) as line, ExitStack() as stack:
        thread = Thread(target=hub.exchange, args=(REPLY, 0.5))
        thread.start()
        line.exchange(report(1))
        strangers = [stack.enter_context(call(hub)) for _ in range(40)]
        highest = max(map(int, os.listdir('/proc/self/fd')))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        try:
            while True:
                stack.enter_context(open(os.devnull))
        except OSError:
            pass
        try:
            thread.join()
            used = time.thread_time()
            Thread(target=line.exchange, args=(report(1, 'still here'),)).start()
            hub.exchange(REPLY, 0.4)
            assert time.thread_time() - used < 0.2  # no busy waiting for a descriptor
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert where(hub, 1) == 'still here'
        assert strangers


def test_a_flood_of_callers_takes_a_part_of_a_core_alone(hub):
    """Each connects and is gone, as fast as one process can."""
    flood = f"""
import socket, time
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        socket.create_connection(('127.0.0.1', {hub.port}), timeout=0.2).close()
    except OSError:
        pass
"""
    with closing(line_to(hub)) as line:
        thread = Thread(target=hub.exchange, args=(REPLY, 0.2))
        thread.start()
        line.exchange(report(1))
        thread.join()
        attacker = subprocess.Popen([sys.executable, '-c', flood])
        used, began = time.thread_time(), time.monotonic()
        while attacker.poll() is None and time.monotonic() < began + 10:
            hub.exchange(REPLY, 0.05)
        share = (time.thread_time() - used) / (time.monotonic() - began)
        assert attacker.wait() == 0
        assert share < 0.25
        thread = Thread(target=hub.exchange, args=(REPLY, 0.5))
        thread.start()
        assert line.exchange(report(1)) == REPLY
        thread.join()


@pytest.mark.parametrize('host', ['127.0.0.1', '127.0.0.5', '::1', 'localhost'])
def test_the_hub_listens_at_its_own_address_alone(host):
    try:
        hub = Hub(host, range(1, 2))
    except OSError as error:
        pytest.skip(f'this machine has no {host} ({error})')
    with closing(hub), closing(Line(host, hub.port, hub.token, 2)) as line:
        address = hub._server.getsockname()[0]
        assert address == host if host != 'localhost' else address in ('127.0.0.1', '::1')
        thread = Thread(target=hub.exchange, args=(REPLY, 0.5))
        thread.start()
        assert line.exchange(report()) == REPLY
        thread.join()
        elsewhere = '127.0.0.2' if ':' not in address else '127.0.0.1'
        with pytest.raises(ConnectionError):
            socket.create_connection((elsewhere, hub.port), timeout=2)


def test_an_address_that_no_interface_has_is_served_at_the_interface_that_leads_to_it(monkeypatch):
    """As the public address of a machine behind a translation of addresses."""
    asked = []

    def resolve(host: str, *args: object, **kwargs: object) -> list:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('192.0.2.1', 0))]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(('192.0.2.1', 9))
        except OSError:
            pytest.skip('this machine has no route to anywhere')
        own = probe.getsockname()[0]
    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    with closing(Hub('head', range(1, 2))) as hub:
        assert hub._server.getsockname()[0] == own
    assert asked == ['head']


def test_messages_in_pieces_are_put_together(hub, serve):
    serve()
    message = hub.token.encode() + report(2).model_dump_json().encode() + b'\n'
    with call(hub) as slow:
        for piece in (message[:10], message[10:50], message[50:-1], message[-1:]):
            slow.sendall(piece)
            time.sleep(0.05)
        assert Reply.model_validate(json.loads(slow.recv(2000)), strict=False) == REPLY
    assert hub.peers[2].message == report(2)
