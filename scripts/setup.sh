# Sourced by the other scripts: makes .venv, installs the toolkit with everything that its tests need, and puts the
# environment first on PATH. Does nothing when that was done from this folder and pyproject.toml is still the same.
# Sets `root`, the repository's folder. PYTHON=python3.12 chooses another Python for a new environment.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

_what_is_installed() { echo "$root"; cat -- "$root/pyproject.toml"; }

_set_up() {
    local venv=$root/.venv python=${PYTHON:-python3}
    local stamp=$venv/installed
    if [ -f "$stamp" ] && _what_is_installed | cmp -s - "$stamp"; then
        return
    fi
    if [ ! -x "$venv/bin/python" ]; then
        if ! command -v "$python" >/dev/null; then
            echo "error: $python isn't there; install Python 3.11 or newer, or name one: PYTHON=/path/to/python3 $0" >&2
            exit 2
        fi
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "error: found $("$python" --version), expected Python 3.11 or newer; name one: PYTHON=python3.12 $0" >&2
            exit 2
        fi
        rm -rf -- "$venv"
        if ! "$python" -m venv "$venv"; then
            rm -rf -- "$venv"
            echo "error: $python can't make an environment; install its venv module (Debian: apt install python3-venv)" >&2
            exit 2
        fi
    fi
    rm -f -- "$stamp"
    echo "installing into $venv (once; PyTorch makes it several gigabytes and some minutes)" >&2
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check -e "$root[dev]"
    _what_is_installed >"$stamp"
}

_set_up
export VIRTUAL_ENV=$root/.venv PATH=$root/.venv/bin:$PATH
unset PYTHONHOME PYTHONPATH
