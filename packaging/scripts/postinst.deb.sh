#!/bin/sh
set -e
@LIBRARY@
case "$1" in
configure)
    if [ -z "${2:-}" ]; then when=first; else when=again; fi
    limetaskd_account
    limetaskd_folders "$when"
    limetaskd_choose_python
    limetaskd_compile
    limetaskd_alternative
    if [ "$when" = first ]; then
        if limetaskd_systemd; then systemctl daemon-reload || :; fi
    else
        limetaskd_upgrade
    fi
    ;;
triggered)
    # /usr/bin/python3 is another one now.
    limetaskd_choose_python
    limetaskd_compile
    ;;
esac
