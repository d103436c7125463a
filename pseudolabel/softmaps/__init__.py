"""From images and labels to soft maps: what the diffusion model looks at. Needs torch, wants a GPU."""
