"""Reading the file and the environment into validated models, with all errors at once. `load.py` is the entry."""
