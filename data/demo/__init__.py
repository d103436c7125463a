"""The shipped demonstration: a drawn world of labelled scenes and a diffusion model trained on its captions."""
