"""Pages: templates with one style sheet, made into HTML files that open from disk without a network.

`templates/` holds the markup, everything else in this package the numbers and pictures. Whatever a template shows is
escaped, and characters that cannot be seen are written out: no name out of a file can change the page around it.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from data.wording import printable


def render(template: str, **values: Any) -> str:
    """Return a page.

    Args:
        template: name of a file in `templates/`.
        **values: what it shows, by the template's names; one that is missing is an error.

    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pseudolabel.review"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
