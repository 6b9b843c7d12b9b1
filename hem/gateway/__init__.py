"""The home device gateway (HDG): devices, meter key, leased setpoints."""
