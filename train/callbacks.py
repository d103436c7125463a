"""Averaged weights, and warnings in the first minutes of a run that goes wrong."""

import logging
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from data.classes import IGNORE
from data.errors import ConfigError
from data.wording import count, plural

logger = logging.getLogger(__name__)

RAW_WEIGHTS = "raw_state_dict"


class AveragedWeights(WeightAveraging):
    """Keep an exponential moving average of the weights; measure it, and put it into the checkpoint.

    Lightning's callback, with our file format. In the checkpoint `state_dict` holds the average, which is what gets
    deployed, and `raw_state_dict` the weights that training goes on with. The decay begins small,
    min(decay, (1 + n) / (10 + n)) at step n, so that the first weights are soon forgotten (the rule of TensorFlow's
    ExponentialMovingAverage). Batch norm's statistics are averaged like weights; its counters are copied.

    Args:
        decay: share of the average that stays at each step.

    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"--ema_decay is {decay}; it takes 0 (off) to below 1, such as 0.999.")
        super().__init__(multi_avg_fn=partial(_move, decay))
        self._measuring = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin with the weights as they are; the network is built for that, with the run's kind of numbers."""
        with trainer.precision_plugin.module_init_context():
            super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the weights as they are: Lightning puts the average in their place, and a longer run starts there."""

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._measuring = not self._measuring

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the weights back if the measuring broke off."""
        if self._measuring:
            self._swap_models(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write both: the average, and the weights to go on with."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint[RAW_WEIGHTS] = checkpoint.pop("current_model_state")

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the weights, not with their average; a checkpoint without one begins it."""
        added = {
            "current_model_state": checkpoint.get(RAW_WEIGHTS, checkpoint["state_dict"]),
            "averaging_state": {"n_averaged": torch.tensor(checkpoint["global_step"])},  # older ones do not keep it
        }
        super().on_load_checkpoint(trainer, pl_module, added | checkpoint)
        self._latest_update_step = checkpoint["global_step"]


def _move(decay: float, average: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
    if average[0].is_floating_point():
        step = int(updates) + 1
        get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(average, weights, updates)
    else:
        for mine, theirs in zip(average, weights, strict=True):
            mine.copy_(theirs)


class EarlyWarnings(pl.Callback):
    """Say in the first minutes what usually spoils such a run.

    Before training a sample of masks is looked at: a class that is never seen, many ignored pixels, hardly any
    foreground. While training, the share of background among the network's decisions is compared with the labels'.

    Args:
        looked_at: number of masks that are read before training.
        every: steps between two looks at the decisions.

    """

    def __init__(self, looked_at: int = 200, every: int = 50) -> None:
        self.looked_at, self.every = looked_at, every
        self._background = torch.zeros(3)  # counted pixels, labelled background, decided background
        self._said = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at a sample of the masks."""
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        histogram, looked_at = data.training.histogram(self.looked_at)
        for warning in mask_warnings(histogram, data.classes.names, looked_at, len(data.training)):
            logger.warning(warning)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count background among labels and decisions; log both shares."""
        labels, decisions = outputs["labels"], outputs["decisions"]
        counted = labels != IGNORE
        shares = torch.stack([counted.sum(), (labels == 0).sum(), (counted & (decisions == 0)).sum()]).float().cpu()
        self._background += shares
        if (trainer.global_step + 1) % self.every:
            return
        total, labelled, decided = self._background.clamp_min(1e-6).tolist()
        self._background.zero_()
        pl_module.log("train/background_labelled", labelled / total, rank_zero_only=True)
        pl_module.log("train/background_decided", decided / total, rank_zero_only=True)
        if (
            decided / total > 0.99 > 0.97 > labelled / total
            and trainer.global_step >= 2 * self.every
            and trainer.is_global_zero
            and not self._said
        ):
            self._said = True
            logger.warning(
                "After %d steps the network calls %.1f %% of the pixels background (the masks: %.1f %%): it learns "
                "only that. Try --model.loss.kind balanced, a lower --model.optimizer.lr, or pretrained weights.",
                trainer.global_step,
                100 * decided / total,
                100 * labelled / total,
            )


def mask_warnings(histogram: np.ndarray, names: tuple[str, ...], looked_at: int, there: int) -> list[str]:
    """Return what is odd about masks.

    Args:
        histogram: number of pixels of each value 0..255 over a sample of masks.
        names: class names, without the background.
        looked_at: number of masks in the sample.
        there: number of masks in all.

    """
    total, ignored = histogram.sum(), histogram[IGNORE]
    counted = total - ignored
    warnings = []
    unseen = [name for i, name in enumerate(names, start=1) if histogram[i] == 0]
    if unseen:
        warnings.append(
            f"{len(unseen)} of {count(len(names), 'class')} {plural(len(unseen), 'is', 'are')} in none of the "
            f"{count(looked_at, 'mask')} looked at, of {there}, and a class that no mask shows cannot be learnt: "
            f"{', '.join(unseen[:8])}{', ...' if len(unseen) > 8 else ''}."
        )
    if total and ignored / total > 0.5:
        warnings.append(
            f"{100 * ignored / total:.0f} % of the mask pixels are ignored: little is left to learn from; lower the "
            "ignore threshold (`pseudolabel refine --ignore_below`), or train with --data.masks argmax."
        )
    if counted and histogram[0] / counted > 0.97:
        warnings.append(
            f"{100 * histogram[0] / counted:.1f} % of the mask pixels are background: the network may learn nothing "
            "else; look at `pseudolabel report` and try --model.loss.kind balanced."
        )
    return warnings
