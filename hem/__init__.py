"""The Home Energy Manager: gateway, transactive controller and EMS of one home."""
