"""A real browser for the tests of the page: headless Chromium, driven through a pipe by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

__all__ = ['CHROMIUM', 'Browser', 'needs_chromium']

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason='no chromium on this machine (Debian: apt-get install chromium)'
)

FLAGS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-sync',
    '--disable-component-update', '--remote-debugging-pipe', '--disable-dev-shm-usage', '--hide-scrollbars',
)  # fmt: skip
SECONDS = 60


class Browser:
    """One window. What pages write to the console and ask of a network is kept in ``console`` and ``requests``.

    Args:
        profile (Path): A folder for the browser's own files.
    """

    def __init__(self, profile: Path) -> None:
        there, self._to = os.pipe()
        self._from, back = os.pipe()
        # The browser reads its descriptor 3 and writes its descriptor 4, which either end may have by chance.
        script = f'exec 8<&{there} 9>&{back}; exec "$@" 3<&8 4>&9'
        command = ['bash', '-c', script, 'bash', str(CHROMIUM), *FLAGS, f'--user-data-dir={profile}', 'about:blank']
        self._process = subprocess.Popen(
            command, pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(there)
        os.close(back)
        self._count = 0
        self._unread = b''
        self._session: str | None = None
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def open(self, page: Path, *, width: int = 1280, scheme: str = 'light', scripts: bool = True) -> None:
        """Loads a page in a window of that many CSS pixels, and waits until its charts are drawn."""
        self.console.clear()
        self.requests.clear()
        phone = width < 600
        self.call(
            'Emulation.setDeviceMetricsOverride', width=width, height=844 if phone else 900, deviceScaleFactor=1,
            mobile=phone,
        )  # fmt: skip
        self.call('Emulation.setTouchEmulationEnabled', enabled=phone)
        self.call('Emulation.setScriptExecutionDisabled', value=not scripts)
        features = [{'name': 'prefers-color-scheme', 'value': scheme}]
        if phone:
            features += [{'name': 'hover', 'value': 'none'}, {'name': 'pointer', 'value': 'coarse'}]
        self.call('Emulation.setEmulatedMedia', features=features)
        self.call('Page.navigate', url=page.as_uri())
        ready = 'document.documentElement?.dataset.drawn' if scripts else 'document.readyState === "complete"'
        self.wait(f'location.href === {json.dumps(page.as_uri())} && {ready}')

    def resize(self, width: int) -> None:
        """Makes the window so many CSS pixels wide."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=False)

    def wait(self, expression: str) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(expression):
            assert time.monotonic() < end, f'never true: {expression}; console: {self.console}'
            time.sleep(0.03)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def press(self, key: str) -> None:
        """Presses a key, such as ``Tab`` or ``Enter``."""
        code = {'Tab': 9, 'Enter': 13, ' ': 32}[key]
        more: dict[str, Any] = {'text': '\r'} if key == 'Enter' else {}
        self.call('Input.dispatchKeyEvent', type='keyDown', key=key, windowsVirtualKeyCode=code, **more)
        self.call('Input.dispatchKeyEvent', type='keyUp', key=key, windowsVirtualKeyCode=code)

    def print(self, out: Path) -> Path:
        """Prints the page on A4 as the browser's own dialogue would."""
        answer = self.call('Page.printToPDF', paperWidth=8.27, paperHeight=11.69, printBackground=True)
        out.write_bytes(base64.b64decode(answer['data']))
        return out

    def photograph(self, out: Path, *, below: int = 0, height: int | None = None) -> Path:
        """Writes a PNG of the page, from so many pixels below its top."""
        size = self.call('Page.getLayoutMetrics')['cssContentSize']
        clip = {'x': 0, 'y': below, 'width': size['width'], 'height': height or size['height'] - below, 'scale': 1}
        answer = self.call('Page.captureScreenshot', format='png', clip=clip, captureBeyondViewport=True)
        out.write_bytes(base64.b64decode(answer['data']))
        return out

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol and gives its result."""
        self._count += 1
        message: dict[str, Any] = {'id': self._count, 'method': method, 'params': parameters}
        if self._session is not None:
            message['sessionId'] = self._session
        os.write(self._to, json.dumps(message).encode() + b'\0')
        end = time.monotonic() + SECONDS
        while True:
            answer = self._next(end)
            if answer.get('id') == self._count:
                assert 'error' not in answer, (method, answer['error'])
                return answer['result']
            self._note(answer)

    def _next(self, end: float) -> dict[str, Any]:
        while b'\0' not in self._unread:
            assert select.select([self._from], [], [], max(0.0, end - time.monotonic()))[0], (
                'the browser does not answer'
            )
            read = os.read(self._from, 1 << 20)
            assert read, 'the browser has ended'
            self._unread += read
        text, self._unread = self._unread.split(b'\0', 1)
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        said = event.get('params', {})
        match event.get('method'):
            case 'Runtime.consoleAPICalled':
                self.console.append(' '.join(str(each.get('value', each.get('description'))) for each in said['args']))
            case 'Runtime.exceptionThrown':
                self.console.append(str(said['exceptionDetails']))
            case 'Log.entryAdded':
                self.console.append(said['entry']['text'])
            case 'Network.requestWillBeSent':
                self.requests.append(said['request']['url'])
            case _:
                pass
