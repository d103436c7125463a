"""The pipeline against a slow reference written straight from the formulas, in plain loops, float64 and whole matrices.

It shares no code with the package: inputs of the attention modules are caught by hooks, projected, and everything after
that is numpy.
"""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.config import DiffusionConfig

LABELS = (3, 7, 20)
SPANS = ((4, 5), (7,), (9, 10, 11))
CROSS = (
    "down_blocks.1.attentions.0",
    "down_blocks.1.attentions.1",
    "mid_block.attentions.0",
    "up_blocks.1.attentions.2",
)
SELF = "up_blocks.2.attentions.0"
LATENT_HW = (12, 20)
TIMESTEP = 150


def _reference_alpha_bar(timestep: int) -> float:
    product = 1.0
    for step in range(timestep + 1):
        beta = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * step / 999) ** 2
        product *= 1 - beta
    return product


def _reference_probabilities(module, hidden, text) -> np.ndarray:
    """Attention of one element, (heads, rows, columns), by softmax in float64."""
    source = hidden if text is None else text
    queries = hidden @ module.to_q.weight.detach().double().numpy().T
    keys = source @ module.to_k.weight.detach().double().numpy().T
    width = queries.shape[1] // module.heads
    heads = []
    for head in range(module.heads):
        part = slice(head * width, (head + 1) * width)
        scores = queries[:, part] @ keys[:, part].T / np.sqrt(width)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        heads.append(weights / weights.sum(axis=1, keepdims=True))
    return np.stack(heads)


