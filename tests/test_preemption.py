"""Signals: noted, handed on, and harmless for loader workers."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dinoswap.preemption import SIGNALS, Preemption


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)  # to ourselves: Python runs the handler before the call returns


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_by_name(number: signal.Signals) -> None:
    with Preemption() as preemption:
        assert preemption.requested is None
        send(number)
        assert preemption.requested == number.name
        send(signal.SIGTERM)
        assert preemption.requested == number.name
    assert preemption.requested == number.name


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), Preemption() as preemption:
        send(signal.SIGINT)
        assert preemption.requested == "SIGINT"
        send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_forward_calls_the_handler_that_was_there(number: signal.Signals) -> None:
    calls: list[Any] = []
    before = signal.signal(number, lambda got, frame: calls.append(got))
    try:
        with Preemption() as preemption:
            preemption.forward()
            send(number)
            assert calls == []
            preemption.forward()
            assert calls == [number]
        send(number)  # restored
        assert calls == [number, number]
    finally:
        signal.signal(number, before)


def test_forward_after_ctrl_c_interrupts_and_without_a_handler_does_nothing() -> None:
    with Preemption() as preemption:
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        preemption.forward()
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with Preemption() as preemption:
        send(signal.SIGUSR2)
        preemption.forward()
    signal.signal(signal.SIGUSR2, before)


def test_outside_the_main_thread_nothing_is_installed(caplog: pytest.LogCaptureFixture) -> None:
    def enter() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with Preemption() as preemption:
            assert signal.getsignal(signal.SIGTERM) is before
            assert preemption.requested is None
        entered.set()

    entered = threading.Event()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered.is_set()
    assert "main thread" in caplog.text


LOADER = """
import os, signal, time
from torch.utils.data import DataLoader
from dinoswap.preemption import Preemption, shield_worker

class Data:
    def __len__(self):
        return 12

    def __getitem__(self, i):
        time.sleep(0.02)
        return i

signals = {2: signal.SIGINT, 3: signal.SIGUSR2, 4: signal.SIGTERM}
loader = DataLoader(
    Data(), batch_size=None, num_workers=2, worker_init_fn=shield_worker, multiprocessing_context="fork"
)
with Preemption() as preemption:
    for i in loader:
        if i in signals:
            os.killpg(0, signals[i])
    assert i == 11
    print(preemption.requested)
"""


def test_a_signal_to_the_whole_process_group_leaves_the_loader_working() -> None:
    command = [sys.executable, "-c", LOADER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, start_new_session=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "SIGINT"), done.stderr
