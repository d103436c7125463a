"""Methods of others as functions on recorded attention, for the arena; no user of the project runs them.

Each file says what to record (`wanted`) and makes the class maps of every noise draw from it (`soft_maps`, 0 to 1).
Layers are those of the demo's model that stand where the published ones stand in Stable Diffusion; where a method
spreads maps by self-attention, it gets the layer that calibration found best for this model, since averages over more
layers ruin it here.
"""
