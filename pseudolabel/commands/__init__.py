"""The commands: flags in, work called, lines printed."""
