import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rewarm.config.errors import UserError
from rewarm.resume import clouds
from rewarm.resume.notice import Notice, NoticeWatcher, find_cloud, machine_cloud
from tests.resume.clouds import MetadataServer

VARIABLES = ('AWS_EC2_METADATA_SERVICE_ENDPOINT', 'AWS_EC2_METADATA_DISABLED', 'GCE_METADATA_HOST')
FIRMWARE = {
    'aws': {'sys_vendor': 'Amazon EC2', 'product_name': 'p4d.24xlarge', 'chassis_asset_tag': 'Amazon EC2'},
    'gcp': {'sys_vendor': 'Google', 'product_name': 'Google Compute Engine', 'bios_vendor': 'Google'},
    'azure': {
        'sys_vendor': 'Microsoft Corporation',
        'product_name': 'Virtual Machine',
        'chassis_asset_tag': '7783-7084-3265-9085-8269-3286-77',
    },
}


@pytest.fixture(autouse=True)
def _no_cloud(monkeypatch: pytest.MonkeyPatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    # The real address is never asked by a test; nothing listens on this one.
    monkeypatch.setattr(clouds, 'LINK_LOCAL', 'http://127.0.0.1:9')


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Callable[[str], MetadataServer]:
    def start(cloud: str) -> MetadataServer:
        server = MetadataServer(cloud).start()
        request.addfinalizer(server.stop)
        return server

    return start


class Watch:
    """A watcher that polls 50 times a second, and what it told."""

    def __init__(self, kind: str, url: str | None, dmi: Path) -> None:
        self.notices: list[Notice] = []
        self.said: list[str] = []
        self.watcher = NoticeWatcher(kind, url, self.notices.append, self.said.append, poll_seconds=0.02, dmi=dmi)

    def wait(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, (self.notices, self.said)
            time.sleep(0.01)

    def wait_for_polls(self, server: MetadataServer, polls: int = 3) -> None:
        before = len(server.requests)
        self.wait(lambda: len(server.requests) >= before + 2 * polls)


@pytest.fixture
def watch(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Watch]:
    def start(kind: str, url: str | None = None, dmi: Path = tmp_path / 'none') -> Watch:
        found = Watch(kind, url, dmi)
        request.addfinalizer(found.watcher.close)
        found.watcher.start()
        return found

    return start


def firmware(folder: Path, **facts: str) -> Path:
    folder.mkdir()
    for name, text in facts.items():
        (folder / name).write_text(f'{text}\n')
    return folder


def stamp(seconds: float, offset: float = 0) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=seconds + offset)
    return moment.strftime('%Y-%m-%dT%H:%M:%SZ')


def http_date(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime('%a, %d %b %Y %H:%M:%S GMT')


def eviction(event: str = 'E1', *, machine: str = 'vm-1', at: str = '', kind: str = 'Preempt') -> dict:
    status = 'Scheduled' if at else 'Started'
    return {'EventId': event, 'EventType': kind, 'Resources': [machine], 'EventStatus': status, 'NotBefore': at}


def assert_about(value: float | None, expected: float) -> None:
    """Never later than expected, and at most three seconds earlier (whole seconds in the protocols)."""
    assert value is not None
    assert expected - 3 <= value <= expected


def test_an_interruption_of_aws_is_told_once_with_its_deadline(serve, watch):
    server = serve('aws')
    seen = watch('aws', server.url)
    seen.wait_for_polls(server)
    assert seen.notices == []
    server.action = {'action': 'terminate', 'time': stamp(110)}
    seen.wait(lambda: seen.notices)
    seen.wait_for_polls(server)
    (notice,) = seen.notices
    assert notice.cloud == 'aws'
    assert notice.what == f'AWS will terminate this spot instance at {server.action["time"]}'
    assert_about(notice.seconds_left, 110)
    assert seen.said == ['Spot notices: AWS, polled every 0.02 s.']


@pytest.mark.parametrize('offset', [-3600, 3600])
def test_a_wrong_clock_of_this_machine_does_not_move_the_deadline(serve, watch, offset):
    server = serve('aws')
    server.clock_offset_seconds = offset
    server.action = {'action': 'stop', 'time': stamp(100, offset)}
    seen = watch('aws', server.url)
    seen.wait(lambda: seen.notices)
    assert_about(seen.notices[0].seconds_left, 100)


def test_without_the_clouds_clock_a_deadline_is_at_most_the_documented_notice_away(serve, watch):
    server = serve('aws')
    server.sends_date = False
    server.action = {'action': 'stop', 'time': stamp(5000)}
    seen = watch('aws', server.url)
    seen.wait(lambda: seen.notices)
    assert_about(seen.notices[0].seconds_left, 120)


def test_hibernation_begins_at_once(serve, watch):
    server = serve('aws')
    server.action = {'action': 'hibernate', 'time': stamp(100)}
    seen = watch('aws', server.url)
    seen.wait(lambda: seen.notices)
    assert seen.notices[0].seconds_left == 0


def test_an_interruption_that_aws_did_not_carry_out_is_no_notice(serve, watch):
    server = serve('aws')
    server.action = {'action': 'terminate', 'time': stamp(-600)}
    seen = watch('aws', server.url)
    seen.wait_for_polls(server)
    assert seen.notices == []


def test_a_rebalance_recommendation_of_aws_has_no_deadline(serve, watch):
    server = serve('aws')
    seen = watch('aws', server.url)
    server.rebalance = {'noticeTime': stamp(0)}
    seen.wait(lambda: seen.notices)
    server.action = {'action': 'terminate', 'time': stamp(120)}
    seen.wait(lambda: len(seen.notices) == 2)
    assert seen.notices[0].deadline is None
    assert 'rebalance' in seen.notices[0].what
    assert_about(seen.notices[1].seconds_left, 120)


def test_a_token_is_kept_until_it_expires_and_renewed_when_it_is_refused(serve, watch):
    server = serve('aws')
    seen = watch('aws', server.url)
    seen.wait_for_polls(server, 5)
    assert server.requests.count('PUT /latest/api/token') == 1
    server.tokens.clear()
    seen.wait_for_polls(server, 5)
    assert server.requests.count('PUT /latest/api/token') == 2
    server.action = {'action': 'terminate', 'time': stamp(120)}
    seen.wait(lambda: seen.notices)
    assert len(seen.said) == 1  # nothing failed on the way

    short = serve('aws')
    short.token_seconds = 1  # less than the margin: expires with every question
    again = watch('aws', short.url)
    again.wait_for_polls(short, 3)
    assert short.requests.count('PUT /latest/api/token') > 3


def test_a_preemption_of_gcp_ends_thirty_seconds_after_it_was_last_seen_absent(serve, watch):
    server = serve('gcp')
    seen = watch('gcp', server.url)
    seen.wait_for_polls(server)
    assert seen.notices == []
    server.preempted = 'TRUE'
    seen.wait(lambda: seen.notices)
    seen.wait_for_polls(server)
    (notice,) = seen.notices
    assert notice.what == 'GCP takes this spot machine within 30 s'
    assert_about(notice.seconds_left, 30)


def test_a_preemption_of_gcp_older_than_the_first_question_may_end_now(serve, watch):
    server = serve('gcp')
    server.preempted = 'TRUE'
    seen = watch('gcp', server.url)
    seen.wait(lambda: seen.notices)
    assert seen.notices[0].seconds_left == 0


def test_maintenance_of_gcp_is_a_notice_only_if_it_stops_the_machine(serve, watch):
    server = serve('gcp')
    server.maintenance = 'MIGRATE_ON_HOST_MAINTENANCE'
    seen = watch('gcp', server.url)
    seen.wait_for_polls(server)
    assert seen.notices == []
    server.maintenance = 'TERMINATE_ON_HOST_MAINTENANCE'
    seen.wait(lambda: seen.notices)
    seen.wait_for_polls(server)
    (notice,) = seen.notices
    assert notice.deadline is None


def test_an_eviction_of_azure_has_a_deadline_and_then_has_started(serve, watch):
    server = serve('azure')
    seen = watch('azure', server.url)
    server.events = [eviction(at=http_date(30))]
    seen.wait(lambda: seen.notices)
    seen.wait_for_polls(server)
    assert_about(seen.notices[0].seconds_left, 30)
    server.events = [eviction()]
    seen.wait(lambda: len(seen.notices) == 2)
    assert seen.notices[1].seconds_left == 0
    assert seen.notices[1].what == 'Azure evicts this spot machine now'
    seen.wait_for_polls(server)
    assert len(seen.notices) == 2


def test_events_of_azure_for_other_machines_or_of_other_kinds_are_left_out(serve, watch):
    server = serve('azure')
    server.events = [eviction('E1', machine='vm-2'), eviction('E2', kind='Freeze')]
    seen = watch('azure', server.url)
    seen.wait_for_polls(server)
    assert seen.notices == []
    server.events = [*server.events, eviction('E3')]
    seen.wait(lambda: seen.notices)
    assert [notice.id for notice in seen.notices] == ['E3 ']


def test_the_first_answer_of_azure_may_take_its_time(serve):
    server = serve('azure')
    server.events = [eviction()]
    server.first_answer_seconds = 0.5
    assert len(list(clouds.Azure(server.url, timeout_seconds=0.2).notices())) == 1


def test_a_short_outage_is_said_once_and_survived(serve, watch):
    server = serve('aws')
    seen = watch('aws', server.url)
    seen.wait_for_polls(server)
    server.stop()
    seen.wait(lambda: len(seen.said) == 2)
    time.sleep(0.2)
    server.tokens.clear()
    server.start()
    seen.wait(lambda: len(seen.said) == 3)
    server.action = {'action': 'terminate', 'time': stamp(120)}
    seen.wait(lambda: seen.notices)
    assert f'AWS at {server.url} gives no answer that can be used' in seen.said[1]
    assert 'Connection re' in seen.said[1]  # refused, or reset by the server's end
    seen.wait_for_polls(server)
    assert seen.said[2:] == ['Spot notices: AWS answers again.']


def test_answers_that_are_not_as_documented_end_nothing(serve, watch):
    server = serve('azure')
    seen = watch('azure', server.url)
    server.events = [{'EventId': 'E0'}]
    seen.wait(lambda: len(seen.said) == 2)
    server.status = 500
    seen.wait_for_polls(server)
    server.status = None
    server.events = [eviction()]
    seen.wait(lambda: seen.notices)
    assert len(seen.said) == 3


def test_a_failing_question_does_not_hide_the_answer_to_another(serve, watch):
    server = serve('aws')
    server.action = {'action': 'terminate', 'time': stamp(120)}
    server.rebalance = {'unknown': 1}
    seen = watch('aws', server.url)
    seen.wait(lambda: seen.notices)


def test_closing_ends_the_thread(serve, watch):
    server = serve('gcp')
    seen = watch('gcp', server.url)
    seen.wait_for_polls(server)
    assert any(thread.name == 'notices' for thread in threading.enumerate())
    seen.watcher.close()
    asked = len(server.requests)
    time.sleep(0.1)
    assert len(server.requests) == asked
    assert not any(thread.name == 'notices' for thread in threading.enumerate())


def test_proxies_are_not_used(serve, watch, monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    server = serve('gcp')
    watch('gcp', server.url)


@pytest.mark.parametrize('cloud', ['aws', 'gcp', 'azure'])
def test_the_firmware_tells_the_cloud(tmp_path, cloud):
    assert machine_cloud(firmware(tmp_path / 'dmi', **FIRMWARE[cloud])) == cloud


@pytest.mark.parametrize(
    ('facts', 'cloud'),
    [
        ({'sys_vendor': 'Xen', 'product_name': 'HVM domU', 'bios_version': '4.11.amazon'}, 'aws'),
        ({'sys_vendor': 'Microsoft Corporation', 'product_name': 'Virtual Machine', 'chassis_asset_tag': 'None'}, None),
        ({'sys_vendor': 'Google', 'product_name': 'Eve'}, None),  # a Chromebook
        ({'sys_vendor': 'QEMU', 'product_name': 'Standard PC (Q35 + ICH9, 2009)'}, None),
        ({}, None),
    ],
)
def test_firmware_that_only_looks_alike(tmp_path, facts, cloud):
    assert machine_cloud(firmware(tmp_path / 'dmi', **facts)) == cloud


def test_auto_asks_the_cloud_of_the_firmware_and_no_other(serve, watch, tmp_path, monkeypatch):
    gcp, aws = serve('gcp'), serve('aws')
    monkeypatch.setenv('GCE_METADATA_HOST', gcp.address)
    monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', aws.url + '/')
    seen = watch('auto', dmi=firmware(tmp_path / 'dmi', **FIRMWARE['gcp']))
    seen.wait_for_polls(gcp)
    assert seen.said == ['Spot notices: GCP, polled every 0.02 s.']
    assert aws.requests == []


def test_auto_goes_on_asking_a_cloud_that_does_not_answer_at_first(serve, watch, tmp_path, monkeypatch):
    server = serve('aws')
    server.stop()
    monkeypatch.setattr(clouds, 'LINK_LOCAL', server.url)
    seen = watch('auto', dmi=firmware(tmp_path / 'dmi', **FIRMWARE['aws']))
    assert seen.said[0].startswith('Spot notices: AWS, polled every 0.02 s. It does not answer at present (AWS: http')
    server.action = {'action': 'terminate', 'time': stamp(120)}
    server.start()
    seen.wait(lambda: seen.notices)


def test_auto_sends_nothing_from_a_machine_in_no_cloud(serve, watch, monkeypatch):
    server = serve('aws')
    monkeypatch.setattr(clouds, 'LINK_LOCAL', server.url)
    seen = watch('auto')
    assert seen.said == ['Spot notices: none. This machine is in no cloud that is known.']
    assert server.requests == []
    assert not any(thread.name == 'notices' for thread in threading.enumerate())


@pytest.mark.parametrize('cloud', ['aws', 'gcp', 'azure'])
def test_auto_finds_out_what_answers_at_an_address_that_is_given(serve, tmp_path, cloud):
    found, _ = find_cloud('auto', serve(cloud).url, dmi=tmp_path)
    assert found is not None
    assert found.name == cloud


@pytest.mark.parametrize(
    ('variable', 'cloud'), [('AWS_EC2_METADATA_SERVICE_ENDPOINT', 'aws'), ('GCE_METADATA_HOST', 'gcp')]
)
def test_auto_follows_the_ecosystems_variables(serve, tmp_path, monkeypatch, variable, cloud):
    server = serve(cloud)
    monkeypatch.setenv(variable, server.url if cloud == 'aws' else server.address)
    found, _ = find_cloud('auto', dmi=tmp_path)
    assert found is not None
    assert found.name == cloud
    server.stop()
    nothing, why = find_cloud('auto', dmi=tmp_path)
    assert nothing is None
    assert server.url in why


def test_aws_is_not_asked_where_the_ecosystem_forbids_it(serve, tmp_path, monkeypatch):
    server = serve('aws')
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'True')
    found, why = find_cloud('auto', dmi=firmware(tmp_path / 'dmi', **FIRMWARE['aws']))
    assert (found, why) == (None, '`AWS_EC2_METADATA_DISABLED` is true.')
    with pytest.raises(UserError, match=r'`AWS_EC2_METADATA_DISABLED` is true. Unset it, or write `notice: none`'):
        find_cloud('aws', server.url)
    assert server.requests == []


@pytest.mark.parametrize('cloud', ['aws', 'gcp', 'azure'])
def test_a_named_cloud_must_answer(cloud, watch):
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        watch(cloud)
    assert time.monotonic() - started < 5
    assert f'`preemption.notice` is {cloud}, but http://127.0.0.1:9 gave no answer' in str(error.value)
    assert 'write `notice: auto` or `notice: none`' in str(error.value)


@pytest.mark.parametrize(('cloud', 'other'), [('aws', 'gcp'), ('gcp', 'azure'), ('azure', 'aws'), ('gcp', 'aws')])
def test_another_cloud_at_the_address_is_not_taken_for_the_named_one(serve, cloud, other):
    with pytest.raises(UserError, match='HTTP status'):
        find_cloud(cloud, serve(other).url)


def test_a_server_that_answers_everything_is_not_taken_for_gcp(serve):
    server = serve('gcp')
    server.flavor = ''
    with pytest.raises(UserError, match="not GCP's metadata server"):
        find_cloud('gcp', server.url)


def test_a_service_that_accepts_and_never_answers_is_given_up_in_time(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        started = time.monotonic()
        with pytest.raises(UserError, match='timed out'):
            find_cloud('aws', f'http://127.0.0.1:{silent.getsockname()[1]}')
        assert time.monotonic() - started < 4


def test_none_asks_nobody(serve, watch, monkeypatch):
    server = serve('aws')
    monkeypatch.setenv('AWS_EC2_METADATA_SERVICE_ENDPOINT', server.url)
    seen = watch('none')
    assert seen.said == ['Spot notices: none. The run file says so.']
    assert server.requests == []
