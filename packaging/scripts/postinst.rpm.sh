@LIBRARY@
limetaskd_choose_python || exit 1
limetaskd_uncompile
limetaskd_compile
limetaskd_alternative
if [ "$1" = 1 ]; then
    if limetaskd_systemd; then systemctl daemon-reload || :; fi
else
    limetaskd_upgrade
fi
exit 0
