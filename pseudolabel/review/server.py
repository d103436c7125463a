"""The review page's server: what is asked and what is answered. `desk` does the work, `guard` keeps others out."""

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from data.config import from_plain
from data.errors import ConfigError, UserError
from data.files import parse_json
from data.store.review import Change, Review
from data.store.store import MaskStore
from data.wording import one_line
from pseudolabel.config import mask_settings
from pseudolabel.review import views
from pseudolabel.review.desk import Desk, UnknownImage
from pseudolabel.review.pages import render
from pseudolabel.review.queue import Line, Query
from pseudolabel.review.retuning import Retuned

MAX_BODY_BYTES = 64_000_000  # a mask of 2.1 million pixels, each another run, takes 20 million
SCRIPTS = ("review", "about", "common", "decision", "ground", "keys", "queue", "stage", "tuning")
STATIC = {"style.css": "text/css", "review.css": "text/css", **{f"{name}.js": "text/javascript" for name in SCRIPTS}}
FOR_GOOD = {"cache-control": "private, max-age=86400, immutable"}  # the address names the version


def review_app(desk: Desk, who: str = "", more: Sequence[BaseRoute] = (), model: str = "") -> Starlette:
    """Return the application.

    Args:
        desk: the store on the desk.
        who: the name that decisions carry until the page's visitor gives another.
        more: addresses of the tab for phrases.
        model: name of that tab's model; empty: there is no such tab.

    """
    handlers = Handlers(desk, who, model)
    routes = [
        Route("/", handlers.page),
        Route("/static/{name}", static),
        Route("/favicon.ico", lambda request: Response(status_code=204, headers=FOR_GOOD)),
        Route("/api/store", handlers.store),
        Route("/api/queue", handlers.queue),
        Route("/api/rows", handlers.rows, methods=["POST"]),
        Route("/api/item", handlers.item),
        Route("/api/retune", handlers.retune, methods=["POST"]),
        Route("/api/decide", handlers.decide, methods=["POST"]),
        Route("/api/correct", handlers.correct, methods=["POST"]),
        Route("/image", handlers.image),
        Route("/thumb", handlers.thumb),
        Route("/heat", handlers.heat),
        Route("/mask", handlers.mask),
        *more,
    ]
    handled = {UserError: _user_error, OSError: _disk_error, HTTPException: _http_error}
    return Starlette(routes=routes, exception_handlers=handled)


def _user_error(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, UnknownImage) else 422
    return JSONResponse({"error": one_line(error)}, status)


def _disk_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{one_line(error)}; check the permissions and the free space"}, 507)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code)


def static(request: Request) -> Response:
    """Answer with one of the page's own files, by name."""
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404)
    content = files("pseudolabel.review").joinpath("templates", name).read_bytes()
    return Response(content, media_type=STATIC[name], headers={"cache-control": "no-cache"})


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request carries.

    Raises:
        ConfigError: too large, or no JSON object.

    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise ConfigError(f"More than {MAX_BODY_BYTES:,} bytes were sent.")
    try:
        value = parse_json(bytes(content))
    except ValueError as error:
        raise ConfigError("What was sent is no JSON.") from error
    if not isinstance(value, dict):
        raise ConfigError("What was sent is no JSON object.")
    return value


def text_of(values: dict[str, Any], name: str, default: str | None = None) -> str:
    """Return a text out of what a page sent.

    Raises:
        ConfigError: missing, or no text.

    """
    value = values.get(name, default)
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a text.")
    return value


