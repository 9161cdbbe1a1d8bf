"""Fetching one file: what goes on after a break, what is begun anew, and what is refused."""

import hashlib
import io
import ssl
import urllib.error
import urllib.request

import pytest
from file_server import LOCAL, serving

from sparsezip.errors import FailureError
from sparsezip.measure.data import download as downloads
from sparsezip.measure.data.download import Download

BODY = bytes(range(256)) * 4096 * 3  # 3 MiB: more than one read


@pytest.fixture
def server():
    with serving() as running:
        yield running


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
    server.plan.append(503)
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "ATTEMPTS", 1)
        with pytest.raises(FailureError, match=r"says 503 .* is kept; the same command goes on with it"):
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


def test_only_attempts_in_a_row_that_bring_nothing_count(fetch, server):
    for _ in range(3):
        server.plan += [503] * 4
        cut(server, 100_000)
    assert fetch() == BODY


def test_a_weak_etag_does_not_stand_for_the_bytes(fetch, server, monkeypatch):
    server.weak = True
    stopped(fetch, server, monkeypatch)
    assert fetch() == BODY
    assert "Range" in server.asked[-1]
    assert "If-Range" not in server.asked[-1]


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
    server.plan += [{"wait": 0.3}] * 5
    with pytest.raises(FailureError, match="timed out, 5 times in a row"):
        fetch()


def test_a_server_that_stops_again_and_again_is_not_given_up(fetch, server, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    server.files["/file"], server.pace = BODY[:600_000], 0.3
    assert fetch() == BODY[:600_000]
    assert len(server.asked) > 1


def test_a_wrong_certificate_is_not_tried_again(fetch, monkeypatch):
    asked = []

    def opener(_):
        asked.append(1)
        raise urllib.error.URLError(ssl.SSLCertVerificationError("hostname mismatch"))

    monkeypatch.setattr(downloads, "opener", opener)
    with pytest.raises(FailureError, match=r"cannot be fetched: .*hostname mismatch"):
        fetch()
    assert len(asked) == 1


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
