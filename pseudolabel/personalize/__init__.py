"""Learning one's own thing from a few photographs: a token, and if wanted weights, in files other programs read too."""
