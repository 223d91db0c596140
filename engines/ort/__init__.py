"""The plain backend: ONNX Runtime, on any machine."""
