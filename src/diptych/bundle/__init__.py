"""Bundles: folders with a model and everything that its use needs. They are the only link between training and use."""
