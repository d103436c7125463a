"""The training step, the schedule and the figures: what Lightning calls."""

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from data.classes import ClassSet
from data.config import require, to_plain
from data.errors import ConfigError, LabelError, ModelError
from data.scoring import boundary_counts, confusion_matrix, score
from train.callbacks import AveragedWeights
from train.checkpoint import CARD_KEY, RAW_WEIGHTS, make_card, unfit
from train.crf_tiles import blocks_of_large
from train.inference import InferenceConfig, padded_scores, probabilities, sharpen
from train.losses import LossConfig, segmentation_loss
from train.memory import image_in_memory
from train.network import NetworkConfig, Segmenter, build_network
from train.optimizer import OptimizerConfig, fuse, limited, make_optimizer, parameter_groups, poly_factor, total_steps
from train.order import step_seed

logger = logging.getLogger(__name__)


class SegmentationModule(pl.LightningModule):
    """A segmentation network in training.

    Args:
        network: which network.
        loss: what is minimised.
        optimizer: how.
        batch_norm: train lets the encoder's batch norm learn; frozen keeps its statistics and factors, as the paper
            does with ImageNet weights and small batches (--trainer.sync_batchnorm true shares statistics between GPUs).
        channels_last: keep images with channels innermost, which tensor cores and some CPUs like better; when not
            given, on a GPU in half precision.
        compile: compile the network's part of the training step (torch.compile): minutes at the start of a run, and
            faster steps; needs a C++ compiler.

    """

    def __init__(
        self,
        network: NetworkConfig = NetworkConfig(),  # noqa: B008 - frozen
        loss: LossConfig = LossConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        batch_norm: Literal["train", "frozen"] = "train",
        channels_last: bool | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.settings = {
            "network": to_plain(network),
            "loss": to_plain(loss),
            "optimizer": to_plain(optimizer),
            "batch_norm": batch_norm,
            "channels_last": channels_last,
            "compile": compile,
        }
        self.network_config, self.loss_config, self.optimizer_config = network, loss, optimizer
        self.batch_norm, self.channels_last = batch_norm, channels_last
        self._step_network: Callable[[Tensor], Tensor] | None = None  # compiled
        self.compiled = compile
        self.classes: ClassSet | None = None
        self.network: Segmenter | None = None
        self.pretrained = True
        self.inference = InferenceConfig()
        self.name = "The network"  # in an error
        self.boundary = False
        self._counts: dict[str, np.ndarray] = {}

    def keep_to(self, classes: ClassSet) -> None:
        """Take the classes of a checkpoint; the weights come from there too, so none are fetched for the encoder."""
        self.classes, self.pretrained = classes, False

    def measure_with(self, inference: InferenceConfig, *, boundary: bool, name: str) -> None:
        """Choose how images are predicted when measuring, whether boundaries are counted, and the name in an error."""
        self.inference, self.boundary, self.name = inference, boundary, name

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights; those of another network are refused in one line."""
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            raise ModelError(unfit("the checkpoint", error)) from error

    def configure_model(self) -> None:
        """Build the network; what the classes are the data say, unless a checkpoint did."""
        if self.network is None:
            if self.classes is None:
                self.classes = self.trainer.datamodule.classes  # type: ignore[attr-defined]
            assert self.classes is not None
            self.network = build_network(self.network_config, len(self.classes) + 1, self.pretrained)
            if self.channels_last is None:
                self.channels_last = self._on_gpu_in_half()
            if self.channels_last:
                self.network = self.network.to(memory_format=torch.channels_last)
            if self.batch_norm == "frozen":
                _freeze_batch_norm(self.network.encoder)

    def train(self, mode: bool = True) -> "SegmentationModule":
        """Set the mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen" and self.network is not None:
            _freeze_batch_norm(self.network.encoder)
        return self

    def forward(self, rgb: Tensor) -> Tensor:
        """Return scores for RGB in 0..255."""
        assert self.network is not None
        rgb = rgb.to(self.network.mean.dtype)  # of --trainer.precision 16-true and the like; else they are so already
        rgb = rgb.contiguous(memory_format=torch.channels_last) if self.channels_last else rgb
        if self.training and self.compiled:
            return self._compiled_scores(rgb)
        return self.network(rgb)

    def _compiled_scores(self, rgb: Tensor) -> Tensor:
        """Return the network's scores from compiled code; images are measured without it, as their sizes differ."""
        if self._step_network is None:
            network = self.network
            assert network is not None
            # A function, because a compiled module would put its weights into the checkpoint a second time.
            self._step_network = torch.compile(lambda images: network(images))
        try:
            return self._step_network(rgb)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

            if not isinstance(error, TorchDynamoException):
                raise
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"--model.compile true: torch cannot compile here ({reason}); leave it out.") from error

    def _on_gpu_in_half(self) -> bool:
        if self._trainer is None:
            return False
        return self.trainer.strategy.root_device.type == "cuda" and "16" in str(self.trainer.precision)

    @property
    def fill(self) -> Tensor:
        """What images are padded with: the mean that the network takes off, RGB in 0..255."""
        assert self.network is not None
        return self.network.mean

    def on_fit_start(self) -> None:
        """Say where the weights come from; pad the training images with what the network takes for nothing."""
        assert self.network is not None
        if self.pretrained and self.trainer.is_global_zero:
            print(f"First weights: {self.network.origin}.")
        self.trainer.datamodule.pad_with(self.fill.flatten().tolist())  # type: ignore[attr-defined]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss and the decisions of a batch."""
        labels = batch["mask"].long()
        scores = self._scores_at_scales(batch["image"].float())
        parts = [segmentation_loss(self.loss_config, each, labels, batch.get("weight")) for each in scores]
        loss = torch.stack(parts).sum()
        if not torch.isfinite(loss):
            raise ConfigError(_not_finite(float(loss.detach()), self.global_step, self.optimizer_config.lr))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(labels))
        return {"loss": loss, "decisions": scores[0].detach().argmax(1), "labels": labels}

    def _scores_at_scales(self, images: Tensor) -> list[Tensor]:
        """Return scores at full size, for each scale of the loss, and their maximum if that is wanted."""
        size = images.shape[-2:]
        result = []
        for scale in self.loss_config.scales:
            view = images
            if scale != 1:
                smaller = [max(32, 32 * round(side * scale / 32)) for side in size]
                view = F.interpolate(images, size=smaller, mode="bilinear", align_corners=False)
            scores = padded_scores(self, view, self.fill)
            result.append(F.interpolate(scores, size=size, mode="bilinear", align_corners=False))
        if self.loss_config.max_over_scales and len(result) > 1:
            result.append(torch.stack(result).amax(0))
        return result

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by the step, so that a resumed run draws what the uninterrupted one drew."""
        seed = self.trainer.datamodule.seed  # type: ignore[attr-defined]
        part = batch_idx % self.trainer.accumulate_grad_batches
        torch.manual_seed(step_seed(seed, self.global_step, self.global_rank, part))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add one image to the confusion matrix."""
        with image_in_memory(batch["image"].shape[-2:], None, training=True):
            self.measure(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Add one image to the confusion matrix and return its prediction."""
        with image_in_memory(batch["image"].shape[-2:], self.inference.window):
            return {"decisions": torch.from_numpy(self.measure(batch))}

    def measure(self, batch: dict[str, Any]) -> np.ndarray:
        """Predict one image, count it against its truth if there is one, and return the class ids (H, W)."""
        assert self.classes is not None
        decisions = self._decide(batch["image"])
        if batch["truth"] is not None:
            try:
                self._count(torch.as_tensor(batch["truth"]).cpu().numpy(), decisions)
            except LabelError as error:
                raise LabelError(f"{batch['id']}: {error}") from error
        return decisions

    def _decide(self, image: Tensor) -> np.ndarray:
        """Return the class ids (H, W) of an image (3, H, W)."""
        assert self.classes is not None
        size_hw, n_classes = (image.shape[-2], image.shape[-1]), len(self.classes) + 1
        parts = blocks_of_large(self, image, n_classes, self.inference, self.fill, self.name)
        if parts is not None:
            decisions = np.empty(size_hw, np.uint8)
            for _, block in parts:
                decisions[block.rows, block.columns] = block.values.argmax(0)
            return decisions
        found = probabilities(self, image[None].float(), self.inference, self.fill, self.name)[0]
        if self.inference.crf.enabled:
            rgb = image.permute(1, 2, 0).cpu().numpy()
            sharp = sharpen(rgb, found.float().cpu().numpy(), self.inference.crf, str(image.device))
            return sharp.argmax(0).astype(np.uint8)
        return found.argmax(0).to(torch.uint8).cpu().numpy()

    def _count(self, truth: np.ndarray, decisions: np.ndarray) -> None:
        assert self.classes is not None
        n_classes = len(self.classes) + 1
        counts = {"matrix": confusion_matrix(truth, decisions, n_classes)}
        if self.boundary:
            counts["boundary"] = boundary_counts(truth, decisions, n_classes)
        for name, values in counts.items():
            self._counts[name] = self._counts.get(name, 0) + values

    def device_tensor(self, number: int) -> Tensor:
        """Return a number as a tensor that processes can add up."""
        return torch.tensor(number, device=self.device)

    def gather_counts(self) -> dict[str, np.ndarray]:
        """Return the confusion matrix and the boundary counts summed over all processes, and begin new ones."""
        assert self.classes is not None
        n_classes = len(self.classes) + 1
        shapes = {"matrix": (n_classes, n_classes)} | ({"boundary": (2, n_classes)} if self.boundary else {})
        counts, self._counts = self._counts, {}
        result = {}
        for name, shape in shapes.items():
            mine = torch.from_numpy(counts.get(name, np.zeros(shape, np.int64)))
            result[name] = self.trainer.strategy.reduce(mine.to(self.device), reduce_op="sum").cpu().numpy()
        return result

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and pixel accuracy over the whole data set and all processes."""
        scores = score(self.gather_counts()["matrix"])
        self.log("val/miou", scores.miou, prog_bar=True, rank_zero_only=False, sync_dist=False)
        self.log("val/pixel_accuracy", scores.pixel_accuracy, sync_dist=False)

    def configure_optimizers(self) -> Any:
        """Return the optimizer with its groups and the polynomial schedule."""
        assert self.network is not None
        config = self.optimizer_config
        clips = bool(self.trainer.gradient_clip_val)
        fused = fuse(config, self.trainer.strategy.root_device.type, str(self.trainer.precision), clips)
        optimizer = make_optimizer(parameter_groups(self.network, config), config, fused)
        # Not `trainer.estimated_stepping_batches`: it starts the loader before a checkpoint can say where to go on.
        batches = limited(self.trainer, len(self.trainer.datamodule.training_order()))  # type: ignore[attr-defined]
        interval, every = self.trainer.val_check_interval, self.trainer.check_val_every_n_epoch
        rare = isinstance(interval, int) and every is not None and interval > batches
        rule = f"at most the number of batches in an epoch, {batches}, unless --trainer.check_val_every_n_epoch is null"
        require("trainer.val_check_interval", interval, not rare, rule)
        steps = total_steps(self.trainer, batches)
        schedule = LambdaLR(optimizer, lambda step: poly_factor(step, steps, config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the weights, not with their average, and never with the optimizer's state of another network."""
        if self.trainer.state.fn != "fit":
            return
        assert self.network is not None
        here = [len(group["params"]) for group in parameter_groups(self.network, self.optimizer_config)]
        there = [len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"]]
        if here != there:
            raise ModelError(
                f"The optimizer's state in the checkpoint is of {there} weights, by group, this network has {here}: "
                "begin a new run without --ckpt_path."
            )
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if RAW_WEIGHTS in checkpoint and not any(isinstance(each, AveragedWeights) for each in callbacks):
            if self.trainer.is_global_zero:
                logger.warning(
                    "The checkpoint holds averaged weights, and --ema_decay is not given: the training goes on with "
                    "the weights themselves and averages no more."
                )
            checkpoint["state_dict"] = checkpoint[RAW_WEIGHTS]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the card beside the weights."""
        assert self.classes is not None
        assert self.network is not None
        checkpoint[CARD_KEY] = make_card(self.classes, self.network.normalisation(), self.settings)


def _freeze_batch_norm(encoder: nn.Module) -> None:
    for layer in encoder.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
            layer.eval()
            layer.requires_grad_(False)


def _not_finite(loss: float, step: int, lr: float) -> str:
    return (
        f"The loss became {loss} at step {step} (learning rate {lr}): training stopped. Lower --model.optimizer.lr, "
        "set --trainer.gradient_clip_val 1, or give --model.optimizer.warmup_steps; with 16-mixed try bf16-mixed."
    )
