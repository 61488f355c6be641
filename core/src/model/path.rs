//! A path inside a working tree: bytes, relative, checked once.
//!
//! Whoever holds a [`RelPath`] need not check it again: it has no empty, `.` or `..` component, no
//! NUL, and no component that any git would take for `.git`. Case variants, NTFS short names and
//! HFS+ ignorable characters are refused on every platform, as git itself does when it adds a path
//! (`verify_path` in git's read-cache.c).

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use bstr::ByteSlice;

/// Longest path in bytes (Linux `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;
/// Longest component in bytes (`NAME_MAX` of the common file systems).
pub const MAX_NAME_BYTES: usize = 255;
/// Most components a path may have.
pub const MAX_DEPTH: usize = 128;

/// A checked path relative to the root of a working tree. Cheap to clone.
///
/// Ordered by components, so that everything below a directory is one contiguous range.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Arc<[u8]>);

/// Why bytes are not a [`RelPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path is empty")]
    Empty,
    #[error("the path has {0} bytes, more than {MAX_PATH_BYTES}")]
    TooLong(usize),
    #[error("the path is deeper than {MAX_DEPTH} components")]
    TooDeep,
    #[error("the path is absolute or has an empty component")]
    EmptyComponent,
    #[error("the path has a component of {0} bytes, more than {MAX_NAME_BYTES}")]
    NameTooLong(usize),
    #[error("the path has a '.' or '..' component")]
    Dots,
    #[error("the path has a NUL byte")]
    Nul,
    #[error("the path has a component git reserves for itself")]
    GitReserved,
}

impl RelPath {
    /// Checks slash-separated bytes.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let bytes = bytes.as_ref();
        check(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Takes bytes whose directory part came out of a [`RelPath`] and whose name was checked.
    fn trusted(bytes: Vec<u8>) -> Self {
        debug_assert_eq!(check(&bytes), Ok(()));
        Self(bytes.into())
    }

    /// `dir/name`, with `None` as the root. Only the new name, the length and the depth are checked.
    pub fn join(dir: Option<&RelPath>, name: &[u8]) -> Result<Self, PathError> {
        check_name(name)?;
        let Some(dir) = dir else {
            return Ok(Self::trusted(name.to_vec()));
        };
        let mut bytes = Vec::with_capacity(dir.0.len() + 1 + name.len());
        bytes.extend_from_slice(&dir.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        check_extent(&bytes)?;
        Ok(Self::trusted(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }

    /// The directory that holds this path, `None` for the root.
    pub fn parent(&self) -> Option<RelPath> {
        let slash = self.0.rfind_byte(b'/')?;
        Some(Self::trusted(self.0[..slash].to_vec()))
    }

    /// Every directory above this path, outermost first; the root is left out.
    pub fn ancestors(&self) -> impl Iterator<Item = RelPath> + '_ {
        self.0
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(i, _)| Self::trusted(self.0[..i].to_vec()))
    }

    /// The last component.
    pub fn name(&self) -> &[u8] {
        self.components().next_back().unwrap_or(&self.0)
    }

    /// True if `self` lies below `dir` (and is not `dir` itself).
    pub fn is_below(&self, dir: &RelPath) -> bool {
        self.0.len() > dir.0.len() && self.0.starts_with(&dir.0) && self.0[dir.0.len()] == b'/'
    }
}

/// Compares names or paths so that `/` sorts before every other byte: directories stay contiguous.
fn component_order(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        component_order(&self.0, &other.0)
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// For people and logs: control bytes, invalid UTF-8 and bidirectional controls come out escaped.
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.as_bstr())
    }
}

/// Text from another machine or a file name, made safe for a terminal, a log line and JSON.
///
/// Valid, printable UTF-8 stays as it is; a backslash becomes `\\`; every other byte becomes `\xNN`
/// and every control or direction-changing character `\u{N}`. The result can be read back, because no two
/// inputs give the same text.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || changes_direction(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

