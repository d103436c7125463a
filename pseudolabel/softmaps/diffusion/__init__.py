"""Diffusion models: the one place that knows diffusers' insides."""
