"""Metadata services on this machine, for tests: the protocols of AWS, GCP and Azure over real HTTP."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit


class MetadataServer:
    """One cloud's metadata service; its attributes are what it answers, and may change at any time.

    Args:
        cloud (str): ``aws``, ``gcp`` or ``azure``.
    """

    def __init__(self, cloud: str) -> None:
        self.cloud = cloud
        self.requests: list[str] = []
        self.clock_offset_seconds = 0.0
        self.sends_date = True
        self.status: int | None = None
        self.action: dict | None = None
        self.rebalance: dict | None = None
        self.token_seconds = 21600
        self.tokens: set[str] = set()
        self.flavor = 'Google'
        self.preempted = 'FALSE'
        self.maintenance = 'NONE'
        self.name = 'vm-1'
        self.events: list[dict] = []
        self.first_answer_seconds = 0.0
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def address(self) -> str:
        return f'127.0.0.1:{self._port}'

    @property
    def url(self) -> str:
        return f'http://{self.address}'

    def start(self) -> 'MetadataServer':
        handler = type('Handler', (_Handler,), {'service': self})
        self._server = ThreadingHTTPServer(('127.0.0.1', self._port), handler)
        self._port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Handler(BaseHTTPRequestHandler):
    service: MetadataServer

    def do_PUT(self) -> None:
        self._route('PUT')

    def do_GET(self) -> None:
        self._route('GET')

    def _route(self, method: str) -> None:
        self.service.requests.append(f'{method} {self.path}')
        if self.service.status is not None:
            return self._reply(self.service.status, 'out of order')
        getattr(self, f'_{self.service.cloud}')(method, urlsplit(self.path))
        return None

    def _aws(self, method: str, url) -> None:
        service = self.service
        if method == 'PUT':
            wanted = self.headers.get('X-aws-ec2-metadata-token-ttl-seconds', '')
            if url.path != '/latest/api/token' or not (wanted.isdigit() and 1 <= int(wanted) <= 21600):
                return self._reply(400, '')
            token = f'token-{len(service.requests)}'
            service.tokens.add(token)
            return self._reply(200, token, {'X-aws-ec2-metadata-token-ttl-seconds': str(service.token_seconds)})
        if self.headers.get('X-aws-ec2-metadata-token') not in service.tokens:
            return self._reply(401, '')
        found = {
            '/latest/meta-data/spot/instance-action': service.action,
            '/latest/meta-data/events/recommendations/rebalance': service.rebalance,
        }.get(url.path)
        return self._reply(404, '') if found is None else self._reply(200, json.dumps(found))

    def _gcp(self, method: str, url) -> None:
        if self.headers.get('Metadata-Flavor') != 'Google':
            return self._reply(403, 'Missing Metadata-Flavor:Google header.')
        found = {
            '/computeMetadata/v1/instance/preempted': self.service.preempted,
            '/computeMetadata/v1/instance/maintenance-event': self.service.maintenance,
        }.get(url.path)
        return self._reply(404 if found is None else 200, found or '', {'Metadata-Flavor': self.service.flavor})

    def _azure(self, method: str, url) -> None:
        query = parse_qs(url.query)
        if self.headers.get('Metadata') != 'true' or 'api-version' not in query:
            return self._reply(400, 'Bad request')
        if url.path == '/metadata/instance/compute/name' and query.get('format') == ['text']:
            return self._reply(200, self.service.name) if self.service.name else self._reply(404, '')
        if url.path == '/metadata/scheduledevents' and query['api-version'] == ['2020-07-01']:
            time.sleep(self.service.first_answer_seconds)
            self.service.first_answer_seconds = 0.0
            return self._reply(200, json.dumps({'DocumentIncarnation': 1, 'Events': self.service.events}))
        return self._reply(404, '')

    def _reply(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response_only(status)
        if self.service.sends_date:
            self.send_header('Date', self.date_time_string(time.time() + self.service.clock_offset_seconds))
        for name, value in {'Content-Length': str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return
