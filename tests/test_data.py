"""Fetching the benchmarks' files from a server of the test's own, and saying what of them is there."""

import hashlib
import io
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

import sparsezip
from sparsezip import cli
from sparsezip.errors import DataError, FailureError, UsageError
from sparsezip.measure.benchmarks import benchmark, names
from sparsezip.measure.benchmarks.base import Hub
from sparsezip.measure.data import download as downloads
from sparsezip.measure.data import get as gets
from sparsezip.measure.data.check import check
from sparsezip.measure.data.download import Download
from sparsezip.measure.data.get import get
from sparsezip.measure.data.sources import OFFICIAL, File, Part

SRC = Path(sparsezip.__file__).parents[1]
LOCAL = {"schemes": ("http",), "patience": 0.01}
BODY = bytes(range(256)) * 4096 * 3  # 3 MiB: more than one read


class Server(ThreadingHTTPServer):
    """Serves `files` (path: bytes) with Range, ETag and If-Range; `plan`: what goes wrong next."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.plan, self.asked = {}, [], []
        self.etags, self.length, self.pace = True, True, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that goes away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing."""

    def do_GET(self):
        server = self.server
        server.asked.append(dict(self.headers))
        fault = server.plan.pop(0) if server.plan else None
        if isinstance(fault, int):
            return self.send_error(fault)
        if isinstance(fault, str):
            self.send_response(302)
            self.send_header("Location", fault)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path not in server.files:
            return self.send_error(404)
        body = server.files[self.path]
        etag = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.etags:
            self.send_header("ETag", etag)
        if server.length:
            self.send_header("Content-Length", str(len(body) - start + (fault or {}).get("more", 0)))
        if "encoding" in (fault or {}):
            self.send_header("Content-Encoding", fault["encoding"])
        self.end_headers()
        sent = body[start:][: (fault or {}).get("bytes", len(body))]
        for at in range(0, len(sent), 1 << 16):
            self.wfile.write(sent[at : at + (1 << 16)])
            time.sleep(server.pace)


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch /file from the server; what is in its place afterwards."""
    server.files["/file"] = BODY

    def fetch(**settings) -> bytes:
        path = tmp_path / "file"
        made = {"cap": 1 << 30, **LOCAL, **settings}
        found = Download(made.pop("url", f"{server.url}/file"), path, **made).run()
        assert found == hashlib.sha256(path.read_bytes()).hexdigest()
        assert [left.name for left in tmp_path.iterdir()] == ["file"]
        return path.read_bytes()

    return fetch


def cut(server, at=1 << 20):
    """Let the next answer end after `at` bytes."""
    server.plan.append({"bytes": at})


def stopped(fetch, server, monkeypatch, at=1 << 20):
    """A fetch that ended after `at` bytes and was not tried again."""
    cut(server, at)
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "ATTEMPTS", 1)
        with pytest.raises(FailureError, match=r"ended after .* is kept; the same command goes on with it"):
            fetch()


# -- one file ------------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole(fetch, server):
    seen = []
    assert fetch(progress=lambda *at: seen.append(at)) == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert server.asked[0]["Accept-Encoding"] == "identity"
    server.plan.append(500)
    assert fetch() == BODY  # it is there: nobody is asked
    assert len(server.asked) == 1


def test_a_broken_connection_goes_on_where_it_was(fetch, server):
    for at in (100_000, 1 << 20):
        cut(server, at)
    server.plan.append(503)
    assert fetch() == BODY
    assert [asked.get("Range") for asked in server.asked] == [
        None, "bytes=100000-", f"bytes={100_000 + (1 << 20)}-", f"bytes={100_000 + (1 << 20)}-",
    ]  # fmt: skip


def test_a_later_call_goes_on_with_the_same_file(fetch, server, monkeypatch):
    stopped(fetch, server, monkeypatch)
    assert fetch(sha256=hashlib.sha256(BODY).hexdigest()) == BODY
    assert server.asked[-1]["Range"] == f"bytes={1 << 20}-"
    assert server.asked[-1]["If-Range"].startswith('"')


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changed_in_between_is_begun_anew(fetch, server, monkeypatch, etags):
    """With an ETag the server sends it whole; without, its length tells."""
    server.etags = etags
    stopped(fetch, server, monkeypatch)
    server.files["/file"] = changed = BODY[::-1] + b"more"
    assert fetch() == changed


def test_a_file_that_became_shorter_is_begun_anew(fetch, server, monkeypatch):
    server.etags = False
    stopped(fetch, server, monkeypatch)
    server.files["/file"] = b"short"
    assert fetch() == b"short"


def test_what_lies_there_of_another_address_is_not_mixed_in(fetch, server, monkeypatch):
    stopped(fetch, server, monkeypatch)
    server.files["/other"] = other = BODY[::-1]
    assert fetch(url=f"{server.url}/other") == other


def test_a_partial_file_without_its_note_is_begun_anew(fetch, server, monkeypatch, tmp_path):
    for note in (None, "{", "[1]", '{"url": 1}', '{"etag": ""}'):
        stopped(fetch, server, monkeypatch)
        place = tmp_path / "file.partial.json"
        place.unlink() if note is None else place.write_text(note)
        assert fetch() == BODY
        (tmp_path / "file").unlink()


def test_a_part_that_is_whole_is_not_asked_for(fetch, server, monkeypatch, tmp_path):
    """A kill between the last byte and the new name."""
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "digest", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert not (tmp_path / "file").exists()
    assert fetch() == BODY
    assert len(server.asked) == 1


def test_a_server_without_lengths(fetch, server):
    server.length = False
    assert fetch() == BODY


def test_the_published_checksum_is_held(fetch, server, tmp_path):
    with pytest.raises(FailureError, match=r"not the file that TFDS lists: its SHA-256 is \w{64}, not 0{64}.*removed"):
        fetch(sha256="0" * 64, by="TFDS lists")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"damaged on the disk")
    with pytest.raises(FailureError, match="SHA-256"):
        fetch(sha256=hashlib.sha256(BODY).hexdigest())
    assert fetch(sha256=hashlib.sha256(BODY).hexdigest()) == BODY


def test_sizes_are_held(fetch, server, tmp_path):
    with pytest.raises(FailureError, match=f"has {len(BODY):,} bytes; the file that TFDS lists has 17"):
        fetch(size=17, by="TFDS lists")
    with pytest.raises(FailureError, match="at most 1,000 are taken"):
        fetch(cap=1000)
    assert not (tmp_path / "file.partial").exists()
    server.length = False  # nothing declared: counted on the way
    with pytest.raises(FailureError, match="goes on behind 1,000 bytes"):
        fetch(cap=1000)
    with pytest.raises(FailureError, match="goes on behind 17 bytes"):
        fetch(size=17)
    assert sum(path.stat().st_size for path in tmp_path.glob("file.partial")) == 0


def test_a_disk_without_room_is_said_before_anything_is_written(fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(FailureError, match=r"bytes to come; .* has less room"):
        fetch()
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_said_at_once(fetch, server):
    for code in (404, 403, 410):
        server.plan.append(code)
        with pytest.raises(FailureError, match=f"cannot be fetched: the server says {code} "):
            fetch()
    assert len(server.asked) == 3


def test_a_server_that_stays_busy_is_given_up(fetch, server):
    server.plan += [503] * 10
    with pytest.raises(FailureError, match=r"says 503 .*, 5 times in a row"):
        fetch()
    assert len(server.asked) == 5


def test_a_server_that_says_nothing_is_given_up(fetch, server, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.05)
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    server.pace = 0.3
    with pytest.raises(FailureError, match="timed out"):
        fetch()


def test_nobody_there(fetch, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    with pytest.raises(FailureError, match="refused, 2 times in a row"):
        fetch(url="http://127.0.0.1:1/file")


def test_redirects_are_followed_to_the_same_scheme_alone(fetch, server):
    server.files["/there"] = b"moved"
    server.plan.append(f"{server.url}/there")
    assert fetch(url=f"{server.url}/here") == b"moved"


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/file", "data:,x", "HTTPS://127.0.0.1/"])
def test_redirects_elsewhere_are_refused(fetch, server, place):
    server.plan.append(place)
    with pytest.raises(FailureError, match=f"sends on to {place}.*; only http is taken"):
        fetch()


def test_endless_redirects_end(fetch, server):
    server.plan += [f"{server.url}/file"] * 50
    with pytest.raises(FailureError, match="cannot be fetched: the server says 302"):
        fetch()


def test_an_encoding_nobody_asked_for_is_refused(fetch, server):
    server.plan.append({"encoding": "gzip"})
    with pytest.raises(FailureError, match="comes in the encoding gzip"):
        fetch()


def test_only_https_is_taken_and_certificates_are_checked(fetch, server):
    for url in (f"{server.url}/file", "file:///etc/passwd", "ftp://127.0.0.1/file"):
        with pytest.raises(FailureError, match="only https is taken"):
            fetch(url=url, schemes=("https",))
    assert not server.asked
    made = downloads.opener(("https",))
    schemes = {type(handler).__name__ for handler in made.handlers}
    assert not schemes & {"HTTPHandler", "FileHandler", "FTPHandler", "DataHandler"}
    (secure,) = (one for one in made.handlers if isinstance(one, urllib.request.HTTPSHandler))
    assert secure._context.verify_mode == ssl.CERT_REQUIRED
    assert secure._context.check_hostname
    with pytest.raises(FailureError, match=r"only https is taken"):
        downloads._Redirect(("https",)).http_error_302(
            urllib.request.Request("https://127.0.0.1/"), io.BytesIO(), 302, "", {"Location": f"{server.url}/file"}
        )


def test_every_official_address_is_https_and_capped():
    files = [file for source in OFFICIAL.values() for part in source.parts for file in part.files]
    assert set(OFFICIAL) == set(names()) - {"scenes"}
    assert len(files) > 8
    for file in files:
        assert file.url.startswith("https://")
        assert file.size is None or file.size <= file.cap
        assert file.sha256 is None or (len(file.sha256) == 64 and file.by)
        assert (file.keep is None) == file.name.endswith(".json")
    for name, source in OFFICIAL.items():
        assert source.parts or "sparsezip data get" in source.how, name
        assert source.questions


# -- a benchmark ---------------------------------------------------------------------------------------------------


def picture(color="red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "JPEG")
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def pope(server):
    """POPE's example on the server, in the shape of the official files."""
    example = benchmark("pope").example
    annotations = {name: text.encode() for name, text in example.items() if text is not None}
    image = next(Path(name).name for name, text in example.items() if text is None)
    server.files |= {f"/{name}": text for name, text in annotations.items()}
    server.files["/val2014.zip"] = zipped(**{f"val2014/{image}": picture(), "val2014/readme.txt": b"not asked for"})
    sums = {path: hashlib.sha256(body).hexdigest() for path, body in server.files.items()}
    parts = (
        Part("pope", tuple(File(f"{server.url}/{name}", 10_000, sha256=sums[f"/{name}"]) for name in annotations)),
        Part("val2014", (File(f"{server.url}/val2014.zip", 10 << 20, keep=("val2014/*.jpg",), strip="val2014/"),)),
    )
    return {"parts": {"pope": parts}, **LOCAL}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_benchmark_is_fetched_and_ready(pope, tmp_path):
    data, said = tmp_path / "data", io.StringIO()
    get(benchmark("pope"), data, console=Console(file=said, width=300), **pope)
    found = check(benchmark("pope"), data)
    assert (found.missing, found.images, found.questions) == ("", 1, {"random": 2, "popular": 2, "adversarial": 2})
    assert "9,000" in found.remark
    assert len(benchmark("pope").samples(data)) == 6
    assert {name for name in tree(data) if name.startswith("val2014/")} == {
        f"val2014/{Path(name).name}" for name, text in benchmark("pope").example.items() if text is None
    }
    noted = json.loads((data / "sources.json").read_text())
    assert len(noted) == 4
    assert {entry["sha256"] for entry in noted.values()} == {
        hashlib.sha256(body).hexdigest() for path, body in pope_files(pope).items()
    }
    assert "val2014.zip: sha256" in said.getvalue()
    assert "first use: nobody published a checksum" in said.getvalue()
    assert not list((data / ".get").glob("*/*"))


