"""What the engines of a GPU share: graphs on device memory, and the denoising loop there."""
