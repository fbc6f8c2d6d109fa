"""The control socket: protocol (pure) and server. What the methods do is in `limetaskd.daemon.commands`."""