def pope_files(pope) -> dict[str, bytes]:
    return {file.url: urllib.request.urlopen(file.url).read() for part in pope["parts"]["pope"] for file in part.files}


def test_what_is_there_is_never_changed(pope, server, tmp_path):
    data = tmp_path / "data"
    (data / "val2014").mkdir(parents=True)
    (data / "val2014" / "mine.jpg").write_bytes(b"mine")
    get(benchmark("pope"), data, **pope)
    assert tree(data / "val2014") == {"mine.jpg": b"mine"}
    assert "images are missing" in check(benchmark("pope"), data).missing
    asked = len(server.asked)
    get(benchmark("pope"), data, **pope)
    assert len(server.asked) == asked


def test_a_later_file_has_to_be_the_one_that_arrived_first(pope, server, tmp_path):
    data = tmp_path / "data"
    get(benchmark("pope"), data, **pope)
    (data / "val2014").rename(tmp_path / "away")
    server.files["/val2014.zip"] += b"\n"
    with pytest.raises(FailureError, match=r"not the file that arrived first, says .*sources.json"):
        get(benchmark("pope"), data, **pope)
    assert not (data / "val2014").exists()
    (data / "sources.json").write_text("{")
    with pytest.raises(DataError, match=r"sources.json is damaged. Remove it"):
        get(benchmark("pope"), data, **pope)


