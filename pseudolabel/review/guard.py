"""Who may speak to the review server: this machine's own pages, or somebody who has the token.

A web page of anyone's can send requests to 127.0.0.1. So the Host header must name this machine (a name that was turned
towards it by its owner, DNS rebinding, is refused), what other sites ask for is refused, and what writes must come from
our own page. What we send runs no script but our own files.
"""

import ipaddress
import secrets
import socket
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
READING = frozenset({"GET", "HEAD"})
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Wraps an ASGI application; see this file's first lines.

    Args:
        app: the application.
        host: the address it listens at.
        port: the port, which names the cookie.
        token: what a visitor must show once; empty: none is asked for.

    """

    def __init__(self, app: ASGIApp, host: str, port: int, token: str) -> None:
        self._app, self._host, self._token = app, host, token
        self._cookie = f"review_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say why not."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refused = self._refusal(scope)
        await (self._app if refused is None else refused)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not names_us(headers.get("host", ""), self._host):
            return PlainTextResponse("The Host header does not name this machine.", 421)
        reason = foreign(scope["method"], headers)
        if reason:
            return PlainTextResponse(reason, 403)
        return self._ask_for_token(scope, headers) if self._token else None

    def _ask_for_token(self, scope: Scope, headers: Headers) -> Response | None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = query.pop("token", [""])[0]
        if given and _equal(given, self._token) and scope["method"] in READING:
            rest = urlencode(query, doseq=True)
            answer = RedirectResponse(f"{scope['path']}{'?' if rest else ''}{rest}", 303)  # so that no history keeps it
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
            return answer
        if _equal(_cookie(headers.get("cookie", ""), self._cookie), self._token):
            return None
        return PlainTextResponse("Open the address that `pseudolabel review` printed; it holds a token.", 403)


def _equal(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found: Any = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return "" if found is None else str(found.value)


def names_us(host_header: str, listening: str) -> bool:
    """Return whether a Host header names this machine: localhost, the address listened at or, there, any bare address.

    A bare IP address cannot have been turned towards us by the owner of a name.

    >>> names_us("127.0.0.1:8765", "127.0.0.1"), names_us("evil.example:8765", "127.0.0.1")
    (True, False)

    """
    try:
        name = (urlsplit(f"//{host_header}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name in LOCAL_NAMES:
        return True
    if listening in LOCAL_NAMES:
        return False
    return name in {listening.lower(), socket.gethostname().lower(), socket.getfqdn().lower()} or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def foreign(method: str, headers: Headers) -> str:
    """Return why a request is none of our own page's, or an empty text.

    Browsers say where a request comes from (Sec-Fetch-Site, Origin); programs that say nothing may read, and write
    JSON, which no page of another site can send without asking first.
    """
    site = headers.get("sec-fetch-site", "none")
    visiting = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    if site not in {"same-origin", "none"} and not (visiting and method in READING):
        return "Another site's page may not ask for this."
    if method in READING:
        return ""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        return "Another site's page may not write here."
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "What is written is JSON."
    return ""