def _reference_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel centres, borders repeated."""
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y = max((row + 0.5) * image.shape[0] / height - 0.5, 0)
            x = max((column + 0.5) * image.shape[1] / width - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def _reference_min_max(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def _reference_mask(values: np.ndarray, theta: float, clamp: bool) -> np.ndarray:
    levels = np.floor(values * 255 + 1e-4).astype(np.uint8)  # the small number undoes rounding just below a whole level
    binary = (levels > int(theta * levels.max())).astype(np.uint8)
    mask = np.zeros(values.shape)
    for contour in cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, width, height = cv2.boundingRect(contour)
        end_x, end_y = x + width, y + height
        if clamp:
            end_x, end_y = min(end_x, values.shape[1] - 1), min(end_y, values.shape[0] - 1)
        mask[y:end_y, x:end_x] = 1
    return mask


def _catch_inputs(unet, names, noised, embeds) -> dict:
    """Hidden states and text of chosen attention modules in one ordinary forward pass."""
    caught, hooks = {}, []
    for name in names:

        def hook(module, args, kwargs, name=name):
            text = kwargs.get("encoder_hidden_states")
            caught[name] = (args[0], text)

        hooks.append(unet.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
    with torch.no_grad():
        unet(noised, TIMESTEP, encoder_hidden_states=embeds.expand(len(noised), -1, -1))
    for hook in hooks:
        hook.remove()
    return caught


def _reference(unet, latents, noise, embeds, theta, tau, clamp_box, clamp_background) -> dict:
    alpha_bar = _reference_alpha_bar(TIMESTEP)
    noised = np.sqrt(alpha_bar) * latents.double().numpy() + np.sqrt(1 - alpha_bar) * noise.double().numpy()
    names = [f"{name}.transformer_blocks.0.attn2" for name in CROSS] + [f"{SELF}.transformer_blocks.0.attn1"]
    caught = _catch_inputs(unet, names, torch.from_numpy(noised).float(), embeds)
    sizes = {"down_blocks.1": 2, "mid_block": 4, "up_blocks.1": 2, "up_blocks.2": 1}
    grid = LATENT_HW
    result = {"cross": {name: [] for name in CROSS}, "squared": [], "refined": []}
    for draw in range(len(noise)):
        total = np.zeros((len(SPANS), *grid))
        for name in CROSS:
            hidden, text = caught[f"{name}.transformer_blocks.0.attn2"]
            module = unet.get_submodule(f"{name}.transformer_blocks.0.attn2")
            probabilities = _reference_probabilities(module, hidden[draw].double().numpy(), text[draw].double().numpy())
            mean = probabilities.mean(axis=0)
            factor = sizes[name.split(".attentions")[0]]
            maps = []
            for row, span in enumerate(SPANS):
                flat = sum(mean[:, token] for token in span) / len(span)
                maps.append(flat.reshape(LATENT_HW[0] // factor, LATENT_HW[1] // factor))
                total[row] += _reference_bilinear(maps[-1], *grid)
            result["cross"][name].append(np.stack(maps))
        hidden, _ = caught[f"{SELF}.transformer_blocks.0.attn1"]
        module = unet.get_submodule(f"{SELF}.transformer_blocks.0.attn1")
        matrix = _reference_probabilities(module, hidden[draw].double().numpy(), None).mean(axis=0)
        squared = matrix @ matrix
        result["squared"].append(squared)
        refined = []
        for row in range(len(SPANS)):
            scaled = _reference_min_max(total[row] / len(CROSS))
            boxed = scaled * _reference_mask(scaled, theta, clamp_box)
            refined.append(_reference_min_max((squared @ boxed.reshape(-1)).reshape(grid)))
        result["refined"].append(np.stack(refined))
    maps = np.mean(result["refined"], axis=0)
    margin = 2 * tau - maps.max(axis=0)
    result["background"] = (np.maximum(margin, 0) if clamp_background else margin) ** 2
    result["maps"] = maps
    return result


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("dense_cells", [0, 10_000])
def test_the_pipeline_agrees_with_the_formulas(bare_unet, tiny_config, monkeypatch, quirks, dense_cells):
    monkeypatch.setattr("pseudolabel.softmaps.affinity.DENSE_CELLS", dense_cells)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, *LATENT_HW, generator=generator)
    noise = torch.randn(3, 4, *LATENT_HW, generator=generator)
    embeds = torch.randn(1, 77, 16, generator=generator)
    theta, tau = (0.3, 0.3)
    config = replace(
        tiny_config,
        attention=replace(tiny_config.attention, cross_layers=CROSS, self_layers=(SELF,)),
        affinity=replace(tiny_config.affinity, theta=theta, clamp_box_edge=quirks),
        fuse=replace(tiny_config.fuse, threshold=tau, clamp=not quirks),
        diffusion=DiffusionConfig(timesteps=(TIMESTEP,)),
    )
    pipeline = Pipeline.from_unet(bare_unet, config)
    got = pipeline.explain(None, LABELS, latents=latents, noise=noise, prompt_embeds=embeds, spans=SPANS)
    want = _reference(bare_unet, latents, noise, embeds, theta, tau, quirks, not quirks)

    for name in CROSS:
        np.testing.assert_allclose(got.cross[name].numpy(), np.stack(want["cross"][name]), atol=1e-5)
    identity = torch.eye(LATENT_HW[0] * LATENT_HW[1])
    for draw in range(3):
        applied = got.self_affinity(identity, draw=draw, times=2)
        np.testing.assert_allclose(applied.numpy(), want["squared"][draw], atol=1e-5)
    np.testing.assert_allclose(got.refined.numpy(), np.stack(want["refined"]), atol=1e-4)
    np.testing.assert_allclose(got.background, want["background"], atol=1e-4)
    scores = np.concatenate([want["background"][None], want["maps"]])
    ordered = np.sort(scores, axis=0)
    decided = ordered[-1] - ordered[-2] > 1e-3
    assert decided.mean() > 0.9
    labels = np.array([0, *LABELS])[scores.argmax(axis=0)]
    np.testing.assert_array_equal(got.cell_labels[decided], labels[decided])
    assert len(np.unique(labels)) >= 3


def test_given_timestep_replaces_the_settings(bare_unet, tiny_config):
    pipeline = Pipeline.from_unet(bare_unet, tiny_config)
    inputs = {"latents": torch.randn(4, 8, 8), "noise": torch.randn(1, 4, 8, 8), "prompt_embeds": torch.randn(77, 16)}
    early = pipeline.explain(None, (1,), spans=[(5,)], timestep=10, **inputs)
    late = pipeline.explain(None, (1,), spans=[(5,)], timestep=900, **inputs)
    assert early.timesteps == (10,)
    assert not torch.allclose(early.class_maps, late.class_maps)
