"""The bundle: the one thing that crosses from training to use."""
