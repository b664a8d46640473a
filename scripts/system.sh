#!/usr/bin/env bash
# Debian packages that pip cannot bring; needs root. Training needs the compiler, the tests also a browser for the report
# and promtool for the alert rules.
# Installs only what is missing, so that a second call costs a moment.
set -euo pipefail

packages=(g++ make git python3-venv ninja-build chromium fonts-noto-cjk libnuma1)
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
tools=()
command -v promtool >/dev/null || tools=(promtool)
if [ $((${#missing[@]} + ${#tools[@]})) -eq 0 ]; then echo "system: nothing to install"; exit 0; fi
[ "$(id -u)" = 0 ] || { echo "system: needs root to install: ${missing[*]} ${tools[*]}. Type: sudo scripts/system.sh" >&2; exit 1; }

echo "system: installing ${missing[*]} ${tools[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
[ ${#missing[@]} -eq 0 ] || apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
# The package `prometheus` would start a server on port 9090: only its test tool is taken out.
if [ ${#tools[@]} -gt 0 ]; then
    unpacked=$(mktemp -d); trap 'rm -rf "$unpacked"' EXIT; chmod 755 "$unpacked"
    (cd "$unpacked" && apt-get -o APT::Sandbox::User=root -qq download prometheus)
    dpkg-deb --fsys-tarfile "$unpacked"/prometheus_*.deb | tar -x -C /usr/local/bin --strip-components=3 ./usr/bin/promtool
fi
