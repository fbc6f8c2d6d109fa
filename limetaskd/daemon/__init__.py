"""The daemon: processes, channel, control socket and log relay around one asyncio loop.

It imports no task code, no Celery and no kombu. Nothing here waits for a broker, a disk or a client in the loop:
threads and other processes do.
"""
