"""Recipes: complete training configs by name. Each recipe is a function that returns a `TrainConfig`."""
