"""What the engines of a GPU ask of driver and chip: facts, told without opening either."""

from diffusion_rt.kernels.driver.cuda.context import LEAST_DRIVER
from diffusion_rt.kernels.variant import ARCHS

LEAST_CUDA = (LEAST_DRIVER // 1000, LEAST_DRIVER % 1000 // 10)
"""The oldest CUDA that the driver may stop at."""

LEAST_ARCH = min(ARCHS)
"""The oldest compute capability, times ten."""
