"""A web server on this machine that serves bytes, and can break off, lie about them, or be gone."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import sleep


class Server(ThreadingHTTPServer):
    """Serves ``content`` by path; sends ``cut`` bytes of a file and hangs up if that is not None.

    ``trickle`` names what comes a byte at a time, ``"headers"`` or ``"body"``.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.cut: int | None = None
        self.chunked = False
        self.trickle = ""
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.close_connection = True
        content = self.server.content.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        if self.server.trickle:
            self.drip(content)
            return
        self.send_response(200)
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        body = content[: self.server.cut]
        if not self.server.chunked:
            self.wfile.write(body)
            return
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        if self.server.cut is None:
            self.wfile.write(b"0\r\n\r\n")

    def drip(self, content: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n".encode()
        quick = b"" if self.server.trickle == "headers" else head + b"\r\n"
        with suppress(OSError):
            self.wfile.write(quick)
            for byte in ((head + b"X: " + content) if not quick else content)[:200]:
                self.wfile.write(bytes([byte]))
                sleep(0.01)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
