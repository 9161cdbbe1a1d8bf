"""Fetch one file over HTTPS; a broken connection or a kill costs only what had not arrived.

    NAME.partial         what has arrived
    NAME.partial.json    of which version of the file that is: address, ETag, Last-Modified, length

What continues must be the same version: If-Range asks for it, and the answer is held against what was noted down.
"""

import hashlib
import json
import os
import shutil
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from ...errors import FailureError
from ..store import write_json

ATTEMPTS = 5  # in a row that bring nothing
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20
SLACK = 100 << 20  # bytes that stay free on the disk
BUSY = (408, 416, 425, 429, 500, 502, 503, 504)  # worth another attempt
Progress = Callable[[int, int | None], None]  # bytes that are here, bytes that there are


@dataclass(frozen=True)
class Download:
    """A file to be fetched.

    cap: the most bytes that are taken. size, sha256: what was published, and `by` whom. schemes: plain http is for
    tests. patience: seconds before another attempt, doubled while none brings anything.
    """

    url: str
    path: Path
    cap: int
    size: int | None = None
    sha256: str | None = None
    by: str = "was expected"
    schemes: tuple[str, ...] = ("https",)
    patience: float = 1.0
    progress: Progress = lambda here, total: None

    def run(self) -> str:
        """Bring the file to `path`, going on with what an earlier call left there, and return its SHA-256.

        Raises FailureError when it cannot be had, is larger than it may be, or is not the published one.
        """
        _check_scheme(self.url, self.schemes, "The address is")
        if not self.path.exists():
            self._bring()
        arrived = self.path if self.path.exists() else self._partial
        found = digest(arrived)
        if self.sha256 is not None and found != self.sha256:
            arrived.unlink()
            self._note.unlink(missing_ok=True)
            raise FailureError(
                f"{self.url} is not the file that {self.by}: its SHA-256 is {found}, not {self.sha256}. "
                "It was removed. Try again; if it stays so, the file has changed there."
            )
        arrived.replace(self.path)
        self._note.unlink(missing_ok=True)
        return found

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial.json")

    def _bring(self) -> None:
        """Let the partial file grow until it is whole."""
        failures = 0
        while True:
            before = _size(self._partial)
            try:
                return self._attempt()
            except (OSError, HTTPException) as error:
                if isinstance(error, HTTPError):
                    error.close()
                if not _passing(error):
                    raise FailureError(f"{self.url} cannot be fetched: {_said(error)}.") from None
                failures = 0 if _size(self._partial) > before else failures + 1
                if failures == ATTEMPTS:
                    raise FailureError(
                        f"{self.url} cannot be fetched: {_said(error)}, {ATTEMPTS} times in a row. What has arrived "
                        f"({_size(self._partial):,} bytes) is kept; the same command goes on with it."
                    ) from None
                time.sleep(self.patience * 2**failures / 2)

    def _attempt(self) -> None:
        """One request. Returns when the file is whole, raises OSError or HTTPException when the connection breaks."""
        known = self._known()
        have = _size(self._partial) if known else 0
        if known and have == known["length"]:
            return
        headers = {"User-Agent": "sparsezip", "Accept-Encoding": "identity"}
        if known and have:
            headers["Range"] = f"bytes={have}-"
            if version := known["etag"] or known["modified"]:
                headers["If-Range"] = version
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 - the opener knows the schemes
        try:
            response = opener(self.schemes).open(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code == 416:  # no such range: it became shorter there
                self._forget()
            raise
        with response:
            there = self._version(response)
            if response.status == 206:
                start, there["length"] = _content_range(response)
                if start != have or there != known:
                    self._forget()
                    raise ConnectionError("the file has changed there")
            else:
                self._forget()
                have = 0
            self._check(there["length"], have)
            write_json(self._note, there)
            self._receive(response, have, there["length"])

    def _receive(self, response: HTTPResponse, have: int, length: int | None) -> None:
        most = min(self.cap, self.size or self.cap)
        with self._partial.open("ab") as file:
            while chunk := response.read1(CHUNK):  # what has come, so that a kill loses no more than that
                have += len(chunk)
                if have > most:
                    file.truncate(0)
                    raise FailureError(f"{self.url} goes on behind {most:,} bytes, the most it may have.")
                file.write(chunk)
                file.flush()
                self.progress(have, length)
            os.fsync(file.fileno())
        if length is not None and have < length:
            raise ConnectionError(f"the connection ended after {have:,} of {length:,} bytes")

    def _check(self, length: int | None, have: int) -> None:
        """Refuse a length that is not the published one, above the cap or beyond the disk."""
        if length is None:
            return
        if self.size is not None and length != self.size:
            raise FailureError(f"{self.url} has {length:,} bytes; the file that {self.by} has {self.size:,}.")
        if length > self.cap:
            raise FailureError(f"{self.url} has {length:,} bytes; at most {self.cap:,} are taken.")
        if shutil.disk_usage(self.path.parent).free < length - have + SLACK:
            raise FailureError(f"{self.url} has {length - have:,} bytes to come; {self.path.parent} has less room.")

    def _version(self, response: HTTPResponse) -> dict[str, Any]:
        """What tells this version of the file from another."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise FailureError(f"{self.url} comes in the encoding {encoding}, which was not asked for.")
        etag, length = response.headers.get("ETag", ""), response.headers.get("Content-Length", "")
        return {
            "url": self.url,
            "etag": "" if etag.startswith("W/") else etag,  # a weak one may name different bytes
            "modified": response.headers.get("Last-Modified", ""),
            "length": int(length) if length.isdecimal() else None,
        }

    def _known(self) -> dict[str, Any] | None:
        """The version that the partial file belongs to; None where that is not known."""
        try:
            known = json.loads(self._note.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return known if isinstance(known, dict) and set(known) == {"url", "etag", "modified", "length"} else None

    def _forget(self) -> None:
        self._note.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def opener(schemes: tuple[str, ...]) -> urllib.request.OpenerDirector:
    """What opens addresses of these schemes, redirects included, and no others (urllib's own knows file: and ftp:)."""
    made = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirect(schemes),
    ]
    if "http" in schemes:
        handlers.append(urllib.request.HTTPHandler())
    for handler in handlers:
        made.add_handler(handler)
    return made


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows to the schemes that are taken."""

    def __init__(self, schemes: tuple[str, ...]) -> None:
        self.schemes = schemes

    def http_error_302(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Look at the address before urllib does, which has a message of its own."""
        place = headers.get("Location") or headers.get("URI") or ""
        if place and (urlsplit(place).scheme or self.schemes[0]) not in self.schemes:
            fp.close()
            _check_scheme(place, self.schemes, f"{req.full_url} sends on to")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _check_scheme(url: str, schemes: tuple[str, ...], what: str) -> None:
    if urlsplit(url).scheme not in schemes:
        raise FailureError(f"{what} {url}; only {' and '.join(schemes)} is taken.")


def _content_range(response: HTTPResponse) -> tuple[int, int | None]:
    """The first byte of a part, and the length of the whole."""
    first, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = first.partition("-")[0]
    return int(start) if start.isdecimal() else -1, int(whole) if whole.isdecimal() else None


def _passing(error: Exception) -> bool:
    """Whether another attempt may go better."""
    if isinstance(error, HTTPError):
        return error.code in BUSY
    reason = error.reason if isinstance(error, URLError) else error
    return not isinstance(reason, ssl.SSLCertVerificationError)


def _said(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server says {error.code} {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error).rstrip(".") or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
