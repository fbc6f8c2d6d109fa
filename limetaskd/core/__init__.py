"""Plain data and pure functions that daemon, workers and senders share. Standard library only.

Application interpreters import this package, whatever else they have installed: nothing here may import
pydantic, celery, zmq or any other part of limetaskd.
"""
