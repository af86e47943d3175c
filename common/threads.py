"""CPU threads of a process that trains: PyTorch's, and those of the libraries under NumPy."""

import torch
from threadpoolctl import threadpool_limits


def set_threads(count: int) -> None:
    """Limit every thread pool of this process.

    NumPy's BLAS has a pool of its own, whose idle threads spin for milliseconds after each large
    product: unlimited, they take the core that another process of the same run needs.
    """
    torch.set_num_threads(count)
    threadpool_limits(count)
