"""How AWS, GCP and Azure tell a machine that it goes away: their metadata services, asked over HTTP.

A deadline is a time of the cloud's clock. It is counted from the ``Date`` of the very answer that holds it, so a machine
whose own clock is wrong is not wrong about the seconds left; without that header the machine's clock is taken, and then
no more than the notice that the cloud documents. Every rounding makes a deadline earlier, never later.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, ClassVar

from pydantic import Field

from rewarm.formats.strict_json import Record, parse_record
from rewarm.resume.metadata_http import Answer, ask

__all__ = ['CLOUDS', 'Aws', 'Azure', 'Cloud', 'Gcp', 'Notice']

LINK_LOCAL = 'http://169.254.169.254'
"""The metadata service of all three, GCP's ``metadata.google.internal`` too; by number no name needs looking up."""

TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Notice:
    """What a cloud said about this machine.

    Args:
        cloud (str): ``aws``, ``gcp`` or ``azure``.
        what (str): For people.
        deadline (float | None): When the machine goes, on the clock of ``time.monotonic``; None if it only may go.
        id (str): The same for the same notice, however often it is read.
    """

    cloud: str
    what: str
    deadline: float | None
    id: str

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline, at least 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


class Interruption(Record):
    """What AWS says of a spot instance that it takes."""

    action: Annotated[str, Field(pattern='^[a-z-]{1,40}$')]
    time: Annotated[str, Field(pattern='^[0-9TZ:.+-]{0,40}$')] = ''


class Rebalance(Record):
    """What AWS says of a spot instance that it may take."""

    noticeTime: Annotated[str, Field(pattern='^[0-9TZ:.+-]{1,40}$')]


class ScheduledEvent(Record):
    """What Azure says of machines of a set."""

    EventId: Annotated[str, Field(pattern='^[!-~]{1,100}$')]
    EventType: str
    Resources: list[str]
    NotBefore: Annotated[str, Field(pattern='^[A-Za-z0-9,:+ -]{0,40}$')] | None = None


class ScheduledEvents(Record):
    """All that Azure says."""

    Events: list[ScheduledEvent]


class Cloud:
    """A metadata service and its questions.

    Args:
        url (str | None): Where it is. Default: the ecosystem's variable, else the cloud's own address.
        timeout_seconds (float): For one answer.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    poll_seconds: ClassVar[float]
    hint: ClassVar[str] = ''
    """What else to try when it does not answer."""

    def __init__(self, url: str | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.url = (url or self.configured_url() or LINK_LOCAL).rstrip('/')
        self.timeout_seconds = timeout_seconds

    @classmethod
    def configured_url(cls) -> str | None:
        """The address that the ecosystem's own variable names."""
        return None

    def check(self) -> None:
        """Asks whether this cloud is there.

        Raises:
            OSError: If it is not, or something else answers.
        """
        raise NotImplementedError

    def notices(self) -> Iterator[Notice]:
        """Asks for what stands at present; a question that fails does not hide what was answered before.

        Raises:
            OSError: If it does not answer, or not as documented.
            ValueError: If it answers in a form that is not documented.
        """
        raise NotImplementedError

    def _ask(
        self, path: str, headers: dict[str, str], *, method: str = 'GET', silence_seconds: float | None = None
    ) -> Answer:
        return ask(
            self.url + path,
            headers,
            method=method,
            timeout_seconds=self.timeout_seconds,
            silence_seconds=silence_seconds,
        )

    def _expect(self, answer: Answer, *statuses: int) -> Answer:
        if answer.status not in statuses:
            raise OSError(f'it answered with HTTP status {answer.status}')
        return answer


