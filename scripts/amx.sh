#!/bin/bash
# amx.sh: checks kernels for AMX on an emulated processor. Builds Bochs 3.0 from Debian's source with scripts/amx/bochs.patch,
# boots Debian's kernel with attend in its first file system, and runs unit tests and, with CHECK="name ..", conformance
# (softmax takes about an hour). Building Bochs takes some minutes, the tests ten. Needs no root; what it fetches and builds
# stays in build/amx.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/amx
release=$PWD/build/release
pool=http://deb.debian.org/debian/pool/main/b/bochs
source=bochs_3.0+dfsg.orig.tar.xz
source_sha256=78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b
fail() {
  echo "amx: $1" >&2
  exit 1
}
mkdir -p "$work"
for tool in apt-get dpkg curl patch make g++; do
  command -v "$tool" >/dev/null || fail "needs $tool (a Debian 12 system)"
done

bochs=$work/bochs-$(md5sum scripts/amx/bochs.patch | cut -c1-12)
if [ ! -x "$bochs/bochs" ]; then
  echo "amx: building Bochs (minutes)"
  [ -e "$work/$source" ] || curl -fsS -o "$work/$source" "$pool/$source" || fail "can't fetch $pool/$source"
  echo "$source_sha256  $work/$source" | sha256sum --check --quiet || fail "$source is not what it was"
  rm -rf "$bochs"
  mkdir "$bochs"
  tar xf "$work/$source" -C "$bochs" --strip-components=1
  patch -s -d "$bochs" -p1 <scripts/amx/bochs.patch
  (
    cd "$bochs"
    ./configure --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-cpu-level=6 --with-nogui \
      --enable-all-optimizations --enable-long-phy-address --disable-docbook --disable-logging CXXFLAGS=-O2 CFLAGS=-O2
    make -j "$(nproc)"
  ) >"$work/bochs.log" 2>&1 || fail "Bochs does not build, see $work/bochs.log"
fi

# Packages are unpacked, not installed.
system=$work/system
if [ ! -e "$system/complete" ]; then
  echo "amx: fetching a kernel, firmware and boot loader"
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -1)
  [ -n "$kernel" ] || fail "apt knows no linux-image-cloud-amd64; run apt-get update"
  rm -rf "$system" "$work/packages"
  mkdir -p "$system" "$work/packages"
  (
    cd "$work/packages"
    apt-get -qq download "$kernel" bochsbios vgabios busybox-static isolinux syslinux-common \
      xorriso libisoburn1 libisofs6 libburn4 libjte2 2>&1
  ) >"$work/packages.log" || fail "can't fetch packages, see $work/packages.log"
  for package in "$work"/packages/*.deb; do dpkg -x "$package" "$system"; done
  touch "$system/complete"
fi

# The first file system: busybox, programs and their libraries.
root=$work/root
rm -rf "$root" "$work/iso"
mkdir -p "$root"/{bin,dev,proc,sys,tmp} "$work/iso/isolinux"
cp "$system/bin/busybox" "$root/bin"
for program in attend tests/test_simd tests/test_exact; do
  [ -x "$release/$program" ] || fail "build/release/$program is missing; run make build"
  strip -o "$root/$(basename "$program")" "$release/$program"
  ldd "$release/$program" | grep -oE '/[^ ]+\.so[^ ]*'
done | sort -u | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
cat >"$root/init" <<EOF
#!/bin/busybox sh
/bin/busybox mount -t proc p /proc
/bin/busybox mount -t devtmpfs d /dev
export ATTEND_ISA=amx OMP_NUM_THREADS=1
/attend isa && for names in ${CHECK:-}; do /attend check \$names; echo "[status] \$?"; done
/test_simd --gtest_brief=1 --gtest_color=no --gtest_filter='Tiles*:*TheBitsAreThoseOfEveryOtherMachine/Q*'; echo "[status] \$?"
/test_exact --gtest_brief=1 --gtest_color=no --gtest_filter='Amx*:*Computes*/amx:*Hooks*/amx'; echo "[status] \$?"
echo "[end]"
/bin/busybox sleep 5
/bin/busybox poweroff -f
EOF
chmod +x "$root/init"
(cd "$root" && find . | "$system/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$work/iso/isolinux/initrd.gz"
cp "$system"/boot/vmlinuz-* "$work/iso/isolinux/vmlinuz"
cp "$system"/usr/lib/ISOLINUX/isolinux.bin "$system"/usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/iso/isolinux"
# Without fast short rep mov (clearcpuid=580), with which Bochs corrupts the kernel's memory.
cat >"$work/iso/isolinux/isolinux.cfg" <<'EOF'
default attend
label attend
kernel vmlinuz
append initrd=initrd.gz console=ttyS0,115200 quiet mitigations=off nokaslr panic=-1 reboot=t tsc=reliable clearcpuid=580 lsm=lockdown apparmor=0
EOF
LD_LIBRARY_PATH=$system/usr/lib/x86_64-linux-gnu "$system/usr/bin/xorriso" -as mkisofs -quiet -o "$work/boot.iso" \
  -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$work/iso" \
  >"$work/iso.log" 2>&1 || fail "no boot image, see $work/iso.log"

# Left out of the processor: what Bochs' firmware can't restore from system management mode.
cat >"$work/bochsrc" <<EOF
megs: 2048
cpu: model=sapphire_rapids, count=1, ips=200000000, reset_on_triple_fault=0, exclude_features="la57,uintr,pks,pku,cet,serialize,waitpkg,umip"
romimage: file=$system/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$system/usr/share/vgabios/vgabios.bin
pci: enabled=1, chipset=i440fx
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial.txt
log: $work/emulator.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
display_library: nogui
clock: sync=none
EOF
rm -f "$work/serial.txt"
echo "amx: booting; the tests take minutes${CHECK:+, conformance longer}"
timeout "${AMX_SECONDS:-7200}" "$bochs/bochs" -q -f "$work/bochsrc" </dev/null >"$work/emulator.out" 2>&1 || true
output=$(tr -d '\r' <"$work/serial.txt" 2>/dev/null | grep -avE '^\[ *[0-9]+\.[0-9]+\]' || true)
grep -aq '^\[end\]' <<<"$output" || fail "the emulated machine did not finish, see $work/serial.txt and $work/emulator.log"
grep -a '^amx' <<<"$output" || true
grep -aE '^\[  FAILED  \] .* \([0-9]+ ms\)|^failed|: Failure$' <<<"$output" || true
# A program that ends badly without a failed test counts as one failure.
LC_ALL=C awk '
  /^\[  PASSED  \] [0-9]+ test/ { passed += $4 }
  /^\[  FAILED  \] [0-9]+ tests?, listed below/ { here += $4 }
  /^[0-9]+ passed, [0-9]+ failed/ { passed += $1; here += $3 }
  /^\[status\]/ { failed += here > 0 ? here : $2 != 0; here = 0 }
  END { print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0 }
' <<<"$output"