class Handlers:
    """The answers; each is a method that an address stands for."""

    def __init__(self, desk: Desk, who: str, model: str) -> None:
        self._desk, self._who, self._model = desk, who, model

    def _line(self, request: Request) -> Line:
        return self._desk.line(request.query_params.get("id", ""))

    def page(self, request: Request) -> Response:
        """Answer with the page."""
        name = self._desk.store.path.resolve().name
        return HTMLResponse(render("review.html.j2", name=name, who=self._who, model=self._model))

    def store(self, request: Request) -> Response:
        """Answer with classes, settings and counts."""
        self._desk.refresh()
        return JSONResponse(views.store_view(self._desk, bool(self._model)))

    def queue(self, request: Request) -> Response:
        """Answer with the ids that a query asks for."""
        given: dict[str, Any] = dict(request.query_params)
        if "label" in given:
            given["label"] = int(given["label"]) if given["label"].isdecimal() else None
        ids = self._desk.queue(from_plain(Query, given, "query"))
        return JSONResponse({"ids": ids, "counts": self._desk.counts()})

    async def rows(self, request: Request) -> Response:
        """Answer with what the queue shows of some images."""
        values = await body_of(request)
        return await _off_the_loop(self._rows, values)

    def _rows(self, values: dict[str, Any]) -> Response:
        lines = views.asked_lines(self._desk, values.get("ids"))
        return JSONResponse([views.row_view(self._desk, line) for line in lines])

    def item(self, request: Request) -> Response:
        """Answer with all about one image."""
        return JSONResponse(views.item_view(self._desk, self._line(request)))

    def image(self, request: Request) -> Response:
        """Answer with an image at the size it is drawn on."""
        return Response(views.jpeg(self._desk.image(self._line(request))), media_type="image/jpeg", headers=FOR_GOOD)

    def thumb(self, request: Request) -> Response:
        """Answer with an image's small picture."""
        picture = views.thumbnail(self._desk, self._line(request))
        return Response(picture, media_type="image/jpeg", headers=FOR_GOOD)

    def heat(self, request: Request) -> Response:
        """Answer with the soft map of a label."""
        label = request.query_params.get("label", "")
        picture = views.heat_picture(self._desk, self._line(request), int(label) if label.isdecimal() else 0)
        if picture is None:
            raise HTTPException(404)
        return Response(picture, media_type="image/jpeg", headers=FOR_GOOD)

    def mask(self, request: Request) -> Response:
        """Answer with the class ids of a mask, row by row."""
        line, which = self._line(request), request.query_params.get("which", "counts")
        if which not in ("machine", "correction", "counts", "predictions"):
            raise ConfigError(f"There is no mask {which[:20]!r}.")
        found = self._desk.mask(line, which)  # type: ignore[arg-type]
        if found is None:
            raise HTTPException(404)
        return _ids(views.packed(found))

    async def retune(self, request: Request) -> Response:
        """Answer with the class ids of a mask that is made again."""
        values = await body_of(request)
        return await _off_the_loop(self._retune, values)

    def _retune(self, values: dict[str, Any]) -> Response:
        line = self._desk.line(text_of(values, "id"))
        found = self._desk.retune(line, from_plain(Retuned, values.get("settings"), "settings"))
        return _ids(views.packed(found))

    async def decide(self, request: Request) -> Response:
        """Write a decision."""
        values = await body_of(request)
        return await _off_the_loop(self._decide, values)

    def _decide(self, values: dict[str, Any]) -> Response:
        line = self._desk.line(text_of(values, "id"))
        before = self._desk.review(line.record["id"])
        change = change_of(values, self._desk.store)
        mask, machine = text_of(values, "mask"), text_of(values, "machine")
        after = self._desk.decide(line, change, mask=mask, machine=machine, who=text_of(values, "who", ""))
        return self._decided(line, values, before, after)

    async def correct(self, request: Request) -> Response:
        """Write a corrected mask and the decision about it."""
        values = await body_of(request)
        return await _off_the_loop(self._correct, values)

    def _correct(self, values: dict[str, Any]) -> Response:
        line = self._desk.line(text_of(values, "id"))
        base = text_of(values, "base")
        if base not in ("machine", "correction", "retuned"):
            raise ConfigError(f"There is no mask {base[:20]!r} to draw on.")
        before = self._desk.review(line.record["id"])
        item = views.item_view(self._desk, line)
        drawn = views.mask_from_runs(values.get("runs"), (item["height"], item["width"]))
        retuned = from_plain(Retuned, values.get("settings") or {}, "settings")
        after = self._desk.correct(
            line,
            drawn,
            change_of({name: value for name, value in values.items() if name == "decision"}, self._desk.store),
            base=base,  # type: ignore[arg-type]
            retuned=retuned,
            machine=text_of(values, "machine"),
            who=text_of(values, "who", ""),
        )
        return self._decided(line, values, before, after)

    def _decided(self, line: Line, values: dict[str, Any], before: Review, after: Review) -> Response:
        """Answer with what holds now, and whose decision was written since the page was sent."""
        seen = values.get("lines")
        meanwhile = before.who if isinstance(seen, int) and seen < before.lines else ""
        return JSONResponse(
            {
                "review": views.review_view(self._desk, line, after),
                "row": views.row_view(self._desk, line),
                "counts": self._desk.counts(),
                "meanwhile": meanwhile,
            }
        )


async def _off_the_loop(work: Callable[[dict[str, Any]], Response], values: dict[str, Any]) -> Response:
    """Run what takes long in a thread, so that other requests are answered meanwhile."""
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(work, values)


def _ids(content: bytes) -> Response:
    return Response(content, media_type="application/octet-stream", headers={"content-encoding": "gzip"})


def change_of(values: dict[str, Any], store: MaskStore) -> Change:
    """Return the change that a page asks for, with labels by name.

    Raises:
        ConfigError: values that are no change; LabelError: a class that does not exist.

    """
    decision, wrong, correction = (values.get(name) for name in ("decision", "wrong", "correction"))
    settings = values.get("settings")
    if decision not in (None, "accept", "reject", "skip", "none"):
        raise ConfigError("decision must be accept, reject, skip or none.")
    if wrong is not None and not (isinstance(wrong, list) and all(type(label) is int for label in wrong)):
        raise ConfigError("wrong must be a list of class ids.")
    if correction is not None and not isinstance(correction, str):
        raise ConfigError("correction must be a hash.")
    if settings is not None:
        mask_settings(settings if isinstance(settings, dict) else {"fuse": settings})
    names = None if wrong is None else tuple(store.classes.name(label) for label in wrong)
    if decision is None and wrong is None and correction is None:
        raise ConfigError("Nothing is decided: give decision, wrong or correction.")
    return Change(decision, names, correction, settings)
