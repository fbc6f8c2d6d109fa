#!/bin/sh
set -e
@LIBRARY@
case "$1" in
remove | deconfigure)
    limetaskd_stop
    limetaskd_no_alternative
    limetaskd_uncompile
    rm -f /usr/lib/limetaskd/bin/python
    ;;
upgrade | failed-upgrade)
    limetaskd_uncompile
    ;;
esac
