"""The embedded MQTT broker: authentication, topic access, closed defects."""
