"""The mask store: the contract between the stages."""
