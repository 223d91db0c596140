"""Training with one process per core: each takes its part of every batch and runs on one thread.

Gradients meet once a step in shared memory. On a busy machine that is much faster than one process
of two threads, which meet at every operator.
"""

from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn


class Flat:
    """A module's parameters and gradients as two vectors, so that workers can share them."""

    def __init__(self, module: nn.Module, vector: torch.Tensor | None = None) -> None:
        """Move the parameters into `vector` (whose values they take), or a new one."""
        parameters = list(module.parameters())
        sizes = [p.numel() for p in parameters]
        if vector is None:
            vector = torch.cat([p.detach().flatten() for p in parameters])
        self.vector = vector
        self.gradient = torch.zeros(sum(sizes))
        views = zip(parameters, vector.split(sizes), self.gradient.split(sizes), strict=True)
        for parameter, value, gradient in views:
            parameter.data = value.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)


class Exchange:
    """What workers share: vectors, one row of gradients each, and a clock.

    Two buffers of gradients are used in turn, so that one meeting is enough to average them.
    """

    def __init__(self, size: int, workers: int, context: Any) -> None:
        self.workers = workers
        self.buffers = torch.zeros(2, workers, size).share_memory_()
        self.vector = torch.zeros(size).share_memory_()
        self.momentum = torch.zeros(size).share_memory_()
        self.progress = torch.zeros(2, dtype=torch.float64).share_memory_()
        self.barrier: Barrier = context.Barrier(workers)

    def meet(self) -> None:
        """Wait until all workers are here."""
        self.barrier.wait(timeout=900)

    def average(self, vector: torch.Tensor, rank: int, step: int, progress: float) -> float:
        """Replace `vector` by the mean of all workers' vectors; returns worker 0's progress."""
        buffer = self.buffers[step % 2]
        buffer[rank] = vector
        if rank == 0:
            self.progress[step % 2] = progress
        self.meet()
        torch.mean(buffer, dim=0, out=vector)
        return float(self.progress[step % 2])


def run(work: Callable[[int, Any, Exchange], None], settings: Any, size: int, workers: int) -> None:
    """Call `work(rank, settings, exchange)` once for each worker, in processes of their own."""
    context = mp.get_context("spawn")
    exchange = Exchange(size, workers, context)
    if workers == 1:
        work(0, settings, exchange)
        return
    processes = [context.Process(target=work, args=(r, settings, exchange)) for r in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a worker ended early: {[p.exitcode for p in processes]}")
