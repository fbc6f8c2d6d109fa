"""`lime-task-handler` and `limefu`: read the configuration, then become the application's interpreter."""
