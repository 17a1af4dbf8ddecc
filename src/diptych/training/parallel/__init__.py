"""A model that several ranks train: how it is wrapped, and tensors of which each rank holds a part."""
