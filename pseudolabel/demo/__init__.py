"""The demo: both stages end to end, and how the shipped diffusion model was made."""
