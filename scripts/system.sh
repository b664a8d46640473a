#!/usr/bin/env bash
# Debian packages that pip cannot bring; needs root. Training needs the compiler, the tests also a browser for the report.
# Installs only what is missing, so that a second call costs a moment.
set -euo pipefail

packages=(g++ make git python3-venv ninja-build chromium fonts-noto-cjk libnuma1)
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then echo "system: nothing to install"; exit 0; fi
[ "$(id -u)" = 0 ] || { echo "system: needs root to install: ${missing[*]}. Type: sudo scripts/system.sh" >&2; exit 1; }

echo "system: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
