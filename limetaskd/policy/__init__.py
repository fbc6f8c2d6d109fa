"""Decisions with time as a parameter: no clock, no I/O, standard library only."""
