"""The threads that speak to the kernel: netlink's calls block, for less than a millisecond each."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class KernelThreads:
    """So many at a time."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="kernel")

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What `work` returns or raises. It goes on when its caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Blocks until what has begun ends, so that nobody else touches the kernel meanwhile; the rest never begins."""
        self._pool.shutdown(cancel_futures=True)
