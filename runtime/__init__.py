"""
Ports to the world (Clock, Rng, Bus, Store) and their real versions.

The only MQTT client lives here.
"""
