"""What waits for its upload: order, what is dropped, pauses that grow, and what is told of failures."""

import threading

import pytest

from rewarm.buckets.errors import BucketError
from rewarm.resume import uploads as uploads_module
from rewarm.resume.checkpoint import checkpoint_name as name
from rewarm.resume.uploads import Job, Uploads
from tests.buckets.servers import wait_for


class Link:
    """Uploads that a test lets through one by one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.done: list[str] = []
        self.records = 0
        self.events: list[dict] = []
        self.said: list[str] = []
        self.error: Exception | None = None
        self.begun = False
        self.open = threading.Semaphore(0)
        self.uploads = Uploads(
            self.upload,
            self.upload_records,
            url='s3://data/run',
            record=lambda event, **fields: self.events.append({'event': event, **fields}),
            say=self.said.append,
        )

    def upload(self, job: Job) -> None:
        self.asked.append(job.name)
        assert self.open.acquire(timeout=30)
        job.begun = job.begun or self.begun
        if self.error is not None:
            raise self.error
        self.done.append(job.name)
        self.uploads.arrived(job.name)

    def upload_records(self) -> None:
        self.records += 1

    def add(self, batch: int, stage_ends=()) -> None:
        self.uploads.add(Job(name(batch), 3, set(stage_ends)))

    def let(self, count: int) -> None:
        self.open.release(count)


@pytest.fixture
def link(monkeypatch):
    monkeypatch.setattr(uploads_module, 'FIRST_WAIT_SECONDS', 0.01)
    monkeypatch.setattr(uploads_module, 'LONGEST_WAIT_SECONDS', 0.04)
    link = Link()
    link.uploads.start(None)
    yield link
    link.let(1000)
    link.uploads.close(lambda: None)


def at_work(link, batch):
    wait_for(lambda: link.asked[-1:] == [name(batch)], 10)


def test_of_those_that_wait_only_stage_ends_and_the_newest_go(link):
    link.add(1)
    at_work(link, 1)
    for batch in (2, 3, 4, 5):
        link.add(batch, stage_ends={3})
    assert link.uploads.names() == {name(1), name(3), name(5)}
    link.let(3)
    assert link.uploads.flush(10)
    assert link.done == [name(1), name(3), name(5)]
    assert link.records == 1
    assert link.uploads.names() == set()


@pytest.mark.parametrize(('begun', 'first_done'), [(False, 2), (True, 1)])
def test_one_that_fails_gives_way_to_a_newer_one_unless_part_of_it_is_there(link, begun, first_done):
    link.error, link.begun = BucketError('no'), begun
    link.add(1)
    at_work(link, 1)
    link.add(2)
    link.let(1)
    wait_for(lambda: len(link.asked) == 2, 10)
    link.error = None
    link.let(2)
    assert link.uploads.flush(10)
    assert link.done[0] == name(first_done)
    assert link.done[-1] == name(2)


def test_it_tries_for_ever_and_tells_of_the_1st_2nd_4th_and_8th_failure_and_of_other_reasons(link):
    link.error = BucketError('no answer')
    link.add(1)
    link.let(10)
    wait_for(lambda: len(link.asked) == 11, 10)
    assert [event['attempt'] for event in link.events] == [1, 2, 4, 8]
    assert all(0 < event['retry_in_seconds'] <= 0.04 for event in link.events if event['attempt'] > 2)
    link.error = BucketError('keys')
    link.let(1)
    wait_for(lambda: len(link.asked) == 12, 10)
    assert link.events[-1] == {'event': 'upload_failed', 'reason': 'keys', 'attempt': 11} | {
        'retry_in_seconds': link.events[-1]['retry_in_seconds']
    }
    assert len(link.said) == 1
    link.error = None
    link.let(1)
    assert link.uploads.flush(10)
    assert link.said[-1] == 's3://data/run answers again.'


def test_local_files_that_cannot_be_read_end_that_upload_and_no_other(link):
    link.error = OSError('gone')
    link.add(1)
    link.let(1)
    wait_for(lambda: link.events, 10)
    link.error = None
    link.add(2)
    link.let(1)
    assert link.uploads.flush(10)
    assert link.done == [name(2)]
    assert link.events[0]['reason'] == 'gone'


def test_anything_else_is_kept_for_the_training_loop_and_ends_the_uploads(link):
    link.error = RuntimeError('a bug')
    link.add(1)
    link.let(1)
    assert not link.uploads.flush(10)
    assert link.uploads.failure is link.error
    link.add(2)
    assert link.uploads.names() == set()


def test_the_lag_is_told_once_and_so_is_its_end(link):
    for batch in (10, 20, 30, 40, 50):
        link.add(batch)
    newest, batches, seconds = link.uploads.lag()
    assert (newest, batches) == (None, 50)
    assert seconds >= 0
    assert len(link.said) == 1
    assert 's3://data/run is 30 batches behind' in link.said[0]
    link.let(2)
    assert link.uploads.flush(10)
    assert link.uploads.lag() == (name(50), 0, 0.0)
    assert link.said[1:] == [f's3://data/run has caught up: its newest checkpoint is {name(50)}.']


def test_a_flush_does_not_wait_for_a_long_pause(link, monkeypatch):
    monkeypatch.setattr(uploads_module, 'FIRST_WAIT_SECONDS', 60.0)
    monkeypatch.setattr(uploads_module, 'LONGEST_WAIT_SECONDS', 60.0)
    link.error = BucketError('no')
    link.add(1)
    link.let(1)
    wait_for(lambda: link.events, 10)
    link.error = None
    link.let(1)
    assert link.uploads.flush(10)