fn changes_direction(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

/// True for what may be one component of a [`RelPath`].
pub fn is_name(name: &[u8]) -> bool {
    !name.contains(&b'/') && check_name(name).is_ok()
}

/// True if `dir/name` is a [`RelPath`], with `None` as the root: what [`RelPath::join`] finds out, without making it.
pub fn can_hold(dir: Option<&RelPath>, name: &[u8]) -> bool {
    let fits = |dir: &RelPath| {
        let deep = dir.0.iter().filter(|b| **b == b'/').count() + 1 >= MAX_DEPTH;
        !deep && dir.0.len() + 1 + name.len() <= MAX_PATH_BYTES
    };
    is_name(name) && dir.is_none_or(fits)
}

fn check(bytes: &[u8]) -> Result<(), PathError> {
    if bytes.is_empty() {
        return Err(PathError::Empty);
    }
    check_extent(bytes)?;
    bytes.split(|b| *b == b'/').try_for_each(check_name)
}

fn check_extent(bytes: &[u8]) -> Result<(), PathError> {
    if bytes.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong(bytes.len()));
    }
    if bytes.iter().filter(|b| **b == b'/').count() >= MAX_DEPTH {
        return Err(PathError::TooDeep);
    }
    Ok(())
}

fn check_name(name: &[u8]) -> Result<(), PathError> {
    match name {
        b"" => return Err(PathError::EmptyComponent),
        b"." | b".." => return Err(PathError::Dots),
        _ if name.len() > MAX_NAME_BYTES => return Err(PathError::NameTooLong(name.len())),
        _ if name.contains(&0) => return Err(PathError::Nul),
        _ => {}
    }
    // NTFS takes a backslash for a separator, so each part between them could be `.git` there.
    if name.split(|b| *b == b'\\').any(is_git_alias) {
        return Err(PathError::GitReserved);
    }
    Ok(())
}

/// True for every name some file system resolves to `.git`: case, NTFS short name, NTFS trailing
/// dots, spaces and streams, HFS+ ignorable code points.
fn is_git_alias(part: &[u8]) -> bool {
    let ntfs = strip_ntfs(part);
    ntfs.eq_ignore_ascii_case(b".git")
        || is_ntfs_short_name(ntfs)
        || visible(part).is_some_and(|text| text.eq_ignore_ascii_case(".git"))
}

/// True for every name some file system resolves to `.gitmodules`, which git follows wherever it leads when
/// it is a link (git's path.c, `is_ntfs_dotgitmodules`, and utf8.c, `is_hfs_dotgitmodules`).
pub fn is_gitmodules_alias(name: &[u8]) -> bool {
    let ntfs = strip_ntfs(name);
    if ntfs.eq_ignore_ascii_case(b".gitmodules") {
        return true;
    }
    if let Some((stem, number)) = ntfs.split_at_checked(7) {
        let short = stem.eq_ignore_ascii_case(b"gitmod~") && matches!(number, [b'1'..=b'4']);
        let hashed = stem.eq_ignore_ascii_case(b"gi7eba~");
        if short || hashed && !number.is_empty() && number.iter().all(u8::is_ascii_digit) {
            return true;
        }
    }
    visible(name).is_some_and(|text| text.eq_ignore_ascii_case(".gitmodules"))
}

/// What NTFS takes a name for: without a stream and trailing dots and spaces.
fn strip_ntfs(name: &[u8]) -> &[u8] {
    let name = name.split(|b| *b == b':').next().unwrap_or(name);
    name.trim_end_with(|c| c == ' ' || c == '.')
}

/// The name without what HFS+ ignores, if there can be anything of that in it.
fn visible(name: &[u8]) -> Option<String> {
    if name.is_ascii() {
        return None;
    }
    let text = std::str::from_utf8(name).ok()?;
    Some(text.chars().filter(|c| !is_hfs_ignorable(*c)).collect())
}

/// `git~1` is the short name NTFS gives `.git`. Git refuses that one; we refuse every number, since a
/// second `.git`-like name on the volume would push the short name on.
fn is_ntfs_short_name(name: &[u8]) -> bool {
    let Some((stem, number)) = name.split_at_checked(4) else {
        return false;
    };
    stem.eq_ignore_ascii_case(b"git~") && !number.is_empty() && number.iter().all(u8::is_ascii_digit)
}

