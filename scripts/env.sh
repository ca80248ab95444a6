# Makes .venv and installs the package there. Source it in the repository's root. POSIX sh, for macOS too.

say() { printf '%s\n' "$*" >&2; }

# Prints the first Python on the PATH that is new enough.
find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    say "No Python 3.11 or newer on the PATH (python3 is: $(python3 --version 2>&1 || true))."
    say "Install one from https://www.python.org or your package manager, and try again."
    return 1
}

make_venv() {
    python=$(find_python) || exit 2
    if [ "$(uname)" = Darwin ] && [ "$("$python" -c 'import platform; print(platform.machine())')" != arm64 ]; then
        say "MLX needs Apple silicon and an arm64 Python; $python is not one."
        exit 2
    fi
    say "Making .venv with $python ..."
    clear=
    .venv/bin/python -c '' 2>/dev/null || clear=--clear # its Python does not run any more
    # shellcheck disable=SC2086
    "$python" -m venv $clear .venv && return
    say "$python cannot make environments; on Debian and Ubuntu: apt install python3-venv"
    exit 2
}

# prepare [EXTRA]: does nothing if .venv was made for the same pyproject.toml in the same folder.
prepare() {
    extras=${1:-}
    [ "$(uname)" = Darwin ] || extras="cpu${extras:+,$extras}"
    stamp=.venv/.installed${1:+-$1}
    key=$({ cat pyproject.toml && pwd; } | cksum)
    [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return

    .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv
    say "Installing mlxmtp${extras:+ with $extras} into .venv (the first time takes a minute or two) ..."
    .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --editable ".${extras:+[$extras]}" >&2
    for done in "$stamp" .venv/.installed; do # installing an extra installs the package too
        printf '%s\n' "$key" >"$done"
    done
}
