#!/usr/bin/env bash
# The suite's core on aarch64, emulated: Debian's Python and numpy's wheel for it, the kernels compiled for it.
# Takes Debian packages gcc-aarch64-linux-gnu and qemu-user, the Debian and Python registries, and about ten minutes.
# Two processors are emulated: one with NEON alone, one with the dot product of int8, too. Neither has SVE: on
# qemu's `max`, which has it, NumPy's own products of matrices held NaN.
# usage: tests/trust/aarch64.sh [FOLDER] [quick]      the folder is reused if it holds what is needed; quick leaves out
#        most of the kernels' own tests, which take most of the time
set -euo pipefail
cd "$(dirname "$0")/../.."
repository=$PWD
work=${1:-$(mktemp -d)}
mkdir -p "$work/debs" "$work/root"
python=${PYTHON:-python3}
minor=$(apt-cache show python3 | sed -n "s/^Version: 3\.\([0-9]*\).*/\1/p" | sed -n 1p) # Debian's own Python

if [ ! -d "$work/root/usr/lib" ]; then
    dpkg --add-architecture arm64 && apt-get update -q
    packages=("python3.$minor-minimal" "libpython3.$minor-minimal" "libpython3.$minor-stdlib" "libpython3.$minor-dev")
    packages+=(libc6 libgcc-s1 libstdc++6 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libexpat1)
    (cd "$work/debs" && apt-get download -q "${packages[@]/%/:arm64}")
    for package in "$work"/debs/*.deb; do dpkg -x "$package" "$work/root"; done
    dpkg --remove-architecture arm64 && apt-get update -q
fi
if [ ! -d "$work/site" ]; then
    platforms=(--platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64)
    "$python" -m pip install -q --target "$work/site" "${platforms[@]}" --python-version "3.$minor" \
        --implementation cp --only-binary=:all: numpy ml_dtypes safetensors threadpoolctl rich pytest hypothesis
fi

rm -rf "$work/tree" && mkdir -p "$work/tree"
cp -rL hhtld tests pyproject.toml README.md CHANGELOG.md "$work/tree/" # with what the link hhtld/formats leads to
mkdir "$work/tree/hhtld-0.dist-info" # nothing is installed there, and journals ask for a version
printf 'Metadata-Version: 2.1\nName: hhtld\nVersion: 0\n' > "$work/tree/hhtld-0.dist-info/METADATA"
rm -rf "$work"/tree/hhtld/_kernels/*.so "$work/tree/tests/viewers"
cd "$work/tree"
headers=$work/root/usr/include
shared=_memoryviews # what Cython writes for typed memoryviews stands in one module, as in setup.py
"$python" -m cython -X freethreading_compatible=True --generate-shared="$PWD/hhtld/_kernels/$shared.c"
"$python" -m cython -3 -X boundscheck=False -X wraparound=False -X cdivision=True \
    -X initializedcheck=False -X binding=True --shared="hhtld._kernels.$shared" hhtld/_kernels/_*.pyx
for source in hhtld/_kernels/_*.c; do
    module=$(basename "$source" .c)
    aarch64-linux-gnu-gcc -O3 -std=c11 -ffp-contract=off -fvisibility=hidden -Wall -Wextra -Werror \
        -Wno-error=unused-function -shared -fPIC -I"$headers/python3.$minor" -I"$headers" -Ihhtld/_kernels \
        "$source" -o "hhtld/_kernels/$module.cpython-3$minor-aarch64-linux-gnu.so"
done

# What the compiler made of the hot loops: vectors, and how many instructions for each weight.
"$python" "$repository/tests/trust/aarch64_loops.py"

export PYTHONPATH=$work/tree:$work/site PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
emulated() { qemu-aarch64 -cpu "$processor" -L "$work/root" "$work/root/usr/bin/python3.$minor" "$@"; }
# What these machines make of the golden packs, byte for byte.
(cd "$repository" && PYTHONPATH=$repository "$python" -m tests.trust.machines) | tail -n +2 >"$work/expected"
for emulates in "cortex-a72 neon" "cortex-a76 neondotprod"; do
    read -r processor tier <<<"$emulates"
    emulated -m tests.trust.machines | tee "$work/lines"
    test "$(head -1 "$work/lines")" = "tier $tier"
    tail -n +2 "$work/lines" | diff "$work/expected" -
done
# The container, packs encoded and decoded anew, and kernels on all three tiers against their numpy twins.
# What refuses bad files is Python alone, the same on every processor: the everyday tests try it.
emulated -m pytest -q -p no:cacheprovider tests/formats/test_golden.py tests/formats/test_hhtld.py \
    -k "not malformed and not flipped_bit"
if [ "${2:-}" = quick ]; then
    emulated -m pytest -q -p no:cacheprovider tests/kernels/test_cast.py tests/kernels/test_rotate.py
    emulated -m pytest -q -p no:cacheprovider tests/kernels/test_crossed.py -k "129 or 576"
else
    emulated -m pytest -q -p no:cacheprovider tests/kernels -k "not other_threads and not environment"
fi
echo "aarch64: all held"
