"""The schedule: a Celery scheduler with a small saved state (`scheduler`) and its process under the daemon (`main`)."""
