"""How the shipped diffusion model was trained, measured and drawn with; needed by nothing else."""
