@LIBRARY@
# At an upgrade ($1 = 1) the new version has been installed already: nothing to do.
if [ "$1" = 0 ]; then
    limetaskd_stop
    limetaskd_no_alternative
    limetaskd_uncompile
    rm -f /usr/lib/limetaskd/bin/python
fi
exit 0
