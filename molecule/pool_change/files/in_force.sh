#!/usr/bin/env bash
# Records what is in force on this edge below $1, one file per kind.
set -euo pipefail
mkdir -p "$1"
cd "$1"
{ readlink /opt/unmoor/current /usr/local/bin/unmoor; ls /opt/unmoor/releases/"$(basename "$(readlink /opt/unmoor/current)")"; } > release
find /etc/unmoor /etc/nginx /etc/systemd/system /etc/sysctl.d /var/lib/unmoor -xdev ! -type d \
    ! -path '/var/lib/unmoor/checkpoint/*' -exec stat -c '%n %a %U %G' {} + -exec sha256sum {} + | sort > files
ip -4 route show table local proto 117 | sort > routes4
ip -6 route show table local proto 117 | sort > routes6
unmoor sockets status --json | python3 -c 'import json, sys; [print(each) for each in json.load(sys.stdin)["bindings"]]' > bindings
unmoor dns status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["program"])' > dns_program
systemctl list-units --type=service,socket --state=active --no-legend --plain | awk '/unmoor|nginx/ {print $1}' > units
systemctl list-units --state=failed --no-legend --plain > failed
ls -A /var/lib/unmoor/checkpoint > checkpoints
