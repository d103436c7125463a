"""Exporters: from a store to other programs' formats."""
