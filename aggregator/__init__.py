"""The VPP/DSO desk: asset grants, grid supervision, schedules and flexibility auctions."""
