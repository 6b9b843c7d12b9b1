"""What Modbus allows in one request, and the two ways in which a device may fail us."""

from __future__ import annotations

import logging

from wire.errors import HearthgridError

REGISTERS_MAX = 125
"""Most registers of one read (Modbus application protocol 6.3)."""

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # we log a loss once, it does per request


class DeviceError(HearthgridError):
    """A device did not do what we asked."""


class DeviceLostError(DeviceError):
    """No connection, or no answer in time."""


class DeviceRefusedError(DeviceError):
    """The device answered with an exception, or with something else than was asked."""
