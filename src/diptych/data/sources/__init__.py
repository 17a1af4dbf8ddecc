"""Sources: every layout that pictures and captions come in, as one sequence of samples."""
