"""The training of every method: views of the photographs, noise, a sentence with the token, the prediction's error.

Everything drawn at random in a step depends on the seed and the step's number alone, so that a run that was interrupted
ends with the very bytes of one that was not.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.config import to_plain
from data.console import progress_bar
from data.errors import ConfigError, StoreError
from pseudolabel.personalize.config import PersonalizeConfig
from pseudolabel.personalize.custom_diffusion import start_custom, write_custom
from pseudolabel.personalize.dreambooth import start_dreambooth, write_model
from pseudolabel.personalize.inversion import settle_token, start_token, write_token
from pseudolabel.personalize.looking import TOGETHER, Looking, class_maps, looking_loss
from pseudolabel.personalize.lora import start_lora, write_lora
from pseudolabel.personalize.photographs import LEAST, cut_views, encode_views, read_photographs
from pseudolabel.personalize.steps import optimise, restore, save_state, schedule
from pseudolabel.softmaps.diffusion.draw import draw, painter_of
from pseudolabel.softmaps.diffusion.families import native_px
from pseudolabel.softmaps.diffusion.fetch import find_model, read_family
from pseudolabel.softmaps.diffusion.load import load_parts, prediction_type
from pseudolabel.softmaps.diffusion.parts import Parts, pick_device
from pseudolabel.softmaps.diffusion.unet import encode_text, list_layers, run
from pseudolabel.softmaps.layers import resolve_layers
from pseudolabel.softmaps.passes import stack_texts
from pseudolabel.softmaps.prompt import expand_placeholders
from pseudolabel.softmaps.tokens import token_ids

VIEWS = 64  # of the photographs, cut out once; every step takes some of them
LEAST_SIDE = 0.8  # of a view, of the photograph's shorter side
WEIGHT_RATES = {"lora": 1e-4, "custom_diffusion": 1e-5, "dreambooth": 5e-6, "textual_inversion": 0.0}
DRAW_STEPS, DRAW_GUIDANCE, DRAWN_AT_ONCE = 20, 3.0, 8
NO_MATTER = ("save_every", "device", "output", "images", "others")  # settings that change no weight


@dataclass(frozen=True)
class Learned:
    """What a run gave.

    Attributes:
        options: what a command is to be given to use it.
        first: mean loss of the first tenth of the steps.
        last: mean loss of the last tenth.
        photographs: how many there were.

    """

    options: tuple[str, ...]
    first: float
    last: float
    photographs: int


@dataclass(eq=False)
class Progress:
    """Kept in a checkpoint beside the weights: the settings it belongs to, and the losses so far."""

    settings: str
    path: Path
    losses: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"settings": self.settings, "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            StoreError: it was made with other settings or photographs.

        """
        if state["settings"] != self.settings:
            raise StoreError(
                f"{self.path} is the checkpoint of a run with other settings or photographs: use those, delete it, or "
                "choose another --output"
            )
        self.losses = list(state["losses"])


@dataclass(frozen=True, eq=False)
class Trainee:
    """The weights in training, and how they are written.

    Attributes:
        token: the token's vectors, by text encoder.
        weights: the method's weights; none for textual inversion.
        write: writes the files and returns the options that name them.

    """

    token: list[nn.Parameter]
    weights: list[nn.Parameter]
    write: Callable[[], tuple[str, ...]]


def token_path(output: Path) -> Path:
    """Return where the token goes that a LoRA or Custom Diffusion is learned with."""
    return output.with_name(f"{output.stem}_token{output.suffix}")


def checkpoint_path(output: Path) -> Path:
    """Return where the checkpoint of a run lies."""
    return output.with_name(f".{output.name}.checkpoint")


def check_output(config: PersonalizeConfig) -> None:
    """Check where the result goes, before anything is loaded.

    Raises:
        ConfigError: a name of the wrong form.
        StoreError: there is something already.

    """
    is_file = config.method != "dreambooth"
    if is_file != (config.output.suffix == ".safetensors"):
        form = "a file that ends in .safetensors" if is_file else "a folder, not a file"
        raise ConfigError(f"--output is {str(config.output)!r}: with --method {config.method} it must be {form}")
    second = [token_path(config.output)] if config.method in ("lora", "custom_diffusion") else []
    for path in (config.output, *second):
        if path.exists():
            raise StoreError(f"{path} exists already: choose another --output, or delete it")


