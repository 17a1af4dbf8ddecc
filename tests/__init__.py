"""The tests, room by room as in `src/diptych`; and what checks the annotations while they run."""

from beartype import BeartypeConf, beartype

check_annotations = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int passes as a float, as it does for mypy (PEP 484)."""
