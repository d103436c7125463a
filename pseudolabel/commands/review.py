"""The command `review`: a page to look at masks, throw out the bad ones and mend others."""

from pathlib import Path
from typing import Any


def review(
    store: Path,
    port: int = 8765,
    host: str = "127.0.0.1",
    open: bool = False,
    root: Path | None = None,
    predictions: Path | None = None,
    who: str = "",
    model: str | None = None,
    model_config: Path | None = None,
    device: str = "auto",
) -> None:
    """Serve a page to review a store's masks: accept, reject, correct, retune.

    Images come in order of doubt. Decisions are lines of review.jsonl in the store and corrected masks lie in
    corrected/ beside the machine's; `segtrain fit`, `export` and `report` follow them, `generate` never deletes them.
    The page is reached from this machine alone. From another one, best through ssh -L 8765:127.0.0.1:8765.

    Args:
        store: Folder of the mask store, of `pseudolabel generate` or of `segtrain predict`.
        port: Port of the page; 0 takes any that is free.
        host: Address to listen at. Another than 127.0.0.1 lets other machines in, who must have the printed token.
        open: Open the page in a browser.
        root: Folder of the images, if it is not where the store says.
        predictions: Store of `segtrain predict` for the same images; where the network disagrees, there is doubt.
        who: Name that decisions carry until the page is told another.
        model: Diffusion model for a second tab, which finds phrases in an image that is dropped there (see `ground`).
        model_config: Configuration file of `ground` or `generate` for that model; its model.id serves without --model.
        device: Where that model runs: auto, cpu, cuda, cuda:1.

    """
    from data.store.store import MaskStore
    from pseudolabel.review.desk import Desk
    from pseudolabel.review.doubt import disagreements
    from pseudolabel.review.serving import bind, need_extra, serve

    need_extra()
    from pseudolabel.review.server import review_app

    others = None if predictions is None else MaskStore.open(predictions)
    found = {} if others is None else disagreements(MaskStore.open(store), others)
    desk = Desk(Path(store), root, others, found)
    more, shown = _phrases(model, model_config, device)
    address = bind(host, port)
    print(f"{store}: {desk.describe()}.")
    if address.token:
        print(f"WARNING: other machines can reach this page ({host}). Whoever has the address below can see the images")
        print("         and decide; nothing is encrypted on its way. Safer: --host 127.0.0.1 and ssh -L.")
    serve(review_app(desk, who, more, shown), address, open)
    print(f"\n{store}: {desk.describe()}; decisions are in {Path(store) / 'review.jsonl'}.")
    print(f"Next: segtrain fit --data.store {store}     leaves out what was rejected")


def _phrases(model: str | None, config: Path | None, device: str) -> tuple[list[Any], str]:
    """Return the addresses of the tab for phrases and its model's name; nothing without a model."""
    if model is None and config is None:
        return [], ""
    from dataclasses import replace

    from pseudolabel.ground.config import ground_config
    from pseudolabel.ground.localizer import Localizer
    from pseudolabel.ground.tab import PhraseDesk, ground_routes

    settings = ground_config(config)
    if model is not None:
        settings = replace(settings, model=replace(settings.model, id=model))
    flags = [] if config is None else ["--config", str(config)]
    flags += [] if model is None else ["--model.id", model]
    flags += [] if device == "auto" else ["--device", device]
    desk = PhraseDesk(lambda: Localizer.from_pretrained(config=settings, device=device), tuple(flags))
    return ground_routes(desk), str(settings.model.id)
