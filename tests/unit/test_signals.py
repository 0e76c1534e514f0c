"""A process that is asked to stop hears it, whatever its main thread is doing at that moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The main thread holds the event's lock, as it does at the beginning and the end of each ``stopping.wait``.
ASKED_AT_A_BAD_MOMENT = """
import signal, threading
from rxstore.signals import stop_when_asked
stopping = threading.Event()
{listen}
with stopping._cond:
    signal.raise_signal(signal.{signal})
print("heard" if stopping.wait(10) else "not heard")
"""
BY_THE_MODULE = "stop_when_asked(stopping)"
BY_A_HANDLER = "signal.signal(signal.SIGTERM, lambda *_: stopping.set())"


def run(listen: str, signal: str = "SIGTERM", seconds: float = 30) -> str:
    code = ASKED_AT_A_BAD_MOMENT.format(listen=listen, signal=signal)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=True
    ).stdout.strip()


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_it_is_heard_while_the_main_thread_holds_the_lock_of_the_event(signal):
    assert run(BY_THE_MODULE, signal) == "heard"


def test_a_handler_that_sets_the_event_would_hang_there():
    with pytest.raises(subprocess.TimeoutExpired):
        run(BY_A_HANDLER, seconds=3)


def test_other_signals_do_not_stop_it():
    code = (
        "import signal, threading\n"
        "from rxstore.signals import stop_when_asked\n"
        "stopping = threading.Event()\n"
        "stop_when_asked(stopping)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
        "print(stopping.wait(0.3))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "print(stopping.wait(10))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["False", "True"]
