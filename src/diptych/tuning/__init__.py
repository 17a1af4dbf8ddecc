"""Hyperparameter tuning: searches for settings that suit the data and the machine."""
