"""Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391): a classifier trained on the same image-level labels.

The classic baseline of weak supervision. It is EfficientNet-Lite0 with the demo's ImageNet weights, its last stride
taken out so that its map has a sixteenth of the image's side, trained on the demo's train scenes by binary
cross-entropy.
"""

from collections.abc import Sequence

import numpy as np
import timm
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from benchmarks.common import DEMO_CLASSES, HERE
from data.demo.world import Scene

WEIGHTS = HERE.parent / "data/demo/encoder/tf_efficientnet_lite0.safetensors"
SIDE_PX = 160
EPOCHS = 5
BATCH = 16
LEARNING_RATE = 1e-3


def train(scenes: Sequence[Scene], epochs: int = EPOCHS, seed: int = 0) -> nn.Module:
    """Train the classifier on the scenes' labels; their masks are not looked at."""
    torch.manual_seed(seed)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=len(DEMO_CLASSES), output_stride=16)
    network.load_state_dict(load_file(WEIGHTS), strict=False)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    order = np.random.default_rng(seed)
    steps = epochs * -(-len(scenes) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.2)
    network.train()
    with tqdm(total=steps, desc="train the classifier", leave=False) as bar:
        for _ in range(epochs):
            for batch in np.array_split(order.permutation(len(scenes)), steps // epochs):
                chosen = [scenes[index] for index in batch]
                images = [scene.rgb[:, :: 1 if order.random() < 0.5 else -1] for scene in chosen]
                logits = network(torch.cat([_input(rgb) for rgb in images]))
                loss = functional.binary_cross_entropy_with_logits(logits, _targets(chosen))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return network.eval()


def _input(rgb_u8: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "1 3 side side"]:
    """Return an image as this encoder was trained to see it: (x - 0.5) / 0.5."""
    image = torch.from_numpy(rgb_u8.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return functional.interpolate(image, (SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False, antialias=True)


def _targets(scenes: Sequence[Scene]) -> Float[Tensor, "batch classes"]:
    targets = torch.zeros(len(scenes), len(DEMO_CLASSES))
    for row, scene in zip(targets, scenes, strict=True):
        row[[label - 1 for label in scene.labels]] = 1
    return targets


def soft_maps(
    network: nn.Module, rgb_u8: UInt8[np.ndarray, "height width 3"], labels: Sequence[int]
) -> Float[Tensor, "classes grid_h grid_w"]:
    """Return ReLU(sum_k alpha_k A_k) of each label, scaled to 0..1; alpha is the gradient's mean over places."""
    features = network.forward_features(_input(rgb_u8))
    logits = network.forward_head(features)[0]
    maps = []
    for label in labels:
        [gradient] = torch.autograd.grad(logits[label - 1], features, retain_graph=True)
        alpha = gradient.mean(dim=(-2, -1), keepdim=True)
        maps.append(functional.relu((alpha * features).sum(dim=1))[0].detach())
    stacked = torch.stack(maps)
    return stacked / stacked.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
