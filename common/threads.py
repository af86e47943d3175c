"""CPU threads of a process that trains: PyTorch's, and those of the libraries under NumPy."""

import torch
from threadpoolctl import threadpool_limits

_most = 1  # threads that this process has trained with


def set_threads(count: int) -> None:
    """Limit every thread pool of this process.

    NumPy's BLAS has a pool of its own, whose idle threads spin for milliseconds after each large
    product: unlimited, they take the core that another process of the same run needs.
    """
    global _most
    _most = max(_most, count)
    torch.set_num_threads(count)
    threadpool_limits(count)


def why_not_fork() -> str | None:
    """Say why this process must not be forked any more; None where it may be.

    A fork copies no thread: one that then asks a pool, or a GPU's driver, for help waits for ever.
    """
    if _most > 1:
        return (
            f"this process has trained with {_most} threads (training.threads); start anew with "
            "the workers, as fedmtl simulate does"
        )
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "this process has used a GPU; start anew with the workers"
    return None
