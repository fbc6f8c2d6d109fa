"""limetaskctl: the operator's client of the limetaskd daemon.

    main.py        argument parser, dispatch, exit codes
    endpoint.py    where the daemon listens
    client.py      one connection: DEALER socket, deadlines, who is gone
    protocol.py    JSON-RPC frames (pure)
    session.py     what a command gets: calls and output
    render.py      tables, figures, colours (pure)
    completion.py  shell completion
    commands/      one small file for each command

It imports the standard library, zmq and `limetaskd.version`, and zmq only when it connects: it must start fast.
"""
