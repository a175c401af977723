"""Servers that are not kind: one holds objects under any key, one takes all objects of a real server but some."""

import hashlib
import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.buckets.servers import ACCESS_KEY, SECRET_KEY, S3Server


class _Served:
    """An HTTP server on a thread, and the environment that points at it."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        return {
            'S3_ENDPOINT_URL': f'http://127.0.0.1:{self.http.server_port}',
            'AWS_ACCESS_KEY_ID': ACCESS_KEY,
            'AWS_SECRET_ACCESS_KEY': SECRET_KEY,
            'AWS_DEFAULT_REGION': 'us-east-1',
        }

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def answer(self, code: int, body: bytes = b'', headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {'Content-Length': str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))


class AnyKey(_Served):
    """Lists and serves whatever is in ``objects``, by ``bucket/key``; no file system stands behind it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.longer = 0
        """Bytes that it sends beyond those that were asked for."""
        self.garble: Callable[[int, bytes, dict[str, str]], tuple[int, bytes, dict[str, str]]] = lambda *answer: answer
        """Changes status, body and headers of each answer."""
        server = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                key, query = unquote(parts.path).removeprefix('/'), parse_qs(parts.query)
                if 'list-type' in query:
                    answer = 200, server.listing(key.rstrip('/'), query.get('prefix', [''])[0]), {}
                elif key in server.objects:
                    answer = self.give(server.objects[key])
                else:
                    answer = 404, b'<Error><Code>NoSuchKey</Code></Error>' if self.command == 'GET' else b'', {}
                self.answer(*server.garble(*answer))

            do_HEAD = do_GET

            def give(self, data: bytes) -> tuple[int, bytes, dict[str, str]]:
                headers = {
                    'ETag': f'"{hashlib.md5(data).hexdigest()}"',
                    'Last-Modified': 'Thu, 01 Jan 2026 00:00:00 GMT',
                }
                wanted = self.headers.get('Range')
                if wanted is None:
                    return 200, data, headers
                begin, end = map(int, wanted.removeprefix('bytes=').split('-'))
                piece = data[begin : end + 1] + b'!' * server.longer
                return 206, piece, {**headers, 'Content-Range': f'bytes {begin}-{end}/{len(data)}'}

        super().__init__(Handler)

    def listing(self, bucket: str, prefix: str) -> bytes:
        found = {
            key.removeprefix(f'{bucket}/'): data for key, data in self.objects.items() if key.startswith(f'{bucket}/')
        }
        items = ''.join(
            f'<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>"{hashlib.md5(data).hexdigest()}"</ETag>'
            '</Contents>'
            for key, data in sorted(found.items())
            if key.startswith(prefix)
        )
        return f'<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>'.encode()


class Refusing(_Served):
    """A real server, but that each PUT of the keys chosen is answered with an error.

    Args:
        server (S3Server): The real one.
    """

    def __init__(self, server: S3Server) -> None:
        self.refuses: Callable[[str], bool] = lambda key: False
        self.answer = (500, 'InternalError')
        self.refused: list[str] = []
        """Keys of the requests that were refused, in their order."""
        proxy = self

        class Handler(_Handler):
            def forward(self) -> None:
                body, key = self.body(), unquote(urlsplit(self.path).path)
                if self.command == 'PUT' and proxy.refuses(key):
                    proxy.refused.append(key)
                    code, name = proxy.answer
                    self.answer(code, f'<Error><Code>{name}</Code><Message>refused</Message></Error>'.encode())
                    return
                connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers))  # signed for this Host
                reply = connection.getresponse()
                data = reply.read()
                kept = {name: value for name, value in reply.getheaders() if name.lower() != 'transfer-encoding'}
                length = {} if self.command == 'HEAD' else {'Content-Length': str(len(data))}
                self.answer(reply.status, data, {**{name.title(): value for name, value in kept.items()}, **length})
                connection.close()

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        super().__init__(Handler)