def test_a_bad_archive_leaves_no_folder(pope, server, tmp_path):
    whole = server.files["/val2014.zip"]
    for damaged, message in (
        (whole[: len(whole) // 2], "damaged or incomplete"),
        (b"<html>Sorry</html>", "is not a zip, tar or tar.gz archive"),
        (zipped(**{"val2014/../../../escaped.jpg": b"x"}), "not a path inside a folder"),
        (zipped(**{"elsewhere/1.jpg": b"x"}), "holds none of val2014"),
    ):
        data = tmp_path / hashlib.sha256(damaged).hexdigest()[:8]
        server.files["/val2014.zip"] = damaged
        with pytest.raises(DataError, match=message):
            get(benchmark("pope"), data, **pope)
        assert sorted(path.name for path in data.iterdir()) == [".get", "pope", "sources.json"]
        assert not list(tmp_path.rglob("escaped*"))


def test_two_processes_do_not_fetch_to_one_folder(pope, tmp_path):
    with gets._locked(tmp_path), pytest.raises(UsageError, match="Another process is fetching"):
        get(benchmark("pope"), tmp_path, **pope)


KILLED = """
import json, sys
from sparsezip.measure.benchmarks import benchmark
from sparsezip.measure.data.get import get
from sparsezip.measure.data.sources import File, Part
parts = tuple(Part(folder, tuple(File(**{**file, "keep": file["keep"] and tuple(file["keep"])}) for file in files))
              for folder, files in json.loads(sys.argv[2]))
get(benchmark("pope"), __import__("pathlib").Path(sys.argv[1]), parts={"pope": parts}, schemes=("http",), patience=0.01)
print("done")
"""


def test_killed_at_any_moment_it_ends_in_the_same_files(pope, server, tmp_path):
    parts = [(part.folder, [vars(file) for file in part.files]) for part in pope["parts"]["pope"]]
    image = next(Path(name).name for name, text in benchmark("pope").example.items() if text is None)
    extra = {f"val2014/{number}.jpg": os.urandom(1 << 16) for number in range(60)}
    server.files["/val2014.zip"] = zipped(**{f"val2014/{image}": picture()}, **extra)
    get(benchmark("pope"), tmp_path / "undisturbed", **pope)
    server.pace, data = 0.005, tmp_path / "data"
    kills = 0
    for wait in (0.0, 0.05, 0.1, 0.15, None):
        asked = len(server.asked)
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(data), json.dumps(parts)],
            env={**os.environ, "PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if wait is not None:
            while len(server.asked) == asked and process.poll() is None:
                time.sleep(0.005)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        out = process.communicate(timeout=60)[0]
        kills += process.returncode == -signal.SIGKILL
        if not kills:
            assert out == "done\n"
        for folder in (part.folder for part in pope["parts"]["pope"]):  # there and whole, or not there
            if (data / folder).exists():
                assert tree(data / folder) == tree(tmp_path / "undisturbed" / folder)
    assert kills >= 2
    assert any("Range" in asked for asked in server.asked)
    assert tree(data) == tree(tmp_path / "undisturbed")


# -- archives at hand, the Hub, what is there ----------------------------------------------------------------------


def archive_of(name: str, path: Path, prefix="") -> Path:
    """A benchmark's example as a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in benchmark(name).example.items():
            archive.writestr(prefix + file, picture() if text is None else text)
    return path


@pytest.fixture
def run(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_get_takes_archives_that_the_user_has(run, tmp_path):
    archive = archive_of("docvqa", tmp_path / "docvqa.zip")
    code, out, _ = run("data", "get", "docvqa", tmp_path / "data", "--from", archive)
    assert (code, out.splitlines()[0]) == (
        0, "docvqa: ready. 1 questions on 1 images (val 1); the published set has 5,349 questions",
    )  # fmt: skip
    assert out.splitlines()[1].strip() == f"sparsezip eval --benchmark docvqa --data {tmp_path / 'data'} --out RUN"
    before = tree(tmp_path / "data")
    code, out, _ = run("data", "get", "docvqa", tmp_path / "data")  # ready: nothing is fetched
    assert (code, tree(tmp_path / "data")) == (0, before)


def test_get_refuses_what_cannot_be_had(run, tmp_path):
    for arguments, message in (
        (["nothing"], 'There is no benchmark "nothing"'),
        (["pop"], 'Did you mean "pope"?'),
        (["scenes"], "sparsezip testbed data"),
        (["docvqa", tmp_path, "--from", "official"], "https://rrc.cvc.uab.es"),
        (["mme", tmp_path, "--from", "official"], "on request"),
        (["pope", tmp_path, "--from", "nowhere.zip"], "there is no file nowhere.zip"),
        (["pope", __file__, "--from", "official"], "cannot be written"),
    ):
        code, out, err = run("data", "get", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_get_from_the_hub_exports_there(monkeypatch, run, tmp_path):
    from sparsezip.measure import hub

    asked = []

    def export(made, folder, **_):
        asked.append((made.name, folder))
        for name, text in made.example.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture() if text is None else text.encode())

    monkeypatch.setattr(hub, "export", export)
    for name, known in (("docvqa", []), ("coco", ["--from", "hub"])):
        assert isinstance(benchmark({"coco": "coco_caption"}.get(name, name)).hub, Hub)
        code, out, _ = run("data", "get", name, tmp_path, *known)
        assert (code, out.split(":")[1].split(".")[0]) == (0, " ready")
    assert asked == [("docvqa", tmp_path / "docvqa"), ("coco_caption", tmp_path / "coco_caption")]


def test_check_says_what_is_there(run, tmp_path):
    for name in names():
        for file, text in benchmark(name).example.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture() if text is None else text.encode())
    code, out, err = run("data", "check", tmp_path)
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    assert err == ""
    assert [line.split(":")[0] for line in lines] == names()
    assert code == 2  # MME's example has 2 of 14 subtasks
    incomplete = [line for line in lines if "incomplete" in line]
    assert [line.split(":")[0] for line in incomplete] == ["mme"]
    assert "OCR" in incomplete[0]
    for path in (tmp_path / "mme").rglob("*"):
        path.unlink() if path.is_file() else None
    (tmp_path / "mme").rename(tmp_path / "elsewhere")
    assert run("data", "check", tmp_path)[0] == 0


def test_check_of_what_is_missing(run, tmp_path):
    folder = tmp_path / "pope"
    folder.mkdir()
    example = benchmark("pope").example
    (folder / "coco_pope_random.json").write_text(example["coco_pope_random.json"])
    code, out, _ = run("data", "check", tmp_path)
    assert code == 2
    assert out.startswith("pope: incomplete. POPE: coco_pope_popular.json is missing.")
    for name in example:
        if name.endswith(".json"):
            (folder / name).write_text(example[name])
    code, out, _ = run("data", "check", tmp_path)
    assert code == 2
    assert "1 of 1 images are missing, such as COCO_val2014_000000310196.jpg" in out
    assert f"    sparsezip data get pope {tmp_path}" in out.splitlines()
    (tmp_path / "val2014").mkdir()
    assert f"    move {folder} and {tmp_path / 'val2014'} away, then sparsezip" in run("data", "check", tmp_path)[1]


def test_check_explains_docvqas_registration(run, tmp_path):
    (tmp_path / "docvqa").mkdir()
    code, out, _ = run("data", "check", tmp_path)
    assert code == 2
    for word in ("https://rrc.cvc.uab.es", "spdocvqa_qas.zip", "spdocvqa_images.tar.gz", "--from hub"):
        assert word in out


def test_check_of_an_empty_folder(run, tmp_path):
    for folder, message in ((tmp_path, "holds no benchmark"), (tmp_path / "nowhere", "There is no folder")):
        code, out, err = run("data", "check", folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
