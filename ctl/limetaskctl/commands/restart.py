"""`restart NAME...`: rolling; the new worker consumes before the old one drains."""

from limetaskctl.commands._changed import add_names as add_arguments
from limetaskctl.commands._changed import names as params
from limetaskctl.commands._changed import render

__all__ = ["WAITS", "add_arguments", "params", "render"]

WAITS = True
