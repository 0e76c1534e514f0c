"""Signals that ask a process to stop, made into an event that its threads can wait for."""

from __future__ import annotations

import signal
import socket
import threading

ASKED_TO_STOP = (signal.SIGTERM, signal.SIGINT)


def stop_when_asked(stopping: threading.Event) -> None:
    """Set an event when the process is asked to stop. To be called on the main thread.

    Another thread sets it. A handler runs on the main thread, between any two of its steps: between those by which
    ``stopping.wait`` takes and lets go of the event's lock too, and then ``stopping.set`` waits for that lock for good.
    """
    hears, tells = socket.socketpair()
    tells.setblocking(False)
    signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    for number in ASKED_TO_STOP:
        signal.signal(number, _heard)

    def listen() -> None:
        with hears, tells:
            while heard := hears.recv(64):  # a byte for each signal, its number
                if not set(heard).isdisjoint(ASKED_TO_STOP):
                    stopping.set()

    threading.Thread(target=listen, name="signals", daemon=True).start()


def _heard(number: int, frame: object) -> None:
    """Nothing is done here: the number is written to the wake-up descriptor whether there is time for this or not."""
