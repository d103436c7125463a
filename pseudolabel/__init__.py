"""Stage one: image-level labels become refined pseudo-masks, read from a diffusion model's attention."""
