"""The native engine: ONNX graphs lowered to short plans of fused operations, and what runs them."""
