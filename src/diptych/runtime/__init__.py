"""Run ONNX exports with ONNX Runtime, without PyTorch."""
