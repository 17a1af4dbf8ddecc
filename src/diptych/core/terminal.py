"""Escape untrusted text before printing it: file names, captions and error messages may contain terminal escape sequences."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1 controls, which include ESC, CSI and OSC: these start terminal commands.
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # Directional marks and overrides.
    "\u200b\u2028\u2029\u2060\ufeff"  # Zero width and line separators. Some scripts need the joiners U+200C and U+200D.
    "\ud800-\udfff"  # Lone surrogates: bytes of a file name that are not UTF-8.
    "]"
)


def visible(text: str, *, keep: str = "") -> str:
    r"""Return the text with control characters escaped as in a Python string literal, so that a terminal does not act on them.

    Replaces control characters (C0, DEL, C1), directional marks and overrides, zero-width characters, line separators and lone
    surrogates. Backslashes are unchanged. The function is idempotent.

    Args:
        text: any text.
        keep: control characters that are not replaced, such as a newline.

    >>> visible("a\x1b]52;c;QQ==\x07\n.jpg")
    'a\\x1b]52;c;QQ==\\x07\\n.jpg'
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text)


def visible_json(text: str) -> str:
    r"""Return the JSON text with the characters that `visible` replaces written as JSON escapes such as `\u001b`.

    The result decodes to the same values.

    Args:
        text: JSON. Its newlines and tabs are unchanged: they can only be white space, because JSON strings escape them.

    >>> visible_json('"\x9b2J"')
    '"\\u009b2J"'
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in "\n\r\t" else f"\\u{ord(match[0]):04x}", text)


def open_console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """Return a Rich console that escapes control characters in everything it prints (`visible`).

    Args:
        stderr: write to standard error instead of standard output.
        width: width in columns; None uses the terminal's width.
    """
    from rich.console import Console  # noqa: PLC0415  (takes 60 ms; most commands do not need it)
    from rich.segment import Segment  # noqa: PLC0415

    class VisibleConsole(Console):
        def render(self, renderable: "RenderableType", options: "ConsoleOptions | None" = None) -> "Iterable[Segment]":
            for segment in super().render(renderable, options):
                if segment.control:  # Rich's own cursor movements.
                    yield segment
                else:
                    yield Segment(visible(segment.text, keep="\n"), segment.style)

    return VisibleConsole(stderr=stderr, width=width, highlight=False)
