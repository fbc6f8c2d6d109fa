"""What runs in the application's interpreter and executes tasks: Celery's worker, with our ends, logs and reports.

`main` under the daemon, `handler` by hand; `runtime` is what the other parts share. Standard library and celery only.
"""
