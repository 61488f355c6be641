#!/usr/bin/env bash
# Compares ways to bring uncommitted work to another machine: bytes sent and files rewritten there, for the same edits.
# Prints the table of methods.md. See there for what each way is.
#
#   methods.sh [DIR]     DIR holds gitsync-tui and gitsync-server (default: target/release)
#
# Needs git, and GNU find for its -printf. Works in a temporary directory.
set -euo pipefail
export LC_ALL=C

bin=$(cd "${1:-target/release}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
client='' server=''
finish() {
    [ -z "$client" ] || kill "$client" 2>/dev/null || true
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 HOME=$work/home XDG_RUNTIME_DIR=$work/run
export XDG_CONFIG_HOME=$work/config XDG_STATE_HOME=$work/state XDG_CACHE_HOME=$work/cache
export GIT_AUTHOR_NAME=nobody GIT_AUTHOR_EMAIL=nobody@example.net GIT_AUTHOR_DATE='2024-01-02 03:04:05 +0000'
export GIT_COMMITTER_NAME=nobody GIT_COMMITTER_EMAIL=nobody@example.net GIT_COMMITTER_DATE='2024-01-02 03:04:05 +0000'
mkdir -p "$work/home"
install -d -m 700 "$work/run"

# --- the repository: 2,000 files, 200 of them edited, and a branch that differs in 50

app=$work/app
git init -q -b main "$app"
cd "$app"
mkdir -p src/{0..19}
for n in $(seq 0 1999); do
    printf 'file %s, line %s\n' "$n" {1..20} >"src/$((n % 20))/$n.txt"
done
git add -A && git commit -q -m base
base=$(git rev-parse HEAD)
for n in $(seq 0 10 1999); do
    sed -i '7s/$/, edited/' "src/$((n % 20))/$n.txt"
done

# The tree of everything that is not ignored, in an index and a store of objects of its own.
snapshot() {
    cp .git/index "$work/index"
    GIT_INDEX_FILE=$work/index git add -A
    GIT_INDEX_FILE=$work/index git write-tree
}
patch_from() { git diff-tree -p --binary --full-index "$1" "$2"; }

# The edits, one after the other. Each leaves a new state; none is undone.
names=("one line in one file" "commit everything" "switch to a branch that differs in 50 files" "switch back")
edit() {
    case $1 in
        0) sed -i '3s/$/, once more/' src/0/0.txt ;;
        1) git commit -q -a -m work ;;
        2)
            # Made beside the working tree, so that the switch is the only change.
            git worktree add -q -b topic "$work/beside" HEAD
            for n in $(seq 5 40 1999); do sed -i '9s/$/, of the topic/' "$work/beside/src/$((n % 20))/$n.txt"; done
            git -C "$work/beside" commit -q -a -m topic
            git worktree remove --force "$work/beside"
            git switch -q topic
            ;;
        3) git switch -q main ;;
    esac
}

# --- what was rewritten: files with another inode or time

stamps() { (cd "$1" && find . -name .git -prune -o -type f -printf '%P %i %T@\n' | sort); }
rewritten() { join -v 2 "$1" "$2" -j 1 -t '~' | wc -l; }
size() { wc -c <"$1" | tr -d ' '; }

# --- the ways. Each gets the old and the new state (commit HEAD stands on, tree) and brings the copy at $copy from one to
# the other; the number of bytes it would send is left in $sent.

sent=0
# Every commit the copy lacks travels as a thin pack, for all ways alike.
commits() {
    [ "$old_head" = "$new_head" ] || git -C "$copy" cat-file -e "$new_head" 2>/dev/null || {
        printf '%s\n^%s\n' "$new_head" "$old_head" | git pack-objects --revs --thin --stdout -q >"$work/pack"
        git -C "$copy" index-pack --stdin --fix-thin <"$work/pack" >/dev/null
        sent=$((sent + $(size "$work/pack")))
    }
}
apply_here() { [ ! -s "$1" ] || git -C "$copy" apply --whitespace=nowarn "$@"; }
full_patch() {
    commits
    patch_from "$new_head" "$new_tree" >"$work/patch"
    sent=$((sent + $(size "$work/patch")))
    git -C "$copy" reset -q --hard "$new_head"
    git -C "$copy" clean -qfd
    apply_here "$work/patch"
}
patch_of_patches() {
    commits
    patch_from "$old_head" "$old_tree" >"$work/patch.old"
    patch_from "$new_head" "$new_tree" >"$work/patch"
    # One of them is sent: the difference, or the patch itself where that is shorter.
    diff -u "$work/patch.old" "$work/patch" >"$work/delta" || true
    local short
    short=$(printf '%s\n' "$(size "$work/delta")" "$(size "$work/patch")" | sort -n | head -n 1)
    sent=$((sent + short))
    git -C "$copy" checkout -q --force "$new_head"
    apply_here "$work/patch"
}
reverse_and_apply() {
    commits
    patch_from "$old_head" "$old_tree" >"$work/patch.old"
    patch_from "$new_head" "$new_tree" >"$work/patch"
    sent=$((sent + $(size "$work/patch.old") + $(size "$work/patch")))
    apply_here "$work/patch.old" --reverse
    git -C "$copy" reset -q --hard "$new_head"
    apply_here "$work/patch"
}
tree_patch() {
    commits
    patch_from "$old_tree" "$new_tree" >"$work/patch"
    sent=$((sent + $(size "$work/patch")))
    apply_here "$work/patch"
}
snapshot_commits() {
    local old new
    old=$(git commit-tree "$old_tree" -m state </dev/null)
    new=$(git commit-tree "$new_tree" -p "$old" -m state </dev/null)
    [ "$old_tree" = "$new_tree" ] || {
        printf '%s\n^%s\n^%s\n' "$new" "$old" "$old_head" | git pack-objects --revs --thin --stdout -q >"$work/pack"
        git -C "$copy" index-pack --stdin --fix-thin <"$work/pack" >/dev/null
        sent=$((sent + $(size "$work/pack")))
    }
    git -C "$copy" read-tree -m -u "$old_tree" "$new_tree"
}

