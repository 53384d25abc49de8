"""What HTML pages have in common: colours and tables in base.css, tables that sort in tables.js, escaped text.

A page is one file, which needs no network: its template includes these, and what it has of its own.
"""

from pathlib import Path
from typing import Any

import jinja2

ROOM = Path(__file__).parent


def rendered(template: Path, **values: Any) -> str:
    """Returns the page of a template, which finds files of its own folder and of this one. All text in `values` is
    escaped. Raises jinja2.UndefinedError where the template asks for a value that is not there."""
    loader = jinja2.FileSystemLoader([template.parent, ROOM])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template.name).render(**values)
