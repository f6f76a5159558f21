"""viser's server, of which only those may have anything who know its address.

viser itself listens to everybody, on the next free port where one is taken, takes messages of 50 MB, looks at no origin, and opens a public
tunnel for any client that asks. It has no options for these; all connections come through one call of `websockets`, which is replaced while
viser starts. A version of viser that does not make this call is refused.
"""

import contextlib
import dataclasses
import hmac
import http
import io
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lib.errors import InputError

_PORT = re.compile(r":[0-9]*$")  # at the end of a Host
MESSAGE_MOST = 1 << 20  # bytes of a message from a browser; those of the page are far below


@dataclass(frozen=True)
class Address:
    """Where the page is. The secret is a part of the path, so that pages of others, which browsers let open connections, do not know it."""

    host: str
    port: int
    token: str

    def __str__(self) -> str:
        name = socket.getfqdn() if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 (compared, not bound)
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/{self.token}/"


def start_server(host: str, port: int, label: str) -> tuple[Any, Address]:
    """A running viser.ViserServer. Raises InputError where the address is taken or not of this machine, and without viser."""
    try:
        import viser
        import websockets.asyncio.server
    except ImportError as error:
        raise InputError(f"the viewer needs the package viser ({error}): pip install -e .[viewer]") from error

    class Server(viser.ViserServer):
        """Without a tunnel to the world."""

        def request_share_url(self, verbose: bool = True) -> str | None:
            """Any client can ask for it; never given."""
            return None

    listening = _listen(host, port)
    address = Address(host, listening.getsockname()[1], secrets.token_urlsafe(16))
    with _replaced(websockets.asyncio.server, listening, address) as used, contextlib.redirect_stdout(io.StringIO()):  # another address
        server = Server(host=host, port=address.port, label=label, verbose=False)
    if not used:
        server.stop()
        raise InputError(f"viser {viser.__version__} starts its server in a way that cannot be guarded; pip install 'viser>=1.1,<1.2'")
    return server, address


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"host {host}, port {port}: the page cannot be served there ({error.strerror}); is another program at that port? "
                         "Write port=0 for any that is free, or host=127.0.0.1 for this machine alone") from error


@contextlib.contextmanager
def _replaced(module: Any, listening: socket.socket, address: Address) -> Iterator[list[bool]]:
    """While it lasts, `module.serve` guards the socket it is called for; the list is no longer empty then."""
    serve, used = module.serve, list[bool]()

    def guarded(handler: Any, host: str, port: int, **options: Any) -> Any:
        used.append(True)
        only_here = _is_loopback(listening.getsockname()[0])
        options |= {"max_size": MESSAGE_MOST, "process_request": _admitting(options["process_request"], address, only_here)}
        return serve(handler, sock=listening, **options)

    module.serve = guarded
    try:
        yield used
    finally:
        module.serve = serve


def _admitting(pages: Callable[[Any, Any], Any], address: Address, only_here: bool) -> Callable[[Any, Any], Any]:
    """What `pages` answers, to requests under /<token> that come from nobody else's page; `only_here`: and that know the viewer by a name of this
    machine, as a page whose own name was made to lead here does not."""

    def answer(connection: Any, request: Any) -> Any:
        _, given, *rest = request.path.partition("?")[0].split("/")
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), address.token.encode()):
            return connection.respond(http.HTTPStatus.FORBIDDEN, "Open the whole address that viewer.py printed: its last part is a secret.\n")
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        name = _PORT.sub("", hosts[0]).strip("[]") if len(hosts) == 1 else ""
        if not name or (only_here and name != address.host and not _is_loopback(name)):
            return connection.respond(http.HTTPStatus.FORBIDDEN, "The viewer is at 127.0.0.1 or localhost, under no other name.\n")
        if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
            return connection.respond(http.HTTPStatus.FORBIDDEN, "This page of another origin may not talk to the viewer.\n")
        return pages(connection, dataclasses.replace(request, path="/" + "/".join(rest)))

    return answer


def _is_loopback(address: str) -> bool:
    try:
        return address.lower() == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
