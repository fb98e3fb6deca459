#!/usr/bin/env bash
# Builds the program with its man page, its completions and its documentation, and packs them: build/package/foretoken_VERSION_ARCH.deb.
#   scripts/package.sh          the package
#   scripts/package.sh --try    then installs it in a bare Debian 12 (as root; debootstrap fetches one) and uses it there
# The version is the git tag's. Maintainer is $DEBFULLNAME <$DEBEMAIL>, else the name and address that git has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

try=false
for argument in "$@"; do
  case "$argument" in
    --try) try=true ;;
    *)
      echo "usage: package.sh [--try]" >&2
      exit 2
      ;;
  esac
done

scripts/install-deps.sh --package
scripts/build.sh package all
rm -f build/package/foretoken_*.deb
echo "== packing"
(cd build/package && cpack >cpack.log) || {
  cat build/package/cpack.log >&2
  exit 1
}
package=$(echo build/package/foretoken_*.deb)
dpkg-deb --info "$package"
dpkg-deb --contents "$package"
$try || exit 0

root=$(mktemp -d)
chmod 755 "$root"  # apt and man work as users of their own
clean_up() {
  for folder in dev/pts proc; do
    if mountpoint -q "$root/$folder"; then umount "$root/$folder"; fi
  done
  rm -rf --one-file-system "$root"
}
trap clean_up EXIT
echo "== a bare Debian in $root"
debootstrap --variant=minbase bookworm "$root" >"$root.log" || {
  tail "$root.log" >&2
  exit 1
}
rm -f "$root.log"
mount -t proc proc "$root/proc"
mount -t devpts -o ptmxmode=666 devpts "$root/dev/pts"  # pseudo-terminals, for zsh to complete at
ln -sf pts/ptmx "$root/dev/ptmx"
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends man-db zsh >/dev/null
cp "$package" models/foretoken-demo.gguf "$root/root/"

# Completes as at a prompt: keys go into a pseudo-terminal.
cat >"$root/root/keys.zsh" <<'SCRIPT'
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; autoload -Uz compinit; compinit -D; print -- -read""y-'
zpty -r -m shell text '*-ready-*'
zpty -w -n shell $'foretoken decode --device cu\t'
zpty -r -m shell text '*--device cuda*'
print -- '--device cu<Tab>: --device cuda'
SCRIPT

cat >"$root/root/try.sh" <<'SCRIPT'
set -euo pipefail
cd /root
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends ./foretoken_*.deb >/dev/null
echo "== version"
foretoken --version
echo "== decode"
foretoken decode -m foretoken-demo.gguf -p 'def read_lines(path):' -n 32 --mtp 3
echo "== man page"
[ -z "$(man --warnings=w foretoken 2>&1 >/dev/null)" ]
man foretoken | grep -A1 -e '-m, --model MODEL' | head -n 2 || true
[ "$(man foretoken | grep -c -e '--model MODEL')" -ge 4 ]
man -k foretoken
echo "== bash"
bash -c '
  source /usr/share/bash-completion/completions/foretoken
  complete -p foretoken
  COMP_WORDS=(foretoken decode --device c) COMP_CWORD=3
  _foretoken
  echo "--device c: ${COMPREPLY[*]}"
  [ "${COMPREPLY[*]}" = "cpu cuda" ]'
echo "== zsh"
zsh -fc '
  autoload -Uz compinit
  compinit -D
  print "found by the completion system: $_comps[foretoken]"
  [[ $_comps[foretoken] == _foretoken ]]
  source /usr/share/zsh/vendor-completions/_foretoken'
zsh -f /root/keys.zsh </dev/null
echo "== removed again"
apt-get remove -y -qq foretoken >/dev/null
[ ! -e /usr/bin/foretoken ] && [ ! -e /usr/share/man/man1/foretoken.1.gz ]
SCRIPT
chroot "$root" timeout 120 bash /root/try.sh
echo "== installed, used and removed"
