"""
The shared language: units, slots, ids, envelope, canonical JSON, signing, certificates, topics.

Pure, and imports nothing of ours: every other package speaks through this one.
"""
