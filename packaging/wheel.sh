#!/usr/bin/env bash
# Build dist/shadowmesh-VERSION-*.whl and print its path. Called by make, which holds the lock.
#
# The wheel carries the data plane and a libsodium of its own, and not the hooks of the tests; what
# it needs besides are the system's OpenSSL 3 and the Python packages in pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
py=${VENV:-.venv}/bin/python
fresh=build/wheel
# setuptools packs whatever lies in build/lib, also modules that are no longer in the tree.
rm -rf build/lib.* build/bdist.* "$fresh"
echo "wheel: translating and compiling once more, without the modules for tests" >&2
SHADOWMESH_HOOKS=0 "$py" -m pip --disable-pip-version-check --quiet wheel \
    --no-deps --no-build-isolation --no-index --wheel-dir "$fresh" . >&2
mkdir -p dist
for wheel in "$fresh"/*.whl; do
    mv "$wheel" dist/
    echo "dist/${wheel##*/}"
done