class Aws(Cloud):
    """EC2's instance metadata, version 2: every question carries a token that was asked for before.

    Source: docs.aws.amazon.com, EC2 User Guide, "Spot Instance interruption notices" (poll every 5 s; 404 until there
    is a notice; two minutes, none for hibernation) and "EC2 instance rebalance recommendations".
    """

    name = 'aws'
    title = 'AWS'
    poll_seconds = 5.0
    hint = 'In a container, allow a second hop: `aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2`.'
    NOTICE_SECONDS = 120
    TOKEN_SECONDS = 21600

    def __init__(self, url: str | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        super().__init__(url, timeout_seconds=timeout_seconds)
        self._token: str | None = None
        self._token_until = 0.0

    @classmethod
    def configured_url(cls) -> str | None:
        """``AWS_EC2_METADATA_SERVICE_ENDPOINT``."""
        return os.environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT')

    def check(self) -> None:
        """Asks for a token."""
        self._renew_token()

    def notices(self) -> Iterator[Notice]:
        """The end of this spot instance, and the recommendation to leave it that may come before."""
        if (answer := self._read('/latest/meta-data/spot/instance-action')) is not None:
            yield from self._interruption(answer)
        if (answer := self._read('/latest/meta-data/events/recommendations/rebalance')) is not None:
            since = parse_record(Rebalance, answer.body, f'what {self.url} says of a rebalance').noticeTime
            what = 'AWS says that this instance is at an elevated risk of being taken (rebalance recommendation)'
            yield Notice(self.name, what, None, f'rebalance {since}')

    def _interruption(self, answer: Answer) -> Iterator[Notice]:
        told = parse_record(Interruption, answer.body, f'what {self.url} says of an interruption')
        action, at = told.action, told.time
        what = f'AWS will {action} this spot instance{f" at {at}" if at else ""}'
        if action == 'hibernate':
            deadline = answer.asked_at  # begins at once
        else:
            deadline = answer.deadline(datetime.fromisoformat(at), self.NOTICE_SECONDS)
        # An interruption that AWS failed to carry out stays there, and must not stop every start of a run.
        if deadline >= answer.asked_at - self.NOTICE_SECONDS:
            yield Notice(self.name, what, deadline, f'{action} {at}')

    def _read(self, path: str) -> Answer | None:
        if self._token is None or time.monotonic() >= self._token_until:
            self._renew_token()
        answer = self._ask(path, {'X-aws-ec2-metadata-token': self._token or ''})
        if answer.status == 401:
            self._renew_token()
            answer = self._ask(path, {'X-aws-ec2-metadata-token': self._token or ''})
        return None if self._expect(answer, 200, 404).status == 404 else answer

    def _renew_token(self) -> None:
        seconds = str(self.TOKEN_SECONDS)
        answer = self._ask('/latest/api/token', {'X-aws-ec2-metadata-token-ttl-seconds': seconds}, method='PUT')
        self._token = self._expect(answer, 200).text
        granted = int(answer.headers.get('X-aws-ec2-metadata-token-ttl-seconds', seconds))
        self._token_until = answer.asked_at + min(granted, self.TOKEN_SECONDS) - 2 * self.timeout_seconds


class Gcp(Cloud):
    """Compute Engine's metadata server.

    Live migration (``MIGRATE_ON_HOST_MAINTENANCE``) keeps the machine's memory and is no notice.

    Source: cloud.google.com, Compute Engine, "Create and use preemptible VMs" (``preempted`` becomes TRUE; 30 s) and
    "Monitor and plan for a host maintenance event" (60 s ahead, with a GPU up to an hour: no deadline is told).
    """

    name = 'gcp'
    title = 'GCP'
    poll_seconds = 2.0
    NOTICE_SECONDS = 30

    def __init__(self, url: str | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        super().__init__(url, timeout_seconds=timeout_seconds)
        self._not_before: float | None = None

    @classmethod
    def configured_url(cls) -> str | None:
        """``GCE_METADATA_HOST``, a host with or without a port."""
        host = os.environ.get('GCE_METADATA_HOST')
        return f'http://{host}' if host else None

    def check(self) -> None:
        """Asks whether this machine was preempted."""
        self._read('preempted')

    def notices(self) -> Iterator[Notice]:
        """That this machine is taken, or stopped for its host's maintenance."""
        answer = self._read('preempted')
        if answer.text.strip() == 'TRUE':
            # It became true at some time since it was last seen false; when it never was, the 30 s may be over.
            begun = answer.asked_at - self.NOTICE_SECONDS if self._not_before is None else self._not_before
            what = f'GCP takes this spot machine within {self.NOTICE_SECONDS} s'
            yield Notice(self.name, what, begun + self.NOTICE_SECONDS, 'preempted')
        else:
            self._not_before = answer.asked_at
        if self._read('maintenance-event').text.strip() == 'TERMINATE_ON_HOST_MAINTENANCE':
            what = "GCP is about to stop this machine for its host's maintenance"
            yield Notice(self.name, what, None, 'maintenance')

    def _read(self, key: str) -> Answer:
        answer = self._ask(f'/computeMetadata/v1/instance/{key}', {'Metadata-Flavor': 'Google'})
        if self._expect(answer, 200).headers.get('Metadata-Flavor') != 'Google':
            raise OSError("what answers there is not GCP's metadata server")
        return answer


class Azure(Cloud):
    """Azure's Scheduled Events.

    Events of the whole availability set or scale set arrive at each of its machines; those of others are left out.

    Source: learn.microsoft.com, "Azure Metadata Service: Scheduled Events for Linux VMs" (Preempt at least 30 s ahead;
    ``NotBefore`` is blank once it has started; the first answer may take two minutes).
    """

    name = 'azure'
    title = 'Azure'
    poll_seconds = 2.0
    NOTICE_SECONDS = 30
    FIRST_ANSWER_SECONDS = 130

    def __init__(self, url: str | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        super().__init__(url, timeout_seconds=timeout_seconds)
        self._machine: str | None = None
        self._awake = False

    def check(self) -> None:
        """Asks for this machine's name, which is answered at once."""
        answer = self._ask('/metadata/instance/compute/name?api-version=2021-02-01&format=text', {'Metadata': 'true'})
        self._machine = self._expect(answer, 200).text.strip()

    def notices(self) -> Iterator[Notice]:
        """The evictions of this spot machine."""
        if self._machine is None:
            self.check()
        answer = self._ask(
            '/metadata/scheduledevents?api-version=2020-07-01',
            {'Metadata': 'true'},
            silence_seconds=None if self._awake else self.FIRST_ANSWER_SECONDS,
        )
        events = parse_record(ScheduledEvents, self._expect(answer, 200).body, f'what {self.url} says of events').Events
        self._awake = True
        yield from (self._notice(event, answer) for event in events if self._is_ours(event))

    def _is_ours(self, event: ScheduledEvent) -> bool:
        return event.EventType == 'Preempt' and (not self._machine or self._machine in event.Resources)

    def _notice(self, event: ScheduledEvent, answer: Answer) -> Notice:
        at = event.NotBefore or ''
        if at:
            deadline = answer.deadline(parsedate_to_datetime(at), self.NOTICE_SECONDS)
        else:
            deadline = answer.asked_at  # it has started
        what = f'Azure evicts this spot machine {f"after {at}" if at else "now"}'
        return Notice(self.name, what, deadline, f'{event.EventId} {at}')


CLOUDS: dict[str, type[Cloud]] = {cloud.name: cloud for cloud in (Aws, Gcp, Azure)}
