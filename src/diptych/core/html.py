"""HTML from templates: the only code in the project that writes it."""

from pathlib import Path


def render_html(template: Path, **values: object) -> str:
    """The page that a Jinja2 template gives for some values, each of which is escaped.

    Args:
        template: a file of the package.
        values: what the template names; a name that is not given is an error.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415  (40 ms that most commands need not pay)

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
