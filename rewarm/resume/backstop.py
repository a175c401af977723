"""Ends this process by the kernel's clock, also when a hanging thread holds the interpreter's lock."""

import ctypes
import faulthandler
import os

__all__ = ['Backstop']

CLOCK_MONOTONIC = 1
SIGEV_THREAD = 2
STDERR = 2
DUMP_SECONDS = 1.0
"""For writing the stacks, before the end."""


class _Event(ctypes.Structure):
    """``struct sigevent`` of Linux, 64 bytes."""

    _fields_ = (
        ('value', ctypes.c_void_p),
        ('signal', ctypes.c_int),
        ('notify', ctypes.c_int),
        ('function', ctypes.c_void_p),
        ('attributes', ctypes.c_void_p),
        ('padding', ctypes.c_char * 32),
    )


class _Times(ctypes.Structure):
    """``struct itimerspec``."""

    _fields_ = tuple((name, ctypes.c_long) for name in ('every_s', 'every_ns', 'first_s', 'first_ns'))


class Backstop:
    """A timer that writes every thread's stack to standard error and then leaves; armed again and again by what is alive.

    No Python runs when it expires: faulthandler's own C thread writes, and the C library's timer calls ``_exit``
    (``faulthandler`` alone can only leave with code 1). A forked child does not inherit it.

    Args:
        exit_code (int): What to leave with.

    Raises:
        OSError: If the kernel gives no timer.
    """

    def __init__(self, exit_code: int) -> None:
        # The functions of old C libraries are in librt, of new ones in libc, which librt depends on.
        self._c = ctypes.CDLL('librt.so.1', use_errno=True)
        leave = ctypes.cast(self._c._exit, ctypes.c_void_p).value
        event = _Event(exit_code, 0, SIGEV_THREAD, leave, None)
        self._timer = ctypes.c_void_p()
        self._call('timer_create', CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer))

    def arm(self, seconds: float) -> None:
        """Lets the process live for this long, unless it is armed again before."""
        faulthandler.dump_traceback_later(seconds, file=STDERR)
        self._set(seconds + DUMP_SECONDS)

    def disarm(self) -> None:
        """Lets the process live."""
        faulthandler.cancel_dump_traceback_later()
        self._set(0)

    def close(self) -> None:
        """Gives the timer back."""
        self.disarm()
        self._call('timer_delete', self._timer)

    def _set(self, seconds: float) -> None:
        times = _Times(0, 0, int(seconds), int(seconds % 1 * 1e9))
        self._call('timer_settime', self._timer, 0, ctypes.byref(times), None)

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._c, name)(*arguments) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f'{name}: {os.strerror(error)}')
