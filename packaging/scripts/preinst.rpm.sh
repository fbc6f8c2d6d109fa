@LIBRARY@
limetaskd_account
exit 0