/// The code points HFS+ drops when it compares names (git's utf8.c, `next_hfs_char`).
fn is_hfs_ignorable(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_escape_or_reach_git() {
        let long = vec![b'a'; 256];
        let deep = vec!["d"; 129].join("/");
        let refused: &[&[u8]] = &[
            b"",
            b"../x",
            b"a/../../x",
            b"/etc/x",
            b"a//b",
            b"a/",
            b".",
            b"a/./b",
            b"a\0b",
            &long,
            deep.as_bytes(),
            b".git/config",
            b".GIT/hooks/pre-commit",
            b"sub/.gIt/x",
            b".git",
            b"git~1/x",
            b"GIT~2",
            b".git /x",
            b".git./x",
            b".git..",
            b".git::$INDEX_ALLOCATION/x",
            b".git:foo",
            ".g\u{200c}it/x".as_bytes(),
            ".git\u{feff}".as_bytes(),
            b".git\\hooks\\x",
            b"a\\.git\\b",
        ];
        for path in refused {
            assert!(RelPath::new(path).is_err(), "{:?}", path.as_bstr());
        }
    }

    #[test]
    fn takes_odd_but_honest_names() {
        let deep = vec!["d"; 128].join("/");
        let taken: &[&[u8]] = &[
            b"a",
            b"a/b",
            b"a\r",
            b"a\nb\t\x1b",
            b"\xff\xfe",
            b"--help",
            b":(glob)x",
            b"*",
            b"CON",
            b"c:x",
            b"a\\b",
            b".gitignore",
            b".gitmodules",
            b".gita",
            b"git~",
            b"gitx~1",
            b"...",
            b".. .",
            deep.as_bytes(),
            &[b'a'; 255],
        ];
        for path in taken {
            assert!(RelPath::new(path).is_ok(), "{:?}: {:?}", path.as_bstr(), RelPath::new(path));
        }
    }

    #[test]
    fn gitmodules_goes_by_many_names() {
        let aliases: &[&[u8]] = &[
            b".gitmodules",
            b".GitModules",
            b"gitmod~1",
            b"GITMOD~4",
            b"gi7eba~1",
            b"GI7EBA~23",
            b".gitmodules .",
            b".gitmodules::$DATA",
            ".git\u{200c}modules".as_bytes(),
            ".gitmodules\u{feff}".as_bytes(),
        ];
        for name in aliases {
            assert!(is_gitmodules_alias(name), "{:?}", name.as_bstr());
        }
        for name in [&b"gitmodules"[..], b"gitmod~5", b"gitmod~", b"gi7eba~", b".gitmodule", b".gitmodules2"]
        {
            assert!(!is_gitmodules_alias(name), "{:?}", name.as_bstr());
        }
    }

    #[test]
    fn what_a_directory_can_hold_is_what_can_be_joined() {
        let (deep, long) = (vec!["d"; 127].join("/"), vec!["d".repeat(200); 20].join("/"));
        let dirs =
            [None, Some("a/b"), Some(&*deep), Some(&*long)].map(|dir| dir.map(|d| RelPath::new(d).unwrap()));
        let names: [&[u8]; 8] = [b"x", b".git", b"", b"..", b"a/b", b"git~1", &[b'n'; 76], &[b'n'; 77]];
        for dir in &dirs {
            for name in names {
                let joined = !name.contains(&b'/') && RelPath::join(dir.as_ref(), name).is_ok();
                assert_eq!(can_hold(dir.as_ref(), name), joined, "{dir:?} {:?}", name.as_bstr());
            }
            let below = dir.as_ref().and_then(|dir| RelPath::join(Some(dir), b"d").ok());
            if let Some(below) = below {
                assert_eq!(can_hold(Some(&below), b"x"), RelPath::join(Some(&below), b"x").is_ok());
            }
        }
    }

    #[test]
    fn order_keeps_directories_together() {
        let mut paths: Vec<RelPath> =
            ["a", "a-b", "a/c", "a.d", "a/b/c", "b"].iter().map(|p| RelPath::new(p).unwrap()).collect();
        paths.sort();
        let names: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a", "a/b/c", "a/c", "a-b", "a.d", "b"]);
    }

    #[test]
    fn relations() {
        let p = RelPath::new("a/b/c").unwrap();
        let ancestors: Vec<String> = p.ancestors().map(|a| a.to_string()).collect();
        assert_eq!(ancestors, ["a", "a/b"]);
        assert_eq!(p.parent().unwrap().to_string(), "a/b");
        assert_eq!(p.name(), b"c");
        assert!(p.is_below(&RelPath::new("a").unwrap()));
        assert!(!RelPath::new("ab").unwrap().is_below(&RelPath::new("a").unwrap()));
    }

    #[test]
    fn escape_is_printable_and_reversible_in_kind() {
        assert_eq!(escape(b"a\x1b[31m\n"), "a\\u{1b}[31m\\u{a}");
        assert_eq!(escape(b"\xffx\\"), "\\xffx\\\\");
        assert_eq!(escape("né\u{202e}".as_bytes()), "né\\u{202e}");
    }
}
