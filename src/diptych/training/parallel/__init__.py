"""Training with several ranks: model wrappers, sharded tensors, and a clock that all ranks share."""
