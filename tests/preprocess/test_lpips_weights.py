"""The command that fetches LPIPS weights, against a server on this machine."""

import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lib.errors import InputError
from lib.losses.perceptual import NETWORKS, PublishedFile
from lib.training.runtime import run
from preprocess import lpips_weights
from preprocess.lpips_weights import provide

CONTENT = bytes(range(256)) * 4096  # several blocks
OTHER = b"other bytes than expected"


class Answers(BaseHTTPRequestHandler):
    """/whole: all; /unannounced: all, without a length; /cut: half of what is announced; /other: something else; anything else: 404."""

    def do_GET(self) -> None:
        if self.path not in ("/whole", "/unannounced", "/cut", "/other"):
            self.send_error(404)
            return
        content = OTHER if self.path == "/other" else CONTENT
        self.send_response(200)
        if self.path != "/unannounced":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.server.asked.append(self.path)
        self.wfile.write(content[:len(content) // 2] if self.path == "/cut" else content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def published(server, monkeypatch):
    """A file of the server, as a row of the table."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server.asked.clear()

    def row(path: str, name: str = "weights.pth") -> PublishedFile:
        url = f"http://127.0.0.1:{server.server_port}/{path}"
        return PublishedFile(name, "some weights", "some licence", url, hashlib.sha256(CONTENT).hexdigest())
    return row


def test_absent_files_are_downloaded_once(published, server, tmp_path, capsys):
    files = [published("whole", "a.pth"), published("unannounced", "b.pth")]
    folder = tmp_path / "new" / "folder"
    provide(files, folder, may_download=True)
    assert {path.name: path.read_bytes() == CONTENT for path in folder.iterdir()} == {"a.pth": True, "b.pth": True}
    said = capsys.readouterr().out
    for file in files:
        assert f"{folder / file.name}: absent" in said and f"{folder / file.name}: downloaded" in said
        assert file.url in said and file.sha256 in said and file.licence in said
    provide(files, folder, may_download=True)
    assert capsys.readouterr().out.count(": present, the published file") == 2
    assert sorted(server.asked) == ["/unannounced", "/whole"]


def test_file_addresses_work_too(tmp_path):
    (tmp_path / "source").write_bytes(CONTENT)
    file = PublishedFile("weights.pth", "", "", (tmp_path / "source").as_uri(), hashlib.sha256(CONTENT).hexdigest())
    provide([file], tmp_path, may_download=True)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(("path", "says"), [
    ("other", f"answered with another file (sha256 {hashlib.sha256(OTHER).hexdigest()}, expected {hashlib.sha256(CONTENT).hexdigest()})"),
    ("cut", f"ended after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
    ("nothing", "HTTP Error 404"),
])
def test_a_wrong_download_leaves_nothing_and_the_others_are_fetched(published, tmp_path, path, says):
    wrong = published(path)
    with pytest.raises(InputError) as error:
        provide([wrong, published("whole", "right.pth")], tmp_path, may_download=True)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'weights.pth'}: ") and wrong.url in message and says in message
    assert f"copy it to {tmp_path / 'weights.pth'}" in message
    assert [path.name for path in tmp_path.iterdir()] == ["right.pth"]


def test_without_a_network_one_message_says_file_address_and_place(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Name or service not known")
    monkeypatch.setattr(lpips_weights.urllib.request, "urlopen", unreachable)
    file = NETWORKS["vgg"].features
    with pytest.raises(InputError) as error:
        provide([file], tmp_path, may_download=True)
    message = str(error.value)
    assert "\n" not in message and file.url in message and f"copy it to {tmp_path / 'vgg16.pth'}" in message and "not known" in message
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(published, tmp_path, monkeypatch):
    seen = []

    class Interrupted:
        def __init__(self, **_): ...
        def __enter__(self): return self
        def __exit__(self, *_): ...
        def update(self, _):
            seen.extend(path.name for path in tmp_path.iterdir())
            raise KeyboardInterrupt
    monkeypatch.setattr(lpips_weights, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        provide([published("whole")], tmp_path, may_download=True)
    assert seen == ["weights.pth.partial"]
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_interruption_left_does_not_matter(published, tmp_path):
    (tmp_path / "weights.pth.partial").write_bytes(b"x" * 2 * len(CONTENT))
    provide([published("whole")], tmp_path, may_download=True)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_another_file_is_never_overwritten(published, server, tmp_path, capsys):
    (tmp_path / "weights.pth").write_bytes(b"my own")
    with pytest.raises(InputError) as error:
        provide([published("whole")], tmp_path, may_download=True)
    assert str(error.value).startswith(f"{tmp_path / 'weights.pth'}: not the published file") and "move it away" in str(error.value)
    assert "ANOTHER file" in capsys.readouterr().out
    assert (tmp_path / "weights.pth").read_bytes() == b"my own" and server.asked == []


def test_a_folder_that_cannot_be_is_named(published, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="this folder cannot be created"):
        provide([published("whole")], tmp_path / "file", may_download=True)


@pytest.mark.parametrize(("options", "names"), [
    ((), ["vgg16.pth", "lpips_vgg.pth"]), (("--network", "alex"), ["alexnet.pth", "lpips_alex.pth"]),
    (("--network", "all"), ["vgg16.pth", "lpips_vgg.pth", "alexnet.pth", "lpips_alex.pth"]),
])
def test_command_without_download_says_what_is_there_and_ends_with_2(options, names, tmp_path, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("downloaded")
    monkeypatch.setattr(lpips_weights.urllib.request, "urlopen", never)
    monkeypatch.setattr(sys, "argv", ["lpips_weights", "--folder", str(tmp_path), "--no-download", *options])
    with pytest.raises(SystemExit) as end:
        run(lpips_weights.main)
    assert end.value.code == 2
    said = capsys.readouterr()
    assert [Path(line.removesuffix(": absent")).name for line in said.out.splitlines() if line.endswith(": absent")] == names
    assert all(f"{tmp_path / name}: absent; run this without --no-download" in said.err for name in names)
    assert list(tmp_path.iterdir()) == []
