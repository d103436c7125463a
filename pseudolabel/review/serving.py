"""Starting and stopping the review server: the address, who may reach it, and what is said about that."""

import contextlib
import ipaddress
import secrets
import socket
import threading
import warnings
import webbrowser
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from data.errors import ConfigError
from data.wording import printable

ENDING_S = 3  # how long answers that are on their way are waited for


@dataclass(frozen=True)
class Address:
    """Where the server listens.

    Attributes:
        socket: the bound socket.
        host: its address as it was asked for.
        port: its port.
        token: what a visitor from elsewhere must show; empty on this machine alone.

    """

    socket: socket.socket
    host: str
    port: int
    token: str

    @property
    def url(self) -> str:
        """What to open in a browser."""
        name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        host = f"[{name}]" if ":" in name else name
        return f"http://{host}:{self.port}/{f'?token={self.token}' if self.token else ''}"


def bind(host: str, port: int) -> Address:
    """Take a port of an address; port 0 is any that is free.

    Raises:
        ConfigError: the port is taken, or there is no such address.

    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}: it must be from 0 (any that is free) to 65535.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"The page cannot be served at {printable(host)} port {port} ({reason}); name another one with --port (0 "
            "takes any that is free) or --host."
        ) from error
    token = "" if is_loopback(host) else secrets.token_urlsafe(24)
    return Address(bound, host, bound.getsockname()[1], token)


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def need_extra() -> None:
    """Raise ConfigError where the packages of the server are missing."""
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise ConfigError("pseudolabel review needs Starlette and Uvicorn: pip install 'text2mask-wsss[review]'.")


def server_of(app: Any, address: Address) -> Any:
    """Return the server of an application; visitors are checked by `guard.Guard`."""
    import uvicorn

    from pseudolabel.review.guard import Guard

    guarded = Guard(app, address.host, address.port, address.token)
    config = uvicorn.Config(
        guarded,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=ENDING_S,
    )
    return uvicorn.Server(config)


def serve(app: Any, address: Address, open_browser: bool = False) -> None:
    """Say where an application is and serve it until Ctrl-C or a signal to end."""
    server = server_of(app, address)
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(address.socket):  # Ctrl-C is how it ends
        print(f"Review at {address.url}    Ctrl-C ends it", flush=True)
        if open_browser:
            threading.Timer(0.3, webbrowser.open, (address.url,)).start()
        with warnings.catch_warnings():  # of Ctrl-C before the server has begun
            warnings.filterwarnings("ignore", "coroutine 'Server.serve' was never awaited", RuntimeWarning)
            server.run(sockets=[address.socket])
