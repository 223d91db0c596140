"""A device on the host that keeps the driver's rules and breaks loudly.

Work is queued and runs only when someone waits for it, so a missing event or synchronisation
shows as stale or poisoned data. With a seed, other streams run ahead at random as well. Fresh
memory is poison (NaN in every float format), addresses are never used twice, every range is
checked when work is enqueued and again when it runs, and what is written beside a buffer is found.
For one thread at a time.
"""

from diffusion_rt.kernels.driver.simulator.device import Simulator

__all__ = ["Simulator"]
