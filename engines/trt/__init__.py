"""The graphs as TensorRT engines: built for a GPU, kept as plan files, run from them."""
