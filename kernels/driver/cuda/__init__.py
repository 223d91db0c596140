"""The real device, over `cuda.bindings.driver`."""
