# Sourced by the maintainer scripts: which interpreter the bundled environment uses.
# /usr/lib/limetaskd/bin/python3.N is a link to /usr/bin/python3.N, for each N that the bundled packages are made for.
limetaskd_choose_python() {
    home=/usr/lib/limetaskd
    # One that works is kept: the interpreter changes when the host takes it away, and never by the way.
    if [ -x "$home/bin/python" ] && [ -L "$home/bin/python" ]; then return 0; fi
    version=$(/usr/bin/python3 -c 'import sys; print("3.%d" % sys.version_info[1])' 2>/dev/null) || version=
    for candidate in "$version" 3.14 3.13 3.12 3.11; do
        if [ -n "$candidate" ] && [ -x "$home/bin/python$candidate" ]; then
            ln -sfn "python$candidate" "$home/bin/python"
            return 0
        fi
    done
    echo "limetaskd: no Python 3.11, 3.12, 3.13 or 3.14 in /usr/bin: install one" >&2
    return 1
}

limetaskd_compile() {
    # Start-up takes a third of the time with byte code. -q -q: files of other versions' syntax are no concern.
    /usr/lib/limetaskd/bin/python -I -m compileall -q -q /usr/lib/limetaskd/lib/site-packages || :
}

limetaskd_uncompile() {
    if [ -d /usr/lib/limetaskd ]; then
        find /usr/lib/limetaskd -name __pycache__ -type d -prune -exec rm -rf {} +
    fi
}

limetaskd_account() {
    getent group limetaskd >/dev/null || groupadd --system limetaskd
    getent passwd limetaskd >/dev/null || useradd --system --gid limetaskd --home-dir /var/lib/limetaskd \
        --no-create-home --shell /usr/sbin/nologin --comment "limetaskd workers" limetaskd
}

limetaskd_folders() {
    # Senders and operators in the group may read the configuration; only root writes it.
    chown root:limetaskd /etc/limetaskd
    chmod 0750 /etc/limetaskd
    for file in /etc/limetaskd/limetaskd.yaml /etc/limetaskd/environment; do
        # At the first installation only: later they are the operator's.
        if [ "$1" = first ] && [ -e "$file" ]; then
            chown root:limetaskd "$file"
            chmod 0640 "$file"
        fi
    done
    for folder in /var/lib/limetaskd /var/log/limetaskd; do
        if [ "$1" = first ] && [ -d "$folder" ]; then
            chown limetaskd:limetaskd "$folder"
            chmod 0750 "$folder"
        fi
    done
}

limetaskd_alternative() {
    # limefu is also a command of CRM hosts: theirs wins when they register it with a higher priority.
    if command -v update-alternatives >/dev/null 2>&1; then
        update-alternatives --install /usr/bin/limefu limefu /usr/lib/limetaskd/bin/limefu 10 \
            --slave /usr/share/man/man1/limefu.1.gz limefu.1.gz /usr/lib/limetaskd/share/limefu.1.gz
    else
        echo "limetaskd: no update-alternatives here: limefu is /usr/lib/limetaskd/bin/limefu" >&2
    fi
}

limetaskd_no_alternative() {
    if command -v update-alternatives >/dev/null 2>&1; then
        update-alternatives --remove limefu /usr/lib/limetaskd/bin/limefu || :
    fi
}

limetaskd_systemd() { [ -d /run/systemd/system ]; }

limetaskd_units() {
    systemctl list-units --plain --no-legend --all 'limetaskd.service' 'limetaskd@*.service' 2>/dev/null \
        | while read -r unit _; do printf '%s\n' "$unit"; done
}

limetaskd_upgrade_allowed() {
    # Debian's way for an administrator to keep packages from touching services.
    [ ! -x /usr/sbin/policy-rc.d ] || /usr/sbin/policy-rc.d limetaskd restart
}

limetaskd_upgrade() {
    limetaskd_systemd || return 0
    systemctl daemon-reload || :
    limetaskd_upgrade_allowed || return 0
    limetaskd_units | while read -r unit; do
        # In the background: old workers finish their tasks first, and the package manager need not wait for that.
        if systemctl is-active --quiet "$unit"; then
            systemd-run --quiet --collect --no-block --description="Upgrade of $unit" \
                /usr/lib/limetaskd/libexec/upgrade-running "$unit" </dev/null || :
        fi
    done
}

limetaskd_stop() {
    limetaskd_systemd || return 0
    limetaskd_units | while read -r unit; do
        systemctl stop "$unit" || :
        systemctl disable --quiet "$unit" 2>/dev/null || :
    done
}
