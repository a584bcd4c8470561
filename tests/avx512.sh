#!/usr/bin/env bash
# Runs the tests of the CPU backend on an emulated processor with AVX-512, for machines that have none: tests/avx512.sh [folder for what it makes]
#
# Bochs boots Linux with nothing but the test programs, whose output comes back by the serial port. Needs Debian (the emulator and the kernel are its packages)
# and takes up to half an hour. Debian's Bochs, 2.7, stops at conversions to f16 and lacks AVX512_BF16: with it only the unit tests of `tensor` are run. BOCHS=/path/to/bochs names
# one of version 3.0 or newer, built with --enable-x86-64 --enable-avx --enable-evex --with-term: then the path avx512bf16 is tested too, and the conformance of every op.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath -m "${1:-${CARGO_TARGET_DIR:-target}/avx512}")
bochs=${BOCHS:-bochs}
features=
[ -z "${BOCHS:-}" ] || features=', add_features="avx512bf16"'

packages=(bochs bochsbios bochs-term vgabios isolinux syslinux-common xorriso cpio busybox-static bsdutils)
dpkg -s "${packages[@]}" >/dev/null 2>&1 || apt-get install -y -q --no-install-recommends "${packages[@]}"
mkdir -p "$work"
if [ ! -f "$work/vmlinuz" ]; then
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -1)
    (cd "$work" && apt-get download "$kernel" && dpkg -x "$kernel"_*.deb kernel && cp kernel/boot/vmlinuz-* vmlinuz)
fi

# Programs, the libraries that they ask for, and what runs them.
rm -rf "$work/root" "$work/disc"
mkdir -p "$work/root"/{bin,proc,sys,dev,tmp,tests} "$work/disc/isolinux"
cp "$(command -v busybox)" "$work/root/bin/busybox"
cargo test --workspace --lib --test conformance --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\/\(patchgpt_tensor\|conformance\)-[^"]*\)".*/\2 \1/p' |
    while read -r name program; do
        strip -o "$work/root/tests/$name" "$program"
        ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
            mkdir -p "$work/root$(dirname "$library")"
            cp -L "$library" "$work/root$library"
        done
    done
cat >"$work/root/init" <<INIT
#!/bin/busybox sh
newer=${BOCHS:+yes}
INIT
cat >>"$work/root/init" <<'INIT'
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
dmesg -n 1
grep -o -m1 'avx512_bf16' /proc/cpuinfo
cd /tests
# Without those that take hours at this speed or measure it.
./patchgpt_tensor --test-threads=1 --skip bits --skip across_blocks --skip any_layout --skip ceilings --skip threads || poweroff -f
[ -z "$newer" ] ||
    ./conformance --exact every_case_agrees_with_its_reference primitives_without_gradient_agree_with_their_reference || poweroff -f
echo EVERY TEST PASSED
poweroff -f
INIT
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/disc/initrd.gz"
cp "$work/vmlinuz" "$work/disc/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/disc/isolinux/"
cat >"$work/disc/isolinux/isolinux.cfg" <<'MENU'
default tests
label tests
 kernel /vmlinuz
 append initrd=/initrd.gz console=ttyS0,115200 mitigations=off lsm=capability nosmp nolapic noapic idle=poll random.trust_cpu=on
MENU
xorriso -as mkisofs -quiet -o "$work/disc.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$work/disc"
cat >"$work/bochsrc" <<MACHINE
megs: 2048
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=corei7_skylake_x, count=1, ips=100000000$features
clock: sync=none
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial.txt
log: $work/bochs.log
display_library: term
panic: action=fatal
MACHINE

rm -f "$work/serial.txt"
# It draws the machine's screen on a terminal of its own, and takes powering off for a failure.
(cd "$work" && TERM=xterm script -qec "$bochs -q -f bochsrc" /dev/null <<<c >/dev/null 2>&1) || true
cat "$work/serial.txt"
grep -q '^EVERY TEST PASSED' "$work/serial.txt"
