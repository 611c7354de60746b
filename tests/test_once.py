"""What threads share is made once, and a fork leaves nothing locked."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sinf.once import Lock, Once


def test_what_many_threads_ask_for_at_once_is_made_once() -> None:
    made: list[int] = []
    start = threading.Barrier(8)

    def make(key: int) -> list[int]:
        made.append(key)
        time.sleep(0.01)  # others ask meanwhile
        return [key]

    once = Once(make)

    def ask(number: int) -> list[list[int]]:
        start.wait()
        return [once[key] for key in (number % 3, 0, 1, 2)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert sorted(made) == [0, 1, 2]
    assert all(value is once[value[0]] for values in answers for value in values)
    once.clear()
    assert once[0] == [0]
    assert len(made) == 4


def test_a_failure_is_not_remembered() -> None:
    once: Once[str, int] = Once({}.__getitem__)
    for _ in range(2):
        with pytest.raises(KeyError):
            once["missing"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_lock_that_another_thread_holds_is_open_after_a_fork() -> None:
    lock, held, done = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if lock._lock.acquire(timeout=10) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    done.set()
    thread.join()


def test_a_copy_of_a_lock_is_another_one() -> None:
    lock = Lock()
    with lock:
        for other in (copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
            assert other._lock is not lock._lock
