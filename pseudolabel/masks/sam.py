"""Masks sharpened by a Segment Anything model, SAM 1 or 2; the only file that touches transformers' SAM.

Source: Kirillov et al., "Segment Anything", ICCV 2023; Ravi et al., "SAM 2", 2024; what is asked and what is made of
the answers is in `sam_prompts`. An image is embedded once; all its components, or points, are asked about with that.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from data.errors import ModelError
from pseudolabel.masks.config import SamConfig
from pseudolabel.masks.memory import gpu_memory_for
from pseudolabel.masks.sam_prompts import (
    Component,
    Prompt,
    components,
    is_unchanged,
    labels_by_overlap,
    overlap,
    prompt_of,
)
from pseudolabel.softmaps.config import local_folder

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, which both kinds were trained with
TOGETHER = 16  # prompts in one batch
SURE, STABLE, SAME_BOX = 0.88, 0.95, 0.7  # of masks of everything, as SAM's own generator has them


@dataclass(frozen=True)
class Sharpened:
    """What SAM made of the labels of an image.

    Attributes:
        argmax: class ids.
        touched: where SAM decided; elsewhere the labels are as they were.
        objects: number of components.
        changed: number of those that SAM's answer replaced.

    """

    argmax: UInt8[np.ndarray, "height width"]
    touched: Bool[np.ndarray, "height width"]
    objects: int
    changed: int


class Sam:
    """A model with its image size, on a device."""

    def __init__(self, model: Any, stretches: bool, device: str) -> None:
        """Keep the model; `stretches`: images are made square (SAM 2), else padded on the right and bottom (SAM 1)."""
        self.model, self.stretches, self.device = model.to(device).eval(), stretches, device
        self.side = int(model.config.prompt_encoder_config.image_size)

    def scaled_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the image inside the model's square."""
        if self.stretches:
            return self.side, self.side
        scale = self.side / max(image_hw)
        return max(1, int(image_hw[0] * scale + 0.5)), max(1, int(image_hw[1] * scale + 0.5))

    @torch.inference_mode()
    def embed(self, rgb_u8: UInt8[np.ndarray, "height width 3"]) -> list[Tensor]:
        """Return the embeddings of an image; SAM 1 has one, SAM 2 one for each resolution."""
        image = torch.from_numpy(np.array(rgb_u8)).to(self.device).permute(2, 0, 1)[None].float()
        size_hw = self.scaled_hw((rgb_u8.shape[0], rgb_u8.shape[1]))
        image = functional.interpolate(image, size_hw, mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(each, device=self.device)[:, None, None] for each in (MEAN, DEVIATION))
        padding = (0, self.side - size_hw[1], 0, self.side - size_hw[0])
        found = self.model.get_image_embeddings(functional.pad((image - mean) / deviation, padding))
        return [found] if isinstance(found, Tensor) else list(found)

    def ask(
        self,
        embeddings: Sequence[Tensor],
        image_hw: tuple[int, int],
        points: Float[np.ndarray, "objects points 2"],
        labels: Int[np.ndarray, "objects points"],
        boxes: Float[np.ndarray, "objects 4"] | None = None,
        logits: Float[np.ndarray, "objects height width"] | None = None,
    ) -> tuple[Float[Tensor, "objects 3 small small"], Float[Tensor, "objects 3"]]:
        """Return three answers for each object, as logits over the model's square, and SAM's own guess of their IoU."""
        height, width = self.scaled_hw(image_hw)
        scale = torch.tensor([width / image_hw[1], height / image_hw[0]], device=self.device)
        placed = torch.from_numpy(points).to(self.device)
        given: dict[str, Any] = {
            "input_points": (placed * scale)[:, None],
            "input_labels": torch.from_numpy(labels).to(self.device)[:, None],
        }
        if boxes is not None:
            given["input_boxes"] = (torch.from_numpy(boxes).to(self.device) * scale.repeat(2))[:, None]
        if logits is not None:
            given["input_masks"] = self._mask_input(torch.from_numpy(logits).to(self.device), (height, width))
        # A mask prompt belongs to an image of the batch, not to a point: each object is an image of its own.
        own = [each.expand(len(points), *each.shape[1:]) for each in embeddings]
        output = self.model(image_embeddings=own if self.stretches else own[0], multimask_output=True, **given)
        return output.pred_masks[:, 0].float(), output.iou_scores[:, 0].float()

    def _mask_input(self, logits: Float[Tensor, "objects height width"], size_hw: tuple[int, int]) -> Tensor:
        """Return mask prompts at the model's size for them, what is no image being outside."""
        rows, columns = self.model.prompt_encoder.image_embedding_size
        small = (4 * rows * size_hw[0] // self.side or 1, 4 * columns * size_hw[1] // self.side or 1)
        resized = functional.interpolate(logits[:, None], small, mode="bilinear", antialias=True)
        lowest = logits.amin(dim=(1, 2), keepdim=True)[:, None]  # each object's own: others have no say in its answer
        padded = lowest.repeat(1, 1, 4 * rows, 4 * columns)
        padded[..., : small[0], : small[1]] = resized
        return padded

    def of_image(
        self, answers: Float[Tensor, "objects small small"], image_hw: tuple[int, int]
    ) -> Float[Tensor, "objects rows columns"]:
        """Return the part of answers that shows the image, at their own size: padding is nobody's mask."""
        height, width = self.scaled_hw(image_hw)
        rows, columns = (-(-side * answers.shape[-1] // self.side) for side in (height, width))
        return answers[:, :rows, :columns]

    def enlarged(
        self, answers: Float[Tensor, "objects small small"], image_hw: tuple[int, int]
    ) -> Float[Tensor, "objects height width"]:
        """Return answers at the image's size."""
        height, width = self.scaled_hw(image_hw)
        square = functional.interpolate(answers[:, None], (self.side, self.side), mode="bilinear", align_corners=False)
        inside = square[..., :height, :width]
        return functional.interpolate(inside, image_hw, mode="bilinear", align_corners=False)[:, 0]


@functools.lru_cache(maxsize=1)
def load_sam(model_id: str, device: str) -> Sam:
    """Load a model once for each process.

    Raises:
        ModelError: it cannot be loaded, or is no SAM.

    """
    from transformers import AutoConfig, Sam2Model, SamModel

    name = str(local_folder(model_id, "sam.id") or model_id)
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        match kind:
            case "sam":
                return Sam(_whole(SamModel, name), False, device)
            case "sam2" | "sam2_video":
                return Sam(_whole(Sam2Model, name), True, device)
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().split("\n")[0]
        raise ModelError(f"The model {model_id} cannot be loaded ({line}); --sam.id names a SAM") from error
    raise ModelError(f"{model_id} is a model of the kind {kind!r}; --sam.id must name one of SAM 1 or SAM 2")


def _whole(model_class: Any, name: str) -> Any:
    """Load all weights or none: transformers fills in what a file lacks with random numbers."""
    model, found = model_class.from_pretrained(name, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"its weights lack {missing[0]}")
    return model


@torch.inference_mode()
def sharpened(
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    argmax: UInt8[np.ndarray, "height width"],
    marginals: Float[np.ndarray, "rows height width"],
    labels: tuple[int, ...],
    config: SamConfig,
    device: str = "cpu",
) -> Sharpened:
    """Return the labels of an image after SAM.

    Args:
        rgb_u8: the image.
        argmax: class ids.
        marginals: of background and labels.
        labels: the image's class ids, as `marginals` has them from row 1 on.
        config: model and rule.
        device: where the model is, or is to be.

    Raises:
        ConfigError: the GPU's memory does not hold it.
        ModelError: as `load_sam`.

    """
    assert config.id is not None
    found = components(argmax)
    if not found:
        return Sharpened(argmax, np.zeros(argmax.shape, bool), 0, 0)
    with gpu_memory_for("SAM beside the rest", "a smaller one (--sam.id), or `pseudolabel refine` once masks are made"):
        sam = load_sam(config.id, device)
        embeddings = sam.embed(rgb_u8)
        match config.rule:
            case "prompts":
                support = {label: marginals[row] for row, label in enumerate(labels, start=1)}
                return _by_prompts(sam, embeddings, argmax, found, support, config)
            case "overlap":
                return _by_overlap(sam, embeddings, argmax, found, config)


def _by_prompts(
    sam: Sam,
    embeddings: list[Tensor],
    argmax: np.ndarray,
    found: list[Component],
    support: dict[int, np.ndarray],
    config: SamConfig,
) -> Sharpened:
    """Ask about each component, several rounds, and take what is near enough to it; surer answers lie on top."""
    result, touched, accepted = argmax.copy(), np.zeros(argmax.shape, bool), []
    for start in range(0, len(found), TOGETHER):
        part = found[start : start + TOGETHER]
        answers: list[tuple[float, np.ndarray]] = [(-np.inf, each.mask) for each in part]
        for _ in range(config.rounds):
            prompts = [prompt_of(mask, support[each.label]) for (_, mask), each in zip(answers, part, strict=True)]
            fresh = _best_answers(sam, embeddings, argmax.shape, prompts)
            answers = [new if new[1].any() else old for new, old in zip(fresh, answers, strict=True)]
        accepted += [
            (score, each, answer)
            for (score, answer), each in zip(answers, part, strict=True)
            if score >= config.least_score and overlap(answer, each.mask) >= config.least_iou
        ]
    for _, each, answer in accepted:
        result[each.mask] = 0
        touched |= each.mask | answer
    kept = result > 0  # what was not accepted stays as it was, also below another's answer
    touched &= ~kept
    for _, each, answer in sorted(accepted, key=lambda one: one[0]):
        result[answer & ~kept] = each.label
    return Sharpened(result, touched, len(found), sum(not np.array_equal(e.mask, a) for _, e, a in accepted))


def _best_answers(
    sam: Sam, embeddings: list[Tensor], image_hw: tuple[int, ...], prompts: Sequence[Prompt]
) -> list[tuple[float, np.ndarray]]:
    """Return, for each prompt, how good SAM thinks its best mask is, and that mask, which may be empty."""
    size_hw = (image_hw[0], image_hw[1])
    points, boxes = np.stack([each.points for each in prompts]), np.stack([each.box for each in prompts])
    labels, logits = np.array([each.labels for each in prompts]), np.stack([each.logits for each in prompts])
    answers, scores = sam.ask(embeddings, size_hw, points, labels, boxes, logits)
    best = scores.argmax(dim=1)
    chosen = answers[torch.arange(len(prompts), device=answers.device), best]
    masks = (sam.enlarged(chosen, size_hw) > 0).cpu().numpy()
    return list(zip(scores.amax(dim=1).tolist(), masks, strict=True))


def _by_overlap(
    sam: Sam, embeddings: list[Tensor], argmax: np.ndarray, found: list[Component], config: SamConfig
) -> Sharpened:
    """Give SAM's masks of everything to classes; a class that would change too much stays as it was."""
    size_hw = (argmax.shape[0], argmax.shape[1])
    result = labels_by_overlap(argmax, masks_of_everything(sam, embeddings, size_hw, config.points))
    for label in np.unique(argmax[argmax > 0]):
        if overlap(result == label, argmax == label) < config.least_iou:
            result = np.where(result == label, 0, result)
            result = np.where(argmax == label, label, result).astype(np.uint8)
    return Sharpened(result, result != argmax, len(found), sum(not is_unchanged(each, result) for each in found))


def masks_of_everything(
    sam: Sam, embeddings: list[Tensor], image_hw: tuple[int, int], side: int
) -> Iterator[Bool[np.ndarray, "height width"]]:
    """Yield the masks of a grid of points: sure and stable ones, of those with nearly one box the surest.

    Source: SAM's own mask generator, without crops: predicted IoU and stability (the IoU of the masks at logits 1 and
    -1) above its thresholds, non-maximum suppression of boxes.
    """
    from torchvision.ops import masks_to_boxes, nms

    steps = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(steps * image_hw[1], steps * image_hw[0]), axis=-1).reshape(-1, 1, 2).astype(np.float32)
    kept, sure = [], []
    for start in range(0, len(grid), TOGETHER):
        points = grid[start : start + TOGETHER]
        found = sam.ask(embeddings, image_hw, points, np.ones((len(points), 1), np.int64))
        answers, scores = (each.flatten(0, 1) for each in found)
        shown = sam.of_image(answers, image_hw)
        inner, outer = (shown > 1).sum(dim=(1, 2)), (shown > -1).sum(dim=(1, 2))
        good = (scores >= SURE) & (inner >= STABLE * outer) & (shown > 0).any(dim=2).any(dim=1)
        kept.append(answers[good])
        sure.append(scores[good])
    answers, scores = torch.cat(kept), torch.cat(sure)
    if not len(answers):
        return
    for index in nms(masks_to_boxes(sam.of_image(answers, image_hw) > 0), scores, SAME_BOX):
        mask = (sam.enlarged(answers[index][None], image_hw)[0] > 0).cpu().numpy()
        if mask.any():
            yield mask
