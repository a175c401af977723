"""Looking for the cloud's notice that this machine goes away, from a thread of one process per machine."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rewarm.config.errors import UserError
from rewarm.config.secrets import without_secrets
from rewarm.resume.clouds import CLOUDS, Cloud, Notice
from rewarm.terminal import printable

__all__ = ['Notice', 'NoticeWatcher', 'find_cloud', 'machine_cloud']

DMI = Path('/sys/class/dmi/id')
"""Where Linux tells, without any traffic, who made this machine."""

AZURE_ASSET_TAG = '7783-7084-3265-9085-8269-3286-77'
"""On every machine of Azure, and on no other of Hyper-V."""

LONGEST_REASON = 300
"""Characters of an error's words: they may repeat what the service said."""


class NoticeWatcher:
    """A thread that asks the cloud this machine is in, until it is closed or the process ends.

    Args:
        kind (str): ``auto``, ``aws``, ``gcp``, ``azure`` or ``none``.
        url (str | None): The metadata service. Default: the ecosystem's variable, else the cloud's own address.
        on_notice (Callable[[Notice], object]): Called by the thread, once for each notice.
        say (Callable[[str], object]): Prints a line.
        poll_seconds (float | None): Between two questions. Default: what the cloud recommends.
        dmi (Path): Where the machine's maker is told.
    """

    def __init__(
        self,
        kind: str,
        url: str | None,
        on_notice: Callable[[Notice], object],
        say: Callable[[str], object],
        *,
        poll_seconds: float | None = None,
        dmi: Path = DMI,
    ) -> None:
        self.kind = kind
        self.url = url
        self.on_notice = on_notice
        self.say = say
        self.poll_seconds = poll_seconds
        self.dmi = dmi
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._known: set[str] = set()
        self._failing = False

    def start(self) -> None:
        """Finds the cloud, says which, and begins to poll it.

        Raises:
            UserError: If the run file names a cloud that does not answer.
        """
        cloud, found = find_cloud(self.kind, self.url, dmi=self.dmi)
        if cloud is None:
            self.say(f'Spot notices: none. {found}')
            return
        seconds = self.poll_seconds or cloud.poll_seconds
        self.say(f'Spot notices: {cloud.title}, polled every {seconds:g} s. {found}'.strip())
        self._thread = threading.Thread(target=self._watch, args=(cloud, seconds), name='notices', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; an answer that is still awaited is not waited for."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=0.5)

    def _watch(self, cloud: Cloud, seconds: float) -> None:
        while not self._closed.is_set():
            started = time.monotonic()
            try:
                self._poll(cloud)
            except Exception as error:  # whatever a strange answer does: training goes on, and it is said
                if not self._failing:
                    self.say(
                        f'Spot notices: {cloud.title} at {without_secrets(cloud.url)} gives no answer that can be used '
                        f'({_in_words(error)}). Asking on; until then no notice is seen.'
                    )
                self._failing = True
            self._closed.wait(max(0.0, started + seconds - time.monotonic()))

    def _poll(self, cloud: Cloud) -> None:
        for notice in cloud.notices():
            if notice.id not in self._known and not self._closed.is_set():
                self.on_notice(notice)
                self._known.add(notice.id)
        if self._failing:
            self._failing = False
            self.say(f'Spot notices: {cloud.title} answers again.')


def find_cloud(kind: str, url: str | None = None, *, dmi: Path = DMI) -> tuple[Cloud | None, str]:
    """Finds whom to ask. Nothing is sent from a machine that is in no cloud and has no address given.

    Args:
        kind (str): ``auto``, ``aws``, ``gcp``, ``azure`` or ``none``.
        url (str | None): The metadata service, if it is not where the ecosystem expects it.
        dmi (Path): Where the machine's maker is told.

    Returns:
        tuple[Cloud | None, str]: The cloud, or None; and why, in words that may be empty.

    Raises:
        UserError: If a cloud that is named does not answer.
    """
    if kind == 'none':
        return None, 'The run file says so.'
    disabled = os.environ.get('AWS_EC2_METADATA_DISABLED', '').lower() == 'true'
    if kind != 'auto':
        return _named(kind, url, disabled), ''
    here = machine_cloud(dmi)
    if url is not None:
        kinds = sorted(CLOUDS, key=lambda name: name != here)
    elif here is not None:
        kinds = [here]
    else:
        kinds = [name for name, cloud in CLOUDS.items() if cloud.configured_url() is not None]
    if disabled and 'aws' in kinds:
        kinds.remove('aws')
        if not kinds:
            return None, '`AWS_EC2_METADATA_DISABLED` is true.'
    problems: list[str] = []
    for cloud, problem in _check_all([CLOUDS[name](url) for name in kinds]):
        if problem is None:
            return cloud, ''
        problems.append(f'{cloud.title}: {problem}')
    if here is not None and here in kinds and url is None:
        return CLOUDS[here](), f'It does not answer at present ({problems[0]}).'
    if problems:
        return None, f'{"; ".join(problems)}.'
    return None, 'This machine is in no cloud that is known.'


def machine_cloud(dmi: Path = DMI) -> str | None:
    """The cloud whose machine this is, by what the firmware says.

    Args:
        dmi (Path): A folder with a file for each of the firmware's strings.

    Returns:
        str | None: ``aws``, ``gcp``, ``azure`` or None.
    """
    facts = {name: _read(dmi / name) for name in ('sys_vendor', 'product_name', 'bios_version', 'chassis_asset_tag')}
    if facts['chassis_asset_tag'] == AZURE_ASSET_TAG:
        return 'azure'
    if facts['product_name'] == 'Google Compute Engine':
        return 'gcp'
    # Instances on Xen name Amazon only in the version of their BIOS.
    if facts['sys_vendor'] == 'Amazon EC2' or 'amazon' in facts['bios_version'].lower():
        return 'aws'
    return None


def _named(kind: str, url: str | None, disabled: bool) -> Cloud:
    if kind == 'aws' and disabled:
        raise UserError(
            '`preemption.notice` is aws, but `AWS_EC2_METADATA_DISABLED` is true. Unset it, or write `notice: none`'
        )
    cloud = CLOUDS[kind](url)
    if (problem := _check(cloud)) is not None:
        raise UserError(
            f'`preemption.notice` is {kind}, but {problem}. On a machine outside {cloud.title} write `notice: auto` or '
            f'`notice: none`; where its metadata service has another address write `notice_url`. {cloud.hint}'.strip()
        )
    return cloud


def _check(cloud: Cloud) -> str | None:
    try:
        cloud.check()
    except (OSError, ValueError) as error:
        return f'{without_secrets(cloud.url)} gave no answer that can be used ({_in_words(error)})'
    return None


def _check_all(clouds: list[Cloud]) -> list[tuple[Cloud, str | None]]:
    """Asks all at once: the start waits for one deadline, not for one after the other."""
    if not clouds:
        return []
    with ThreadPoolExecutor(len(clouds)) as pool:
        return list(zip(clouds, pool.map(_check, clouds)))


def _in_words(error: Exception) -> str:
    return printable(without_secrets(str(error)) or type(error).__name__)[:LONGEST_REASON]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors='replace').strip()
    except OSError:
        return ''
