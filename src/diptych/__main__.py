"""`python -m diptych`."""

import sys

from diptych.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
