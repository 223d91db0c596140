"""ONNX graphs to something that runs, each backend behind one protocol."""
