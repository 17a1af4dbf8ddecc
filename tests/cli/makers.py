"""Commands that must fail."""

import pytest

from diptych.cli.main import main


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail with code 2, and return the one line that it prints on standard error."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith("diptych: ")
    assert "Traceback" not in err
    return err
