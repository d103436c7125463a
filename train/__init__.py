"""Stage two: a segmentation network trained on the pseudo-masks, evaluated, exported, deployed."""
