#!/bin/sh
set -e
case "$1" in
remove)
    if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
    ;;
purge)
    # Queued tasks of --embedded, logs and post-mortems. The account stays: files elsewhere may be its own.
    rm -rf /var/lib/limetaskd /var/log/limetaskd /etc/limetaskd /usr/lib/limetaskd
    ;;
esac
