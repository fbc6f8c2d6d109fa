#!/bin/sh
# The servers that the integration tests start for themselves: RabbitMQ and Redis. Installed from apt when they are
# missing and we are root; otherwise says what to install and fails. The tests never use a service of the system.
set -eu

missing=
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || [ -x /usr/lib/rabbitmq/sbin/rabbitmq-server ] \
    || missing="$missing rabbitmq-server"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "The integration tests need:$missing. Install with: sudo apt-get install$missing" >&2
    exit 1
fi

echo "installing$missing"
# The packages would start their services; nobody here needs those.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get -o DPkg::Lock::Timeout=300 update -qq
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $missing
