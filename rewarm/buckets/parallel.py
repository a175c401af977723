"""The same work on several things at once, in threads that never keep a process from ending."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """Calls ``work`` for each item, a few at a time; after a failure no further one is begun.

    The threads are daemons, unlike those of ``concurrent.futures``: a run that is told to go leaves at once, though a
    server that does not answer keeps a thread waiting.

    Args:
        work (Callable): What to do with an item.
        items (Iterable): The items.
        threads (int): How many at a time.

    Returns:
        list: What it returned, in the order of the items.

    Raises:
        BaseException: The first that ``work`` raised.
    """
    todo, lock = enumerate(items), threading.Lock()
    results: dict[int, Result] = {}
    failures: list[BaseException] = []

    def run() -> None:
        while not failures:
            with lock:
                entry = next(todo, None)
            if entry is None:
                return
            try:
                results[entry[0]] = work(entry[1])
            except BaseException as error:
                failures.append(error)

    workers = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return [results[index] for index in sorted(results)]
