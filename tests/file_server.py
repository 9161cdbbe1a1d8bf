"""A web server of the tests' own, which can be told what goes wrong with its next answers."""

import hashlib
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOCAL = {"schemes": ("http",), "patience": 0.01}  # how a download reaches it


class Server(ThreadingHTTPServer):
    """Serves `files` (path: bytes) with Range, ETag and If-Range; `plan`: what goes wrong next."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.plan, self.asked = {}, [], []
        self.etags, self.weak, self.length, self.pace = True, False, True, 0.0

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
        time.sleep((fault or {}).get("wait", 0))
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
            self.send_header("ETag", f"W/{etag}" if server.weak else etag)
        if server.length:
            self.send_header("Content-Length", str(len(body) - start + (fault or {}).get("more", 0)))
        if "encoding" in (fault or {}):
            self.send_header("Content-Encoding", fault["encoding"])
        self.end_headers()
        sent = body[start:][: (fault or {}).get("bytes", len(body))]
        for at in range(0, len(sent), 1 << 16):
            self.wfile.write(sent[at : at + (1 << 16)])
            time.sleep(server.pace)


@contextmanager
def serving():
    """A server that runs."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()
