//! Names that editors use only while they save a file.
//!
//! A save often moves the old file aside, or copies it, and removes that backup when the new one is whole; some lock
//! the file or try whether files can be made there at all. `tests/recordings` shows such saves. On a slow disk one
//! takes far longer than other names that come and go, so these are given more time.

use crate::model::RelPath;

/// What a name is to the file being saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aside {
    /// Its backup, lock, auto-save file, or its new content on the way to its name.
    Of(RelPath),
    /// A file made only to see whether files can be made in this directory.
    Probe,
}

/// Vim's first try; each next one is larger by the step (its `buf_write`).
const PROBE_FIRST: u32 = 4913;
const PROBE_STEP: u32 = 123;

/// Before and after the name of the file that is saved.
const AROUND: [(&[u8], &[u8]); 8] = [
    // Vim, emacs and many others: the backup.
    (b"", b"~"),
    // Emacs: auto-save file and lock.
    (b"#", b"#"),
    (b".#", b""),
    // Vim's swap file, and how it finds out whether two names are one file.
    (b".", b".swp"),
    (b".", b".swx"),
    // The IntelliJ platform's safe write.
    (b"", b"___jb_tmp___"),
    (b"", b"___jb_old___"),
    (b"", b"___jb_bak___"),
];

/// What `path` is if it belongs to a save. The file it would belong to need not be there.
pub fn aside(path: &RelPath) -> Option<Aside> {
    let name = path.name();
    let saved = AROUND.iter().find_map(|(before, after)| {
        let saved = name.strip_prefix(*before)?.strip_suffix(*after)?;
        RelPath::join(path.parent().as_ref(), saved).ok()
    });
    saved.map(Aside::Of).or_else(|| is_probe(name).then_some(Aside::Probe))
}

fn is_probe(name: &[u8]) -> bool {
    let number =
        std::str::from_utf8(name).ok().filter(|n| !n.starts_with(['0', '+'])).and_then(|n| n.parse().ok());
    number.is_some_and(|n: u32| n >= PROBE_FIRST && (n - PROBE_FIRST).is_multiple_of(PROBE_STEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_saves_are_known() {
        let rows = [
            ("src/main.rs~", Some("src/main.rs")),
            ("src/#main.rs#", Some("src/main.rs")),
            ("src/.#main.rs", Some("src/main.rs")),
            (".main.rs.swp", Some("main.rs")),
            (".main.rs.swx", Some("main.rs")),
            ("a/x___jb_tmp___", Some("a/x")),
            ("a/x___jb_old___", Some("a/x")),
            ("a/main.rs", None),
            ("a/~", None),
            ("a/#", None),
            ("a/.#", None),
            ("a/.swp", None),
        ];
        for (name, saved) in rows {
            let expected = saved.map(|saved| Aside::Of(RelPath::new(saved).unwrap()));
            assert_eq!(aside(&RelPath::new(name).unwrap()), expected, "{name}");
        }
        for (name, is) in
            [("4913", true), ("a/5036", true), ("a/4914", false), ("04913", false), ("7", false)]
        {
            let probe = aside(&RelPath::new(name).unwrap());
            assert_eq!(probe == Some(Aside::Probe), is, "{name}");
        }
    }
}
