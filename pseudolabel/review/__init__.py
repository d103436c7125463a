"""Looking at a store: figures, a page, a score."""
