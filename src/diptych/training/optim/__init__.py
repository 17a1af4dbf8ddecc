"""How weights move: optimizers, their schedule, averages of the weights, and weights that stay as they are."""
