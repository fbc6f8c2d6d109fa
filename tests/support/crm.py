"""The task module that daemon tests give to their workers, and the configuration that goes with it."""

from __future__ import annotations

from typing import Any

MODULE = "crmtasks"
SOURCE = '''
    """Small tasks, some of them misbehaving."""
    import os
    import time
    from pathlib import Path

    from limetaskd import task


    @task(qos="asap", name="crm.add")
    def add(a, b):
        return a + b


    @task(qos="asap", name="crm.pid")
    def pid():
        return os.getpid()


    @task(name="crm.mark")
    def mark(folder, number, pause_s=0.0):
        """Leaves one file for each run: `number.run-1`, `number.run-2`, ..."""
        time.sleep(pause_s)
        run = 1
        while True:
            try:
                Path(folder, f"{number}.run-{run}").touch(exist_ok=False)
                return number
            except FileExistsError:
                run += 1


    @task(name="crm.wait_for")
    def wait_for(path, started=None):
        """Runs until `path` exists; `started`: a file that says that it runs."""
        if started:
            Path(started).touch()
        deadline = time.monotonic() + 120
        while not Path(path).exists():
            if time.monotonic() > deadline:
                raise TimeoutError(path)
            time.sleep(0.01)
        return os.getpid()


    @task(name="crm.fail")
    def fail(message):
        raise ValueError(message)


    @task(name="crm.print")
    def say(text):
        print(text, flush=True)
        return text
'''


def configuration(broker: str, backend: str, **limetaskd: Any) -> dict[str, Any]:
    """Two QoS queues and the default one, dedicated pools of two slots; `limetaskd` overrides."""
    return {
        "tasks": {
            "broker_connection_string": broker,
            "backend_connection_string": backend,
            "routing": {"qos": {"asap": "q_asap", "background": "q_background"}, "tasks": {}},
        },
        "limetaskd": {"strategy": "dedicated", "concurrency": 2, "imports": [MODULE], **limetaskd},
    }
