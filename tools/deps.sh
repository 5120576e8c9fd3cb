#!/usr/bin/env bash
# Makes sure of what the tests need beside Go: a C compiler (race detector), a
# JDK and Maven (RocketMQ, Nacos, SkyWalking), Python with venv (a client of the discovery
# protocol), promtool (the check of metrics). As root it
# installs what is missing with apt; otherwise it says what to install.
set -euo pipefail

missing=()
need() { # need PACKAGE COMMAND
	command -v "$2" >/dev/null 2>&1 || missing+=("$1")
}
need gcc gcc
need libc6-dev "$( [ -e /usr/include/stdlib.h ] && echo true || echo missing-libc6-dev )"
need openjdk-17-jdk-headless javac
need maven mvn
need git git
need curl curl
need patch patch
need openssl openssl
need python3-venv "$(python3 -c "import ensurepip, venv" 2>/dev/null && echo true || echo missing-python3-venv)"
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "The tests need packages that are not installed: ${missing[*]}" >&2
	echo "Install them, on Debian with:  sudo apt-get install ${missing[*]}" >&2
	echo "Without them, 'make test-short' runs the tests that need no outside server (it needs gcc)." >&2
	exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
