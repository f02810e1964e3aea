"""The wire and nothing else: messages, codec, hub, journal, link, keys.

This package imports neither torch nor any other SafeLadder folder, so that an actor can depend on it alone.
"""
