"""The contract between the stages: classes, samples, masks, the store and scoring; numpy and Pillow only."""
