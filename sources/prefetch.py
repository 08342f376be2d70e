"""Working ahead of the consumer, in background threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sources import Batch

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_order_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """work(item) of each item in order, up to `ahead` items more being worked on meanwhile.

    An error, be it of an item's work or of `items`, comes out behind the results of the items before it.
    """
    pending: deque = deque()
    iterator, error, more = iter(items), None, True
    while more:
        try:
            pending.append(pool.submit(work, next(iterator)))
        except StopIteration:
            more = False
        except Exception as late:
            more, error = False, late
        while pending and (len(pending) > ahead or not more):
            yield pending.popleft().result()
    if error:
        raise error


def prefetch(batches: Iterator[Batch], depth: int = 4) -> Iterator[Batch]:
    """Read batches in a background thread, up to `depth` ahead; errors come out here, an early stop ends the thread."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except Exception as error:  # handed over to the consumer
            put(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