def settings_digest(config: PersonalizeConfig, images: Sequence[np.ndarray], model: str) -> str:
    """Return a hash of everything that decides the learned weights."""
    settings = {name: value for name, value in to_plain(config).items() if name not in NO_MATTER}
    digest = blake2b(f"{model}{settings}".encode(), digest_size=16)
    for image in images:
        digest.update(str(image.shape).encode() + image.tobytes())
    return digest.hexdigest()


def learn(config: PersonalizeConfig) -> Learned:
    """Learn a thing from photographs and write the files; the same call goes on where one was interrupted.

    Raises:
        UserError: a wrong setting, photograph, model or output; nothing is written then.

    """
    check_output(config)
    images = read_photographs(config.images, LEAST)
    others = read_photographs(config.others, 1, "others") if config.others is not None and config.look.weight else []
    if read_family(config.model) != "unet":
        raise ConfigError(f"{config.model.id} is a transformer: only U-Nets can be taught here; change --model.id")
    parts = load_parts(config.model, pick_device(config.device, "device"), torch.float32)
    progress = Progress(settings_digest(config, [*images, *others], parts.fingerprint), checkpoint_path(config.output))
    config.output.parent.mkdir(parents=True, exist_ok=True)
    views = encode_views(parts, cut_views(images, VIEWS, native_px(parts), config.seed, LEAST_SIDE))
    looking = prepare_looking(config, parts, views, others) if config.look.weight else None
    trainee = start(config, parts)
    check_window(config, parts)
    # On a CPU the fused kernel's backward pass takes a third longer than plain products.
    with sdpa_kernel(SDPBackend.MATH) if parts.device.type == "cpu" else contextlib.nullcontext():
        train(config, parts, trainee, views, looking, progress)
    settle_token(parts, config.token, trainee.token)
    options = trainee.write()
    progress.path.unlink(missing_ok=True)
    tenth = max(1, len(progress.losses) // 10)
    first, last = (float(np.mean(part)) for part in (progress.losses[:tenth], progress.losses[-tenth:]))
    return Learned(options, first, last, len(images))


def check_window(config: PersonalizeConfig, parts: Parts) -> None:
    """Check that the longest sentence fits the text encoder.

    Raises:
        ConfigError: it does not.

    """
    tokenizer = parts.tokenizers[0]
    sentences = [text.format(config.token) for text in config.templates]
    sentences += [text.format(config.token, config.init_word) for text in TOGETHER]
    longest = max(len(token_ids(expand_placeholders(text, tokenizer), tokenizer)) + 2 for text in sentences)
    if longest > parts.window:
        raise ConfigError(
            f"--vectors is {config.vectors}: a sentence would have {longest} tokens, the text encoder reads "
            f"{parts.window}; use fewer, or shorter --templates"
        )


def start(config: PersonalizeConfig, parts: Parts) -> Trainee:
    """Add the token and the method's weights to a model, and return them with what writes them.

    Raises:
        ConfigError: the class word is not one token of the vocabulary.
        ModelError: the token is in the vocabulary already.

    """
    token = start_token(parts, config.token, config.init_word, config.vectors, config.seed)
    output = config.output

    def with_token(option: str) -> tuple[str, ...]:
        return option, f"--model.tokens {write_token(token_path(output), config.token, token)}"

    match config.method:
        case "textual_inversion":
            return Trainee(token, [], lambda: (f"--model.tokens {write_token(output, config.token, token)}",))
        case "lora":
            paths = start_lora(parts.denoiser, config.rank, config.seed)

            def write_both() -> tuple[str, ...]:
                write_lora(output, paths)
                return with_token(f"--model.lora {output}")

            return Trainee(token, [factor for pair in paths.values() for factor in pair], write_both)
        case "custom_diffusion":
            weights = start_custom(parts.denoiser)

            def write_custom_and_token() -> tuple[str, ...]:
                write_custom(output, weights)
                return with_token(f"--model.custom_diffusion {output}")

            return Trainee(token, list(weights.values()), write_custom_and_token)
        case "dreambooth":
            source = find_model(config.model)

            def write_folder() -> tuple[str, ...]:
                write_model(output, source, parts)
                return (f"--model.id {output}",)

            return Trainee(token, start_dreambooth(parts.denoiser), write_folder)


def prepare_looking(
    config: PersonalizeConfig,
    parts: Parts,
    views: Float[Tensor, "views channels height width"],
    others: Sequence[np.ndarray],
) -> Looking:
    """Get pictures of others, drawn by the model where there are none, and where the class word looks in them all."""
    word, count, look = config.init_word, config.look.drawn, config.look
    layers = resolve_layers(list_layers(parts.denoiser), look.cross_layers, "look.cross_layers")
    if others:
        pictures = cut_views(others, max(count, len(others)), native_px(parts), config.seed + 1, LEAST_SIDE)
    else:
        painter = painter_of(parts, config.model)
        seeds = range(config.seed * count, (config.seed + 1) * count)
        parts_of = [seeds[index : index + DRAWN_AT_ONCE] for index in range(0, count, DRAWN_AT_ONCE)]
        prompt = config.templates[0].format(word)
        bar = progress_bar(parts_of, desc=f"draw {word}", unit="batch")
        drawn = [draw(painter, [prompt] * len(part), part, DRAW_STEPS, DRAW_GUIDANCE) for part in bar]
        pictures = list(np.concatenate(drawn))
    latents = encode_views(parts, pictures)
    maps = [class_maps(parts, layers, each, word, look, config.seed) for each in (views, latents)]
    return Looking(layers, views, latents, *maps)


def train(
    config: PersonalizeConfig,
    parts: Parts,
    trainee: Trainee,
    views: Float[Tensor, "views channels height width"],
    looking: Looking | None,
    progress: Progress,
) -> None:
    """Train for the configured number of steps, from the checkpoint where there is one.

    Raises:
        ConfigError: the loss is not finite.
        StoreError: the checkpoint belongs to another run.

    """
    weight_rate = WEIGHT_RATES[config.method] if config.weight_rate is None else config.weight_rate
    every = [*trainee.token, *trainee.weights]
    # Each group's rate is that of the token or of the weights, times the schedule's factor.
    groups = [
        {"params": trainee.token, "weight_decay": 0.0, "rate": config.token_rate},
        {"params": trainee.weights, "weight_decay": 0.01, "rate": weight_rate},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0)
    kept = {"weights": nn.ParameterList(every), "optimizer": optimizer, "progress": progress}
    first = restore(progress.path, parts.device, **kept)
    velocity = prediction_type(config.model) == "v_prediction"
    bar = progress_bar(range(first, config.steps), desc=config.method, initial=first, total=config.steps, unit="step")
    for step in bar:
        loss = step_loss(config, parts, views, looking, velocity, step)
        factor = schedule(step, config.steps, decay_from=0.6, warm_up=max(1, config.steps // 20))
        try:
            optimise(loss, every, optimizer, factor)
        except FloatingPointError as error:
            raise ConfigError(
                f"The loss is {loss.item()} at step {step}: use a smaller --token_rate or --weight_rate; the same "
                "command goes on from the last checkpoint"
            ) from error
        progress.losses.append(loss.item())
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save_state(progress.path, step + 1, **kept)
        bar.set_postfix({"loss": f"{np.mean(progress.losses[-20:]):.4f}"})


def step_loss(
    config: PersonalizeConfig,
    parts: Parts,
    views: Float[Tensor, "views channels height width"],
    looking: Looking | None,
    velocity: bool,
    step: int,
) -> Tensor:
    """Return the loss of one step: the error of what the model predicts, and, if wanted, of where the token looks."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    count = config.batch_size
    latents = views[torch.randint(len(views), (count,), generator=generator)]
    timesteps = torch.randint(*config.timesteps, (count,), generator=generator)
    chosen = torch.randint(len(config.templates), (count,), generator=generator).tolist()
    tokenizer = parts.tokenizers[0]
    sentences = [expand_placeholders(config.templates[index].format(config.token), tokenizer) for index in chosen]
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    kept = parts.alphas_cumprod[timesteps].to(latents)[:, None, None, None]
    noised = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    image_hw = (latents.shape[-2] * parts.vae_factor, latents.shape[-1] * parts.vae_factor)
    text = stack_texts([encode_text(parts, sentence) for sentence in sentences])
    predicted = run(parts, noised, timesteps.tolist(), text, image_hw)
    target = kept.sqrt() * noise - (1 - kept).sqrt() * latents if velocity else noise
    loss = (predicted.float() - target).square().mean()
    if looking is not None:
        shown = looking_loss(parts, looking, config.token, config.init_word, config.look, count, generator)
        loss = loss + config.look.weight * shown
    return loss
