"""The library of task modules and senders: app, routing, publishing, users, schedules, logs.

It runs in the application's interpreter: standard library, celery and kombu only. `limetaskd.config` is imported
when a sender must read the configuration file itself, and not before.
"""
