"""The tasks of the example CRM: one for each QoS category, one on the default queue, one routed by its name.

Task code thinks in QoS categories. Which queue a category means, and how many processes work on it, is the
operator's business (`limetaskd.yaml`).
"""

from __future__ import annotations

import time
from datetime import timedelta

from limetaskd import CronTab, ScheduledTask, send_task, task


@task(qos="asap")
def rename_company(company_id: int, name: str) -> str:
    """A user waits for this one. It sends two more tasks, which keep the user of this one."""
    send_task("crm.tasks.write_history", (company_id, f"renamed to {name}"))
    send_task("crm.tasks.send_email", (f"owner-{company_id}@example.com", f"{name} has a new name"))
    return f"company {company_id} is now {name}"


@task(qos="background")
def build_report(title: str, seconds: float = 5.0) -> str:
    """Slow, and nobody waits for it."""
    time.sleep(seconds)
    return f"report {title!r} is ready"


@task
def write_history(company_id: int, what: str) -> str:
    """No category: the default queue."""
    return f"company {company_id}: {what}"


@task(qos="background")
def send_email(to: str, subject: str) -> str:
    """`routing.tasks` gives it a queue of its own, whatever its category says."""
    return f"mail to {to}: {subject}"


@task(qos="scheduled")
def refresh_dashboard() -> str:
    """Runs every few seconds."""
    return "dashboard refreshed"


@task(qos="scheduled")
def clean_up_sessions(older_than_days: int) -> str:
    """Runs at night."""
    return f"removed the sessions older than {older_than_days} days"


def register_scheduled_tasks() -> list[ScheduledTask]:
    """The schedule of this module, in the time zone `tasks.timezone`. limetaskd runs each entry once, on one host."""
    return [
        ScheduledTask(task="crm.tasks.refresh_dashboard", schedule=timedelta(seconds=3)),
        ScheduledTask(task="crm.tasks.clean_up_sessions", schedule=CronTab(hour=2, minute=30), args=(30,)),
    ]
