"""Export models to other runtimes as ONNX graphs of the two towers. Requires the packages `onnx` and `onnxscript`."""
