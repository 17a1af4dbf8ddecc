"""Run the command line as `python -m diptych`."""

from diptych.cli.main import run

if __name__ == "__main__":
    run()
