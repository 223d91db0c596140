"""What the native engine knows of ONNX: for each operator what an operation takes in with it."""
