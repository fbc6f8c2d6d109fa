"""The sending side, like a web application: it imports no task module, and sends by name.

Prints what it sends and, when all is sent, the results as they come. Needs $LIMETASK_CONFIG.
"""

from __future__ import annotations

import sys

from limetaskd import create_app, send_task, task_user

# Task, arguments, options of send_task. A sender by name cannot know the category of the decorator: it says one itself.
WORK = [
    ("crm.tasks.rename_company", (7, "Acme"), {"qos": "asap"}),
    ("crm.tasks.rename_company", (8, "Umbrella"), {"qos": "asap"}),
    ("crm.tasks.build_report", ("sales of the year",), {"qos": "background"}),
    ("crm.tasks.build_report", ("urgent figures", 1.0), {"qos": "asap"}),  # this one may not wait in the background
    ("crm.tasks.write_history", (7, "called by phone"), {}),
    ("crm.tasks.send_email", ("ann@example.com", "welcome"), {}),  # routing.tasks
    ("crm.tasks.clean_up_sessions", (90,), {"qos": "scheduled"}),
]
RESULT_TIMEOUT_S = 60


def main() -> int:
    create_app()
    sent = []
    with task_user("42"):
        for name, arguments, options in WORK:
            sent.append((name, send_task(name, arguments, **options)))
            print(f"sent    {name}{arguments!r} {options or ''}".rstrip(), flush=True)
    print("all sent", flush=True)
    for name, result in sent:
        print(f"result  {name}: {result.get(timeout=RESULT_TIMEOUT_S)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
