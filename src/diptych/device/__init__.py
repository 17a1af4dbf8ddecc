"""Device selection, groups of processes, and the time and forks of computations with torch."""
