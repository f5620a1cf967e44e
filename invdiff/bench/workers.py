"""Where runs are done: processes of this machine, an executor of yours, or a Dask cluster.

A worker process that dies (killed, out of memory) takes its run with it; the pool is then built anew, and what was lost is run
again. This module imports nothing heavy, so that a worker can set the number of threads before the libraries are loaded.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(alive: Any, threads: int, gpus: list[str], begun: Any) -> None:
    """In a new worker: set threads and GPU, leave Ctrl-C to the parent, end with it, and load what runs need."""
    for name in THREADS:
        os.environ[name] = str(threads)
    if gpus:  # in turn; has to be set before torch is loaded
        with begun.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[begun.value % len(gpus)]
            begun.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    import invdiff.bench.performing  # noqa: F401 (so that the first run does not pay for it)


def _end_with(alive: Any) -> None:
    """End this process when the other end of the pipe is closed: the parent is done, or gone, in whatever way."""
    try:
        alive.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


class Processes:
    """Worker processes of this machine, each with ``threads`` threads; by default as many as the cores allow, or one for each of
    ``gpus`` GPUs, which several workers share in turn."""

    def __init__(self, workers: int | None, threads: int, gpus: int = 0) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is at least 1, got {workers}")
        self.workers, self.threads = workers or gpus or max(1, cores() // threads), threads
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.gpus = named.split(",")[:gpus] if named else [str(i) for i in range(gpus)]
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Start the processes, which takes them seconds; otherwise the first run does."""
        context = get_context("spawn")  # a fork would copy the locks of torch's threads
        reader, self._alive = context.Pipe(duplex=False)
        self._reader = reader
        self._pool = ProcessPoolExecutor(self.workers, context, _begin, (reader, self.threads, self.gpus, context.Value("i", 0)))
        self._first: Future[Any] | None = self._pool.submit(os.getpid)

    @property
    def together(self) -> int:
        """Runs handed out at a time: one a worker, so that few are lost with a worker."""
        return self.workers

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if self._pool is None:
            self.start()
        if self._first is not None:
            try:
                self._first.result()
            except BrokenExecutor as error:
                raise RuntimeError(
                    "the worker processes do not start (what they said is above); a script of yours has to call bench.run "
                    'under `if __name__ == "__main__":`'
                ) from error
            self._first = None
        assert self._pool is not None
        return self._pool.submit(function, *arguments)

    def restart(self) -> None:
        """After a worker has died."""
        self.close(now=True)
        self.start()

    def close(self, now: bool = False) -> None:
        """End the workers: once they are done, or now."""
        if self._pool is None:
            return
        if now:
            self._alive.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._alive.close()
        self._reader.close()
        self._pool = None


class Given:
    """An executor of yours. What is lost with its workers is its own concern."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.together = executor, 1_000_000

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.executor.submit(function, *arguments)

    def start(self) -> None: ...

    def restart(self) -> None:
        raise RuntimeError("the executor is broken; start again, what was finished is kept")

    def close(self, now: bool = False) -> None: ...


class Dask(Executor):
    """The workers of a Dask cluster at ``address``; runs that evaluate a prior ask them for ``resources``, such as {"GPU": 1}.

    Workers say what they have: ``dask worker ADDRESS --resources GPU=1``. Dask itself runs again what is lost with a worker. Needs
    the extra ``dask``.
    """

    def __init__(self, address: str, resources: dict[str, float] | None = None) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ImportError("--dask needs the package distributed: pip install 'invdiff[dask]'") from error
        self.client = Client(address, timeout=10)
        self._any = self.client.get_executor(pure=False)
        self._network = self.client.get_executor(pure=False, **({"resources": resources} if resources else {}))

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **more: Any) -> Future[Any]:
        heavy = any(getattr(a, "uses_prior", False) for a in arguments)
        return (self._network if heavy else self._any).submit(function, *arguments, **more)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for executor in (self._any, self._network):
            executor.shutdown(wait=wait and not cancel_futures)
        self.client.close()
