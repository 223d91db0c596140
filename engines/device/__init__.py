"""What the engines of a GPU share: graphs on device memory, the denoising loop, pixels."""
