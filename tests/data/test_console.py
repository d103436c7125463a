import logging
import sys

from data.console import PrintableFormatter, progress_bar


def test_log_lines_are_printable():
    record = logging.LogRecord("a", logging.WARNING, "f", 1, "left out %s\nsecond", ("\u202e",), None)
    assert PrintableFormatter("%(message)s").format(record) == "left out \\u202e\nsecond"


def test_a_bar_is_a_line_now_and_then_where_nobody_looks(capsys, monkeypatch):
    assert list(progress_bar(range(1000), unit="image", desc="look")) == list(range(1000))
    said = capsys.readouterr().err
    assert "look: 100%" in said
    assert said.count("look:") <= 3  # the first, the last, and one more on a machine that is very busy
    with monkeypatch.context() as notebook:
        notebook.setitem(sys.modules, "ipykernel", sys)
        assert progress_bar(total=3).mininterval == 0.5
    assert progress_bar(total=3).mininterval == 30
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress_bar(total=3).mininterval == 0.5
