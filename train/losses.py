"""Losses for masks with an ignore band and with mistakes in them: pure functions on scores and labels.

Shape, of all of them:
    - scores: (N, C, H, W), unnormalised.
    - labels: (N, H, W), class ids, `IGNORE` where nothing is known.
    - weights: (N, H, W), at least 0; optional.
    - result: a scalar, at least 0: the weighted mean over the counted pixels, 0 where there is none.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from data.classes import IGNORE
from data.config import changed, require

Scores = Float[Tensor, "n classes height width"]
Labels = Int[Tensor, "n height width"]
Weights = Float[Tensor, "n height width"]


@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    kind: Literal["cross_entropy", "balanced", "bootstrapped", "generalised"] = "cross_entropy"
    """Plain; foreground and background averaged apart; or one of two for masks with mistakes."""
    bootstrap_beta: float = 0.8
    """bootstrapped: share of the given label in the target; the rest is the network's own decision."""
    generalised_q: float = 0.7
    """generalised: 0 is cross-entropy, 1 the mean absolute error, which noise hardly moves."""
    label_smoothing: float = 0.0
    """cross_entropy: share of the target that is spread over all classes."""
    scales: tuple[float, ...] = (1.0,)
    """The loss is summed over the image at these scales (DeepLabV2: 1, 0.75, 0.5)."""
    max_over_scales: bool = False
    """Add the loss of the largest score over the scales (DeepLabV2)."""

    def __post_init__(self) -> None:
        for name in ("bootstrap_beta", "generalised_q"):
            require(f"model.loss.{name}", getattr(self, name), 0 <= getattr(self, name) <= 1, "from 0 to 1")
        smoothing = self.label_smoothing
        require("model.loss.label_smoothing", smoothing, 0 <= smoothing < 1, "at least 0 and below 1")
        scales = bool(self.scales) and all(0.1 <= scale <= 8 for scale in self.scales)
        require("model.loss.scales", self.scales, scales, "one or more numbers from 0.1 to 8")

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect with the others."""
        reader = {
            "bootstrap_beta": "bootstrapped",
            "generalised_q": "generalised",
            "label_smoothing": "cross_entropy",
        }
        unread = [name for name, kind in reader.items() if kind != self.kind]
        return changed(self, [*unread, *(["max_over_scales"] if len(self.scales) == 1 else [])])


def segmentation_loss(config: LossConfig, scores: Scores, labels: Labels, weights: Weights | None = None) -> Tensor:
    """Return the configured loss of one set of scores."""
    match config.kind:
        case "cross_entropy":
            return cross_entropy(scores, labels, weights, config.label_smoothing)
        case "balanced":
            return balanced_cross_entropy(scores, labels, weights)
        case "bootstrapped":
            return bootstrapped_cross_entropy(scores, labels, weights, config.bootstrap_beta)
        case "generalised":
            return generalised_cross_entropy(scores, labels, weights, config.generalised_q)


def cross_entropy(
    scores: Scores, labels: Labels, weights: Weights | None = None, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean of -log p(label)."""
    each = F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="none", label_smoothing=label_smoothing)
    return _mean(each, labels != IGNORE, weights)


def balanced_cross_entropy(scores: Scores, labels: Labels, weights: Weights | None = None) -> Float[Tensor, ""]:
    """Mean over foreground pixels plus mean over background pixels of -log p(label).

    Without it a network that begins far from the solution can settle on "everything is background".
    Reference: Huang et al., CVPR 2018 (DSRG), equation 3; users of the paper's trainer (kazuto1011/deeplab-pytorch)
    needed it with image-level supervision and ImageNet weights.
    """
    each = F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="none")
    foreground = (labels != 0) & (labels != IGNORE)
    return _mean(each, foreground, weights) + _mean(each, labels == 0, weights)


def bootstrapped_cross_entropy(
    scores: Scores, labels: Labels, weights: Weights | None = None, beta: float = 0.8
) -> Float[Tensor, ""]:
    """Cross-entropy against beta * label + (1 - beta) * the network's own hard decision.

    Reference: Reed et al., arXiv 1412.6596, section 3.3 ("hard bootstrapping").
    """
    log_p = F.log_softmax(scores, dim=1)
    counted = labels != IGNORE
    given = log_p.gather(1, labels.where(counted, 0).unsqueeze(1)).squeeze(1)
    own = log_p.amax(dim=1)  # the decision itself carries no gradient, its log-probability does
    return _mean(-(beta * given + (1 - beta) * own), counted, weights)


def generalised_cross_entropy(
    scores: Scores, labels: Labels, weights: Weights | None = None, q: float = 0.7
) -> Float[Tensor, ""]:
    """Mean of (1 - p(label)^q) / q; q -> 0 is cross-entropy.

    Reference: Zhang and Sabuncu, NeurIPS 2018 (arXiv 1805.07836), equation 6.
    """
    log_p = F.log_softmax(scores, dim=1)
    counted = labels != IGNORE
    given = log_p.gather(1, labels.where(counted, 0).unsqueeze(1)).squeeze(1)
    each = -given if q == 0 else -torch.expm1(q * given) / q
    return _mean(each, counted, weights)


def _mean(each: Weights, counted: Tensor, weights: Weights | None) -> Float[Tensor, ""]:
    share = counted.to(each.dtype) if weights is None else counted * weights.to(each.dtype)
    return (each * share).sum() / share.sum().clamp_min(1e-6)
