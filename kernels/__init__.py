"""GPU kernels, each beside its NumPy truth."""
