import signal
import threading

import pytest

from partialseg.training.interruption import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_what_it_did_before_comes_back(number):
    before = signal.getsignal(number)
    request = StopRequest()
    with request.listening():
        assert request.signal_number is None
        signal.raise_signal(number)
        assert request.signal_number == number
    assert signal.getsignal(number) is before


@pytest.fixture
def ctrl_c_interrupts():
    """What a shell starts in the background ignores Ctrl-C, and so would a test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_acts_at_once(ctrl_c_interrupts):
    with StopRequest().listening():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_in_another_thread_signals_act_as_ever():
    handlers = []

    def listen():
        with StopRequest().listening():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
