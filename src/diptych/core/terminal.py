"""Text from outside, made safe to print: file names, captions and error messages may hold a terminal's escape sequences."""

import re
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: among them ESC, CSI and OSC, which start commands to a terminal.
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # Marks and overrides of direction.
    "\u200b\u2028\u2029\u2060\ufeff"  # Zero width, and separators of lines. The joiners U+200C and U+200D belong to scripts.
    "\ud800-\udfff"  # Bytes of a file name that are no UTF-8.
    "]"
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, *, keep: str = "") -> str:
    r"""The text with control characters written as Python writes them in a string, so that a terminal does not act on them.

    Control characters (C0, DEL, C1), marks and overrides of direction, zero-width characters, line separators and lone
    surrogates are replaced. Backslashes stay as they are. The result of a second call is that of the first.

    Args:
        text: any text.
        keep: control characters that stay, such as a newline.

    >>> visible("a\x1b]52;c;QQ==\x07\n.jpg")
    'a\\x1b]52;c;QQ==\\x07\\n.jpg'
    """
    return _UNSAFE.sub(partial(_escaped, keep=keep), text)


def _escaped(found: "re.Match[str]", *, keep: str) -> str:
    letter = found.group()
    if letter in keep:
        return letter
    code = ord(letter)
    return _SHORT.get(letter) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def visible_json(text: str) -> str:
    r"""JSON with the characters that `visible` replaces written as escapes such as `\u001b`: the same values.

    Args:
        text: JSON. Its newlines and tabs stay, because inside a string JSON has them escaped already.

    >>> visible_json('"\x9b2J"')
    '"\\u009b2J"'
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in "\n\r\t" else f"\\u{ord(found[0]):04x}", text)


def open_console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """A console of Rich that makes control characters in all that it shows visible, whichever way they come in.

    Args:
        stderr: write to standard error instead of standard output.
        width: columns; None takes those of the terminal.
    """
    from rich.console import Console  # noqa: PLC0415  (60 ms that most commands need not pay)
    from rich.segment import Segment  # noqa: PLC0415

    class VisibleConsole(Console):
        def render(self, renderable: "RenderableType", options: "ConsoleOptions | None" = None) -> "Iterable[Segment]":
            for segment in super().render(renderable, options):
                if segment.control:  # Rich's own movements of the cursor.
                    yield segment
                else:
                    yield Segment(visible(segment.text, keep="\n"), segment.style)

    return VisibleConsole(stderr=stderr, width=width, highlight=False)
