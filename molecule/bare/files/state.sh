#!/usr/bin/env bash
# Records what a rollout could change on this host below $1, one file per kind.
set -euo pipefail
mkdir -p "$1"
cd "$1"
dpkg-query --show --showformat='${db:Status-Status} ${Package} ${Version}\n' | sort > packages
getent passwd | sort > users
getent group | sort > groups
ip -4 route show table all | sort > routes4
ip -6 route show table all proto 117 | sort > routes6
findmnt --raw --noheadings --output TARGET,FSTYPE | sort > mounts
systemctl list-unit-files --no-legend --plain | sort > unit-files
systemctl list-units --type=service,socket --state=active --no-legend --plain | awk '{print $1}' | grep -v '@' | sort > units
sysctl net.core.somaxconn net.ipv4.tcp_max_syn_backlog > sysctls
ss --no-header --listening --tcp --udp --numeric | awk '{print $1, $5}' | sort > listening
# Leave out what dpkg, useradd and ldconfig rewrite whenever they run.
find /etc /usr/local /opt /var/lib/unmoor -xdev ! -type d \
    ! -path /etc/ld.so.cache ! -name '*-' ! -name .pwd.lock ! -path '/etc/shadow' ! -path '/etc/gshadow' \
    -exec sha256sum {} + 2>/dev/null | sort -k2 > files || true
find /opt /usr/local /var/lib -xdev -maxdepth 1 -type d | sort > directories
