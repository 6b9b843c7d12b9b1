"""
The home display gateway: devices, the meter key, and a Unix socket to ask them by.

`hem.gateway.service` is its own process; everyone else imports this client.
"""

from hem.gateway.client import GatewayClient, GatewayError

__all__ = ["GatewayClient", "GatewayError"]
