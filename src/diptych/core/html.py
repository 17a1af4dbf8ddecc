"""Render HTML from templates. No other module of the project writes HTML."""

from pathlib import Path


def render_html(template: Path, **values: object) -> str:
    """Return the HTML page of a Jinja2 template. All values are escaped.

    Args:
        template: path of the template.
        values: the variables of the template.

    Raises:
        jinja2.UndefinedError: the template uses a variable that is not in `values`.
    """
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415  (takes 40 ms; most commands do not need it)

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
