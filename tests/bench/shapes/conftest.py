from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def arithmetic_as_it_was() -> Iterator[None]:
    """Training flushes denormals and takes one thread: of a whole process, which others share."""
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
