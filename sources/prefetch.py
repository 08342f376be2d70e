"""Reading batches ahead of the step, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from sources import Batch


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
