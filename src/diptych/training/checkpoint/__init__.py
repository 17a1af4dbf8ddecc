"""Checkpoints of a run: their schedule, content and files, and the checks before a run resumes from one."""
