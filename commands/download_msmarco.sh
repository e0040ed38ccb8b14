#!/usr/bin/env bash
# Fetches the MS MARCO passage collection: collection.tsv, queries and qrels, 1 GB to fetch, 3 GB unpacked.
#
#     bash commands/download_msmarco.sh [FOLDER]
#
# A broken download goes on where it broke, the archive's checksum is verified, and the files appear in FOLDER only
# after the whole archive has been unpacked. Run again, it does nothing. Needs curl and tar, no Python.
#
#     FOLDER, or MSMARCO_DIR   where the files go (default: runs/msmarco in the project's folder)
#     MSMARCO_URL              the archive's address (default: Microsoft's collectionandqueries.tar.gz); file: works too
#     MSMARCO_MD5              its checksum (default: 31644046b18952c1386cd4564ba2ae69)
set -euo pipefail

unset CDPATH # with it, cd prints where it goes
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
url="${MSMARCO_URL:-https://msmarco.z22.web.core.windows.net/msmarcoranking/collectionandqueries.tar.gz}"
md5="${MSMARCO_MD5:-31644046b18952c1386cd4564ba2ae69}"

say() { printf '%s\n' "$*"; }
fail() { # what failed, what to do
    printf 'error: %s\n' "$1" >&2
    printf '       %s\n' "${@:2}" >&2
    exit 1
}

case "${1:-}" in
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    -*) fail "unknown argument '$1'" "usage: bash commands/download_msmarco.sh [FOLDER]" ;;
esac
(($# <= 1)) || fail "expected one folder, found $# arguments" "a folder with blanks in its name wants quotes"

mkdir -p "${1:-${MSMARCO_DIR:-$root/runs/msmarco}}" || fail "cannot make the folder ${1:-${MSMARCO_DIR:-}}"
folder="$(cd "${1:-${MSMARCO_DIR:-$root/runs/msmarco}}" && pwd)"
archive="$folder/.collectionandqueries.tar.gz"
unpacked="$folder/.unpacked"
# The list of the archive's files, written last: it says that all of them are here, and of which archive.
complete="$folder/.complete-$md5"

is_complete() {
    local name
    [[ -f "$complete" ]] || return 1
    while IFS= read -r name; do
        [[ -f "$folder/$name" ]] || return 1
    done < "$complete"
}
has_checksum() { [[ -f "$archive" && "$(md5sum < "$archive")" == "$md5  -" ]]; }

if is_complete; then
    say "MS MARCO is complete in $folder"
    exit 0
fi
for program in curl tar md5sum; do
    command -v "$program" > /dev/null || fail "$program is not installed" "install it with the system's package manager"
done

if command -v flock > /dev/null; then
    exec 9> "$folder/.lock"
    flock --nonblock 9 || fail "another download into $folder is running" "wait for it"
fi

# 1. The archive: 1 GB, minutes. A part that cannot be continued (the server takes no ranges, or the part is longer
# than the file) is fetched from its start.
fetch() {
    local progress=(--silent --show-error) status=0 answer
    [[ ! -t 2 ]] || progress=()
    answer="$(curl --fail --location --globoff --continue-at - --retry 3 --connect-timeout 30 \
        --speed-limit 1000 --speed-time 60 ${progress[@]+"${progress[@]}"} \
        --write-out '%{http_code}' --output "$archive" "$url")" || status=$?
    if [[ -s "$archive" && ( $status == 33 || $status == 36 || "$answer" == 416 ) ]]; then
        say "the download cannot be continued; starting over"
        rm -f "$archive"
        fetch
        return
    fi
    ((status == 0)) || fail "curl could not fetch $url (exit code $status, see above)" \
        "run this again to go on where it broke; another address: MSMARCO_URL=..."
}
if ! has_checksum; then
    if [[ -s "$archive" ]]; then say "continuing $url"; else say "fetching $url"; fi
    fetch
fi

# 2. Its checksum: seconds. A wrong archive is removed, so that the next run starts over.
if ! has_checksum; then
    found="$(md5sum < "$archive")"
    rm -f "$archive"
    fail "$url has the MD5 ${found%% *}, expected $md5; it was removed" \
        "run this again to fetch it from the start; if the sum stays the same, the file at that address is another one"
fi

# 3. The files: a minute. tar leaves out what would land outside (a leading /, a ..) and then fails; links are refused.
say "unpacking into $folder"
rm -rf "$unpacked"
mkdir "$unpacked"
tar --extract --gzip --no-same-owner --file "$archive" --directory "$unpacked" ||
    fail "tar could not unpack the archive of $url, see above" "free disk space? 3 GB are needed; then run this again"
[[ -z "$(find "$unpacked" ! -type f ! -type d)" ]] ||
    fail "the archive of $url holds links or devices, which were not unpacked into $folder" "is it the right file?"

# 4. Their places: at once, then the archive goes.
(cd "$unpacked" && find . -type f -printf '%P\n' | sort) > "$folder/.files"
find "$unpacked" -mindepth 1 -maxdepth 1 -exec mv --force --target-directory "$folder" {} +
mv "$folder/.files" "$complete"
rm -rf "$unpacked" "$archive"
say "MS MARCO is complete in $folder"
