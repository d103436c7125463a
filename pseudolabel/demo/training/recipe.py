"""What the training of the shipped model is made of: everything that changes its weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the trained weights."""

    seed: int = 0
    scenes: int = 24_000
    """Different scenes drawn, encoded once and seen again and again; 0 draws every scene afresh."""
    vae_scenes: int = 4_000
    """Different scenes the autoencoder sees, in random crops: small pieces and many steps serve it best."""
    vae_steps: int = 3_600
    vae_batch: int = 8
    vae_lr: float = 2e-3
    word_steps: int = 4_500
    """Steps on the words alone, before the diffusion model is trained; 0 leaves them out."""
    word_batch: int = 32
    word_lr: float = 1e-3
    word_timesteps: int = 300
    """Their noise levels: from 0 to here."""
    steps: int = 3_600
    portrait_steps: int = 8_000
    """Further steps, at a learning rate that rises and falls once more, in which portraits are among the scenes."""
    portraits: float = 0.8
    """Their share of the scenes noised from `portraits_from` on; below it all scenes are the world's own."""
    portraits_from: int = 325
    """In much noise the whole of an object is learned, soonest from portraits; in little noise stage one reads."""
    batch: int = 16
    lr: float = 6e-4
    decay_from: float = 0.6
    """Share of the steps (of either kind) after which the learning rate goes down to zero."""
    timestep_low: int = 100
    timestep_high: int = 1000
    word_loss: float = 0.1
    """Weight of `word_presence_loss` beside the diffusion loss; it knows the captions' words alone."""
    empty_captions: float = 0.2
    """Share of scenes shown without words: for guidance, and for the word loss of layers that have read the caption."""
    ema: float = 0.999
