"""Evaluation of models. Each result includes the protocol by which it was measured."""
