"""A server of each kind for the tests of buckets, and the environment that points at it."""

import pytest

from tests.buckets.servers import S3Server


@pytest.fixture(params=['nanio', 'rclone'])
def server(request, tmp_path, monkeypatch):
    server = S3Server(tmp_path / 's3', request.param)
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()
