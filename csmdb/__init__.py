"""The certified-smart-meter database: claims, participants, certificates, address grants."""
