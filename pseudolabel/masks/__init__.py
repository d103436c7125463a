"""From soft maps to masks: fuse, refine, label. Needs numpy; seconds, not hours."""
