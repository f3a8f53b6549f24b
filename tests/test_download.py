"""Fetching raw files, from a server on this machine that can be made to misbehave."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from etl.raw.download import download
from seqrec_jax.errors import InputError

CONTENT = bytes(range(256)) * 5_000


class Server(HTTPServer):
    """Serves CONTENT, at most `most` bytes a request; notes where each request started."""

    def __init__(self, most: int = len(CONTENT), ranges: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.most, self.ranges, self.starts = most, ranges, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers["Range"] if self.server.ranges else None
        start = int(asked.split("=")[1].rstrip("-")) if asked else 0
        self.server.starts.append(start)
        if self.path != "/file" or start >= len(CONTENT):
            self.send_error(416 if self.path == "/file" else 404)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.server.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(**options) -> Server:
        servers.append(Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_missing_file_is_fetched_and_one_that_is_there_left_alone(tmp_path, serve):
    server = serve()
    (tmp_path / "b").write_text("mine")
    fetched = download(tmp_path, {"a": server.url, "b": server.url}, {})
    assert fetched == {"a": hashlib.sha256(CONTENT).hexdigest()}
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert (tmp_path / "b").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_name_that_leads_elsewhere_and_a_link_are_left_alone(tmp_path, serve):
    server, folder = serve(), tmp_path / "raw"
    folder.mkdir()
    for name in ("../a", "/a", "b/a", "..", ""):
        with pytest.raises(InputError, match="is no file's name, but leads elsewhere"):
            download(folder, {name: server.url}, {})
    (folder / "a").symlink_to(tmp_path / "nowhere")
    assert download(folder, {"a": server.url}, {}) == {}
    assert (folder / "a").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_transfer_goes_on(tmp_path, serve, ranges):
    server = serve(most=500_000, ranges=ranges)
    with pytest.raises(InputError, match="run the same command again with a network to go on"):
        download(tmp_path, {"a": server.url}, {})
    assert not (tmp_path / "a").exists()
    if ranges:
        for _ in range(2):
            if not (tmp_path / "a").exists():
                try:
                    download(tmp_path, {"a": server.url}, {})
                except InputError:
                    continue
        assert server.starts == [0, 500_000, 1_000_000]
    else:
        server.most = len(CONTENT)
        download(tmp_path, {"a": server.url}, {})
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_file_of_another_checksum_is_not_kept(tmp_path, serve):
    with pytest.raises(InputError, match=r"/a: what http.* gave has SHA-256 .*, not 00; try again"):
        download(tmp_path, {"a": serve().url}, {"a": "00"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/file", "{server}x"])
def test_no_network_is_said_in_one_line(tmp_path, serve, url):
    url = url.replace("{server}", serve().url)
    with pytest.raises(InputError, match=r"/a: is not there, and http.* cannot be fetched .*yourself"):
        download(tmp_path, {"a": url}, {})


def test_a_whole_file_that_was_not_renamed_yet_is_taken(tmp_path, serve):
    (tmp_path / ".a.partial").write_bytes(CONTENT)
    download(tmp_path, {"a": serve().url}, {"a": hashlib.sha256(CONTENT).hexdigest()})
    assert (tmp_path / "a").read_bytes() == CONTENT
