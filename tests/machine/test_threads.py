"""What threads share is made once, and a fork leaves nothing locked."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sinf.machine.threads import Lock, Once, Runs


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


def test_many_run_or_one_alone() -> None:
    runs, inside, most, alone = Runs(), [], [], []

    def run(number: int) -> None:
        for turn in range(200):
            if number == 0 and turn % 20 == 0:
                with runs.none(), runs.none():
                    alone.append(len(inside))
                    time.sleep(0.001)
                    alone.append(len(inside))
            else:
                with runs:
                    inside.append(number)
                    most.append(len(inside))
                    time.sleep(0)
                    inside.pop()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    assert set(alone) == {0}
    assert max(most) > 1
    assert not runs._running


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
