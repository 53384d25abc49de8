"""Signals: noted, handed on, and the handlers that were there restored."""

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from dinoswap.distributed.preemption import SIGNALS, Preemption, StopAsked


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)  # to ourselves: Python runs the handler before the call returns


@pytest.fixture
def not_under_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("not_under_nohup")
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
    # a shell starts what it puts in the background with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Preemption() as preemption:
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        preemption.forward()
    signal.signal(signal.SIGINT, before)
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with Preemption() as preemption:
        send(signal.SIGUSR2)
        preemption.forward()
    signal.signal(signal.SIGUSR2, before)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            send(signal.SIGHUP)
            assert preemption.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_leaves_nothing_behind_is_broken_off_at_once() -> None:
    with Preemption() as preemption:
        with preemption.at_once():
            pass
        threading.Timer(0.05, partial(send, signal.SIGUSR1)).start()
        with pytest.raises(StopAsked), preemption.at_once():
            while True:  # a computation that asks nobody
                pass
        assert preemption.requested == "SIGUSR1"
        with pytest.raises(StopAsked), preemption.at_once():
            pytest.fail("it does not begin any more")
        send(signal.SIGTERM)  # is only noted


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
