#!/bin/sh
# Prints the patch id of a working directory: the name gitsync gives to what it mirrors. See patch-id.md.
#
#   patch-id.sh [DIR]           the git working tree at DIR (default: here)
#   patch-id.sh --list [DIR]    the paths that id is made of, one per line, quoted as git quotes them
#   patch-id.sh --plain DIR [--object-format FORMAT]
#                               any directory, repository or not, taking only the paths listed on stdin
#
# Needs git and nothing else that a POSIX system does not have. Writes only into a temporary directory.
set -eu

die() {
    echo "patch-id.sh: $*" >&2
    exit 2
}

mode=tree dir=. format=
while [ $# -gt 0 ]; do
    case $1 in
        --list) mode=list ;;
        --plain) mode=plain ;;
        --object-format)
            [ $# -ge 2 ] || die "--object-format needs sha1 or sha256"
            format=$2
            shift
            ;;
        -*) die "unknown option: $1" ;;
        *) dir=$1 ;;
    esac
    shift
done
cd -- "$dir" || die "cannot enter $dir"

scratch=$(mktemp -d) || die "no temporary directory"
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

# Git quotes a name with odd bytes like a C string. This turns it back, with an x at the end to keep final newlines.
unquoted() {
    case $1 in
        '"'*)
            body=${1#?}
            # printf reads the same escapes, but for \" and with % as a special character.
            # shellcheck disable=SC2059
            printf "$(printf '%s' "${body%?}" | sed 's/\\"/\\042/g; s/%/%%/g')"
            printf x
            ;;
        *) printf '%sx' "$1" ;;
    esac
}

# Git lists what is tracked below a directory even after that directory became a link.
below_a_link() {
    above=${1%/*}
    while [ "$above" != "${above%/*}" ]; do
        [ -h "./$above" ] && return 0
        above=${above%/*}
    done
    [ "$above" != "$1" ] && [ -h "./$above" ]
}

# Reads listed paths; keeps those that are regular files or links here and now.
only_files() {
    while IFS= read -r line; do
        case $line in
            '"'*)
                path=$(unquoted "$line")
                path=${path%x}
                ;;
            *) path=$line ;;
        esac
        case $path in
            */) continue ;; # a repository inside this one
        esac
        if below_a_link "$path"; then
            continue
        fi
        if [ -h "./$path" ] || [ -f "./$path" ]; then
            printf '%s\n' "$line"
        fi
    done
}

if [ "$mode" = plain ]; then
    trust_x=true
    only_files >"$scratch/paths"
else
    top=$(git rev-parse --show-toplevel) || die "$dir is not in a git working tree"
    cd -- "$top"
    [ -n "$format" ] || format=$(git rev-parse --show-object-format)
    trust_x=$(git config --type=bool --default true core.fileMode)
    export GIT_OPTIONAL_LOCKS=0
    git -c core.quotePath=true ls-files -co --deduplicate --exclude-standard >"$scratch/listed"
    # A submodule that was replaced by a file is still a submodule to git.
    git -c core.quotePath=true ls-files -s | sed -n 's/^160000 [0-9a-f]* [0-9]	//p' >"$scratch/links"
    grep -Fxv -f "$scratch/links" "$scratch/listed" | only_files >"$scratch/paths"
fi

if [ "$mode" = list ]; then
    cat "$scratch/paths"
    exit 0
fi

# Paths whose execute bit is set in the index, for repositories that say the disk's means nothing.
: >"$scratch/executable"
if [ "$trust_x" = false ]; then
    git -c core.quotePath=true ls-files -s | sed -n 's/^100755 [0-9a-f]* 0	//p' |
        grep -Fx -f "$scratch/paths" >"$scratch/executable" || true
fi

# The index is filled in a repository of its own, where no attribute or setting converts contents, and without
# storing any of them: this is `git hash-object --no-filters` for files and link targets, with git's modes.
git init -q --bare ${format:+"--object-format=$format"} "$scratch/git"
echo '* -text !eol -filter -ident !working-tree-encoding' >"$scratch/git/info/attributes"
scratch_git() {
    GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_INDEX_FILE="$scratch/index" \
        git --git-dir="$scratch/git" --work-tree=. -c core.bare=false -c core.fileMode="$trust_x" \
        -c core.autocrlf=false -c core.safecrlf=false "$@"
}
scratch_git update-index --add --info-only --stdin <"$scratch/paths"
scratch_git update-index --chmod=+x --stdin <"$scratch/executable"
scratch_git write-tree --missing-ok
