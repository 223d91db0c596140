"""Checkpoint to ONNX: the only folder, with bench, that sees torch."""
