"""ONNX Runtime: the engine for hosts without a GPU, and the reference for the others."""
