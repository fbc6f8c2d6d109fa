"""A small CRM, as an example of an application with tasks."""
