#!/usr/bin/env bash
# prepare.sh DIR: prepare an emulated aarch64 Python with the packages of runtime and export, on an x86_64 Debian.
# DIR/python then runs like python3; DIR/qemu runs other aarch64 programs (their libraries are in DIR/root, for -L).
# Nothing is installed: packages are downloaded and unpacked. BITA_CPU names the processor, e.g. cortex-a76 (default: max).
# Other programs that the emulated Python starts are not emulated.
set -euo pipefail
dir=$(mkdir -p "${1:?usage: prepare.sh DIR}" && cd "$1" && pwd)
test ! -e "$dir/ready" || exit 0
command -v apt-get > /dev/null || { echo "prepare.sh: requires a Debian with apt-get" >&2; exit 1; }
key=/usr/share/keyrings/debian-archive-keyring.gpg
test -e "$key" || key=${key%.gpg}.pgp
test -e "$key" || { echo "prepare.sh: $key is missing; run apt-get install debian-archive-keyring" >&2; exit 1; }
uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/\?$' | sort -u | head -1 || true)
uri=${uri:-http://deb.debian.org/debian}

lists() { # lists ARCH SUITE: update package lists of an architecture and release, separate from the system's
  local at=$dir/apt-$1-$2
  mkdir -p "$at"/{state/partial,cache/archives/partial}
  echo "deb [arch=$1 signed-by=$key] $uri $2 main" > "$at/list"
  apt=(-o APT::Architecture="$1" -o APT::Architectures="$1" -o Dir::Etc::sourcelist="$at/list" -o Dir::Etc::sourceparts=/dev/null
       -o Dir::State::Lists="$at/state" -o Dir::Cache="$at/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
  apt-get "${apt[@]}" -qq update
}
fetch() { # fetch PACKAGE...: download packages and unpack them into the current folder
  apt-get "${apt[@]}" -qq download "$@"
  for deb in *.deb; do dpkg -x "$deb" .; done
  rm ./*.deb
}

rm -rf "$dir"/{root,emulator,wheels,site}
mkdir -p "$dir"/{root,emulator,wheels,site}
lists amd64 trixie # qemu 7.2 of Debian 12 crashes ONNX Runtime; 10.0 is static and runs on Debian 12 too
(cd "$dir/emulator" && fetch qemu-user)
ln -sf "$dir/emulator/usr/bin/qemu-aarch64" "$dir/qemu"
lists arm64 bookworm # Python 3.11
(cd "$dir/root" && fetch libc6 libpython3.11-minimal libpython3.11-stdlib python3.11-minimal libexpat1 zlib1g libssl3 \
  libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libstdc++6 libgcc-s1 libncursesw6 libtinfo6 libreadline8 libuuid1 libdb5.3 \
  libcrypt1 libnsl2 libtirpc3 media-types)
platforms=(--platform any --platform manylinux2014_aarch64)
for n in 39 34 31 28 27 17; do platforms+=(--platform "manylinux_2_${n}_aarch64"); done
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
  --implementation cp "${platforms[@]}" -d "$dir/wheels" \
  numpy 'onnxruntime>=1.23' tokenizers safetensors jinja2 rich markupsafe pygments markdown-it-py mdurl protobuf flatbuffers \
  packaging huggingface-hub filelock fsspec pyyaml tqdm requests httpx typing-extensions \
  onnx-ir ml-dtypes onnx sympy mpmath gguf pytest pluggy iniconfig
for wheel in "$dir"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$dir/site"; done
rm -r "$dir/wheels"
cat > "$dir/python" << PY
#!/bin/sh
PYTHONPATH="\${PYTHONPATH:+\$PYTHONPATH:}$dir/site" ORT_DISABLE_TELEMETRY=1 PYTHONDONTWRITEBYTECODE=1 \\
  exec "$dir/qemu" -cpu "\${BITA_CPU:-max}" -L "$dir/root" "$dir/root/usr/bin/python3.11" "\$@"
PY
chmod +x "$dir/python"
"$dir/python" -c "import platform, onnxruntime; print(platform.machine(), 'onnxruntime', onnxruntime.__version__)"
touch "$dir/ready"
