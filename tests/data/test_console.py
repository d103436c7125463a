import logging

from data.console import PrintableFormatter


def test_log_lines_are_printable():
    record = logging.LogRecord("a", logging.WARNING, "f", 1, "left out %s\nsecond", ("\u202e",), None)
    assert PrintableFormatter("%(message)s").format(record) == "left out \\u202e\nsecond"
