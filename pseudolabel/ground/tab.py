"""The tab for phrases of the review page: an image and phrases in, maps, masks and presence out, one after the other.

The model is loaded when it is first needed. Work runs in a thread of its own, says how far it is, and can be stopped
between two batches of passes.
"""

import base64
import binascii
import shlex
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from data.errors import ConfigError, UserError
from data.images import read_image
from data.wording import one_line, printable
from pseudolabel.ground.localizer import Localizer
from pseudolabel.ground.page import image_view
from pseudolabel.ground.sentences import check_phrases
from pseudolabel.review.server import body_of, text_of

MAX_IMAGE_BYTES = 40_000_000
Step = Literal["idle", "loading", "working", "done", "stopped", "failed"]


class _Stopped(Exception):
    """Ends a piece of work that is not wanted any more."""


@dataclass(frozen=True)
class PhraseRequest:
    """What somebody looks for.

    Attributes:
        content: the bytes of the image file.
        name: what the file is called on their machine; shown in the command line alone.
        phrases: the phrases.
        sentence: the sentence to read them in; None: one is made.
        independent: whether masks may overlap.

    """

    content: bytes
    name: str
    phrases: tuple[str, ...]
    sentence: str | None
    independent: bool


@dataclass(frozen=True)
class State:
    """How far the work is.

    Attributes:
        step: what is going on.
        number: which piece of work, counted from 1.
        done: passes that are done.
        total: passes that there are; 0 while that is not known.
        error: what went wrong.
        result: what was found.

    """

    step: Step = "idle"
    number: int = 0
    done: int = 0
    total: int = 0
    error: str = ""
    result: dict[str, Any] | None = None


class PhraseDesk:
    """Looks for phrases, one request after the other.

    Args:
        load: loads the model.
        flags: what `pseudolabel ground` is to be given to use the same model and settings.

    """

    def __init__(self, load: Callable[[], Localizer], flags: tuple[str, ...]) -> None:
        self._load, self._flags = load, flags
        self._localizer: Localizer | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.state = State()

    def start(self, asked: PhraseRequest) -> State:
        """Begin to look for phrases.

        Raises:
            ConfigError: something is being looked for already.
            LabelError: an empty phrase, or two alike.

        """
        check_phrases(asked.phrases)
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise ConfigError("Something is being looked for already; wait for it, or stop it.")
            self._stop.clear()
            self.state = State("loading" if self._localizer is None else "working", self.state.number + 1)
            self._thread = threading.Thread(target=self._work, args=(asked,), daemon=True)
            self._thread.start()
        return self.state

    def stop(self) -> State:
        """Ask the work to stop; it does so after the batch that is running."""
        self._stop.set()
        return self.state

    def _work(self, asked: PhraseRequest) -> None:
        try:
            result = self._look(asked)
        except _Stopped:
            self.state = replace(self.state, step="stopped")
        except UserError as error:
            self.state = replace(self.state, step="failed", error=one_line(error))
        except (RuntimeError, OSError, MemoryError) as error:  # of torch or the disk; the page must not wait for ever
            self.state = replace(self.state, step="failed", error=one_line(error))
        else:
            self.state = replace(self.state, step="done", result=result)

    def _look(self, asked: PhraseRequest) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            path.write_bytes(asked.content)
            rgb_u8 = read_image(path)
        if self._localizer is None:
            self._localizer = self._load()
        self._watch(0, 0)
        image_id = Path(asked.name).stem
        found = self._localizer.localize(
            rgb_u8, asked.phrases, asked.sentence, asked.independent, image_id, watch=self._watch
        )
        view = asdict(image_view(printable(image_id), rgb_u8, found))
        for one in view["phrases"]:
            one["phrase"], one["words"] = printable(one["phrase"]), [printable(word) for word in one["words"]]
        view["sentences"] = [printable(sentence) for sentence in view["sentences"]]
        return view | {"command": command_line(asked, self._flags)}

    def _watch(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self.state = replace(self.state, step="working", done=done, total=total)


def command_line(asked: PhraseRequest, flags: tuple[str, ...]) -> str:
    """Return the command that does the same."""
    words = ["pseudolabel", "ground", *flags, "--image", asked.name]
    for phrase in asked.phrases:
        words += ["--phrase", phrase]
    words += ["--sentence", asked.sentence] if asked.sentence is not None else []
    words += ["--independent"] if asked.independent else []
    return printable(shlex.join([*words, "--output", f"{Path(asked.name).stem}_found"]))


def phrase_request(values: dict[str, Any]) -> PhraseRequest:
    """Return what a page asks for.

    Raises:
        ConfigError: values that cannot be.

    """
    phrases = values.get("phrases")
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise ConfigError("phrases must be a list of texts.")
    if not phrases:
        raise ConfigError("There is no phrase to look for; write one a line.")
    try:
        content = base64.b64decode(text_of(values, "image"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("image must be a file in base64.") from error
    if not 0 < len(content) <= MAX_IMAGE_BYTES:
        raise ConfigError(f"The image must have from 1 to {MAX_IMAGE_BYTES:,} bytes.")
    name = Path(text_of(values, "name", "image.png")).name or "image.png"
    sentence = text_of(values, "sentence", "") or None
    return PhraseRequest(content, name[:200], tuple(phrases), sentence, values.get("independent") is True)


def ground_routes(desk: PhraseDesk) -> list[BaseRoute]:
    """Return the addresses of the tab."""

    async def start(request: Request) -> Response:
        values = await body_of(request)
        return _answer(await run_in_threadpool(lambda: desk.start(phrase_request(values))))

    def state(request: Request) -> Response:
        return _answer(desk.state)

    def stop(request: Request) -> Response:
        return _answer(desk.stop())

    return [
        Route("/api/ground", start, methods=["POST"]),
        Route("/api/ground/state", state),
        Route("/api/ground/stop", stop, methods=["POST"]),
    ]


def _answer(state: State) -> Response:
    return JSONResponse(asdict(state))