# --- the comparison

ways=(full_patch patch_of_patches reverse_and_apply tree_patch snapshot_commits)
titles=("full patch each time" "patch of patches, then checkout and apply" "reverse the old patch, apply the new one"
    "tree-to-tree patch" "snapshot commits, thin packs")
first_tree=$(snapshot)
for way in "${ways[@]}"; do
    git clone -q --no-local "$app" "$work/copy-$way" 2>/dev/null
    patch_from "$base" "$first_tree" | git -C "$work/copy-$way" apply --whitespace=nowarn
done
# The snapshot way starts from a state it sent before, and its index says so.
printf '%s\n^%s\n' "$(git commit-tree "$first_tree" -m state </dev/null)" "$base" |
    git pack-objects --revs --thin --stdout -q | git -C "$work/copy-snapshot_commits" index-pack --stdin --fix-thin >/dev/null
git -C "$work/copy-snapshot_commits" add -A

"$bin/gitsync-server" serve --root "$work/servers" --listen 127.0.0.1:0 --insecure >"$work/listening" 2>"$work/server.log" &
server=$!
until grep -q '^listening' "$work/listening"; do sleep 0.05; done
cat >"$work/config.toml" <<TOML
[[server]]
name = "far"
url = "http://$(sed 's/listening on //' "$work/listening")"
[[repo]]
path = "$app"
TOML
"$bin/gitsync-tui" --config "$work/config.toml" --no-tui --format json >"$work/events" 2>"$work/client.log" &
client=$!

# Waits until the server acked these files and landed this commit, by the last word on each.
gitsync_holds() {
    for _ in $(seq 600); do
        if last acked | grep -q "\"patch_id\":\"$1\"" && last baseline | grep -q "\"to\":\"$2\""; then
            [ "$("$here/patch-id.sh" "$app")" = "$1" ] && return
        fi
        sleep 0.1
    done
    echo "gitsync did not get there in a minute" >&2
    tail -n 5 "$work/events" "$work/client.log" "$work/server.log" >&2
    exit 1
}
last() { grep "\"type\":\"$1\"" "$work/events" | tail -n 1; }
sum_of() { tail -n "+$2" "$work/events" | grep -o "\"$1\":[0-9]*" | cut -d: -f2 | awk '{s += $1} END {print s + 0}'; }
gitsync_holds "$first_tree" "$base"

rows=()
for way in "${titles[@]}" gitsync; do rows+=("| $way"); done
old_head=$base old_tree=$first_tree
for n in "${!names[@]}"; do
    stamps "$work/servers/app" >"$work/before"
    from=$(($(wc -l <"$work/events") + 1))
    edit "$n"
    new_head=$(git rev-parse HEAD) new_tree=$(snapshot)
    gitsync_holds "$new_tree" "$new_head"
    stamps "$work/servers/app" >"$work/after"
    gitsync_row="$(sum_of wire_bytes "$from") | $(rewritten "$work/before" "$work/after")"
    for w in "${!ways[@]}"; do
        copy=$work/copy-${ways[$w]} sent=0
        stamps "$copy" >"$work/before"
        "${ways[$w]}"
        stamps "$copy" >"$work/after"
        rows[w]+=" | $sent | $(rewritten "$work/before" "$work/after")"
    done
    rows[${#ways[@]}]+=" | $gitsync_row"
    old_head=$new_head old_tree=$new_tree
done

printf '| method'
printf ' | %s: bytes | files' "${names[@]}"
printf ' |\n|---'
for _ in "${names[@]}"; do printf '|--:|--:'; done
printf '|\n'
printf '%s |\n' "${rows[@]}"
