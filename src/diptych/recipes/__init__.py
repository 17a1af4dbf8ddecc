"""Complete runs by name: each recipe is a function that returns a TrainConfig."""
